"""Ask a trained model aloud: a recording goes in, words appear as they are chosen, and the spoken answer is written.

Examples:
    python tools/generate.py question.wav -o answer.wav
    python tools/generate.py question.mp3 -o answer.wav --run runs/quick --temperature 0.8 --seed 3
    python tools/generate.py question.wav -o answer.wav --stream    # speaks while it thinks

Any wav, flac, ogg or mp3 of at most 30 s, at any rate. The same seed gives the same answer.
Exit codes: 0 done, 2 a file or a setting that cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import soundfile

from megatron_aqaa.audio.io import save_waveform
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.inference.question import SAMPLE_RATE_HZ, load_question
from megatron_aqaa.inference.sampling import Sampling


def main() -> int:
    """Parse, answer, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", type=Path, help="recording of a question")
    parser.add_argument("-o", "--output", type=Path, default=Path("answer.wav"), help="spoken answer (.wav)")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run directory")
    parser.add_argument("--model", type=Path, help="language-model run or checkpoint (default: merged, or sft)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer")
    parser.add_argument("--stream", action="store_true", help="write speech while the answer is generated")
    arguments = parser.parse_args()
    try:
        _answer(arguments)
    except (ValueError, OSError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("generate: interrupted", file=sys.stderr)
        return 130
    return 0


def _answer(arguments: argparse.Namespace) -> None:
    sampling = Sampling(
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
    )
    if arguments.output.suffix.lower() != ".wav":  # now, not after the answer has been made
        raise ValueError(f"{arguments.output}: the answer is written as .wav")
    question = load_question(arguments.question)
    with SpokenAnswerer.load(arguments.run, arguments.model) as answerer:
        started_s = time.monotonic()
        if arguments.stream:
            duration_s = _stream(answerer, question, sampling, arguments.output)
        else:
            answer = answerer.answer(question, sampling, _tell)
            duration_s = len(answer.waveform) / SAMPLE_RATE_HZ
            save_waveform(answer.waveform, arguments.output, SAMPLE_RATE_HZ)
    print(f"\n{arguments.output}: {duration_s:.2f} s of speech, {time.monotonic() - started_s:.2f} s to make")


def _stream(answerer: SpokenAnswerer, question, sampling: Sampling, output: Path) -> float:  # type: ignore[no-untyped-def]
    """Write stretch by stretch; returns the duration."""
    output.parent.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    with soundfile.SoundFile(output, "w", SAMPLE_RATE_HZ, channels=1, subtype="PCM_16") as file:
        for sound in answerer.stream(question, sampling, _tell):
            if not file.frames:
                print(f" [first sound after {time.monotonic() - started_s:.2f} s]", end="", file=sys.stderr, flush=True)
            file.write(sound.clamp(-1, 1).numpy())
            file.flush()
        return file.frames / SAMPLE_RATE_HZ


def _tell(words: str) -> None:
    print(words, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
