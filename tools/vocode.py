"""Speak audio tokens with a trained vocoder.

Examples:
    python tools/vocode.py runs/demo/vocoder --tokens runs/demo/tokens/audio --record 9900 -o answer.wav
    python tools/vocode.py runs/demo/vocoder --ids ids.txt -o answer.wav --steps 0
    python tools/vocode.py runs/vocoder --ids ids.txt -o answer.wav --prompt-audio voice.wav --prompt-ids voice.txt
    cat ids.txt | python tools/vocode.py runs/demo/vocoder --ids - -o answer.wav --stream

`ids.txt` holds merged token ids in groups of five, separated by blanks, commas or line ends. The same ids and seed give
the same file. Ids that break the order of groups are dropped, at most one group for each fault, and named on standard
error. A folder with flow/ and hift/ is the full-size vocoder; at 22.05 kHz that speaks whole utterances only.
It speaks with the voice of a recording whose ids are given with it (--prompt-audio, --prompt-ids).
Exit codes: 0 done, 1 spoken with faults, 2 wrong arguments, files or ids (with --strict any fault).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from megatron_aqaa.audio.io import save_waveform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.vocoder.acoustic import SamplingConfig
from megatron_aqaa.vocoder.cosyvoice.flow_sampling import FlowSampling
from megatron_aqaa.vocoder.cosyvoice.full_size_vocoder import FullSizeVocoder
from megatron_aqaa.vocoder.cosyvoice.prompt_files import read_prompt
from megatron_aqaa.vocoder.group_repair import GroupFault, refuse
from megatron_aqaa.vocoder.id_text import read_ids
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder


def main() -> int:
    """Parse, load, speak, write."""
    arguments = parse()
    faults: list[GroupFault] = []
    on_fault = refuse if arguments.strict else faults.append
    try:
        vocoder = load(arguments)
        prompt = read_prompt(vocoder, arguments.prompt_audio, arguments.prompt_ids)
        token_ids = ids_of(arguments)
        started_s = time.perf_counter()
        if arguments.stream:
            pieces = vocoder.stream(token_ids.tolist(), arguments.seed, on_fault=on_fault, **prompt)
            waveform = torch.cat([torch.zeros(0), *pieces])
        else:
            waveform = vocoder.synthesize(token_ids, arguments.seed, on_fault, **prompt)
        took_s = time.perf_counter() - started_s
        save_waveform(waveform, arguments.output, vocoder.sample_rate_hz)
    except ValueError as error:
        print(f"vocode: {error}", file=sys.stderr)
        return 2
    duration_s = len(waveform) / vocoder.sample_rate_hz
    print(f"{arguments.output}: {duration_s:.2f} s of speech in {took_s:.2f} s")
    return report(faults)


def load(arguments: argparse.Namespace) -> TokenVocoder | FullSizeVocoder:
    """The vocoder in the folder, told by its parts."""
    given = {name: getattr(arguments, name) for name in ("steps", "guidance", "temperature")}
    settings = {name: value for name, value in given.items() if value is not None} | {"bf16": arguments.bf16}
    if not (arguments.vocoder / "flow").exists():
        return TokenVocoder.load(arguments.vocoder, SamplingConfig(**settings))
    return FullSizeVocoder.load(arguments.vocoder, FlowSampling(**settings))


def report(faults: list[GroupFault]) -> int:
    """Name the faults that were repaired; returns the exit code."""
    for fault in faults:
        print(f"vocode: {fault}", file=sys.stderr)
    if faults:
        print(f"vocode: {len(faults)} faults in the order of groups were repaired", file=sys.stderr)
    return 1 if faults else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocoder", type=Path, help="folder with acoustic/ and generator/, or with flow/ and hift/")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens", type=Path, help="prefix of a token data set (with --record)")
    source.add_argument("--ids", help="text file of token ids, - for standard input")
    parser.add_argument("--record", type=int, default=0, help="sequence of the data set, from 0")
    parser.add_argument("--prompt-audio", type=Path, help="recording of the voice to speak with (full-size vocoder)")
    parser.add_argument("--prompt-ids", type=Path, help="text file of its token ids")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".wav or .flac")
    parser.add_argument("--steps", type=int, help="flow steps; 0 speaks the mean (miniature only)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance")
    parser.add_argument("--temperature", type=float, help="deviation of the noise")
    parser.add_argument("--bf16", action="store_true", help="run the flow in bf16: faster where the CPU computes in it")
    parser.add_argument("--strict", action="store_true", help="refuse ids that break the order of groups")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--stream", action="store_true", help="decode in chunks, as a conversation does")
    return parser.parse_args()


def ids_of(arguments: argparse.Namespace) -> np.ndarray:
    """Token ids [5 G] that are to be spoken."""
    if arguments.tokens:
        documents = Documents(arguments.tokens)
        if not 0 <= arguments.record < len(documents):
            raise ValueError(f"{arguments.tokens}: no record {arguments.record}; it holds 0 … {len(documents) - 1}")
        return documents[arguments.record].token_ids
    return read_ids(arguments.ids)


if __name__ == "__main__":
    sys.exit(main())
