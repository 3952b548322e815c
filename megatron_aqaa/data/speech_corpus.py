"""Makes the spoken corpus of the miniature: wave files and a manifest.

`synthesize_corpus` writes `wav/000017.wav` (16 kHz, PCM16, mono, a multiple of 1920 samples) and `manifest.jsonl`, one
record a line. Utterances are made in blocks, each by a fresh engine and each noted in `blocks/` when complete, so the
bytes depend on the settings alone (not on the number of workers) and an interrupted run continues where it was. The
note's name holds a digest of the block's script: changed settings or questions make the affected blocks again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from megatron_aqaa.audio.synthetic import Espeak, Speech, record
from megatron_aqaa.config import save_config
from megatron_aqaa.data.miniature import spoken_form
from megatron_aqaa.data.speech_script import SpeechCorpusConfig, Utterance, write_script
from megatron_aqaa.tokenizer.workers import map_blocks
from megatron_aqaa.whole_file import write_whole

__all__ = ["MANIFEST_NAME", "SpeechCorpusConfig", "synthesize_corpus"]

MANIFEST_NAME = "manifest.jsonl"


def synthesize_corpus(
    config: SpeechCorpusConfig, directory: Path, on_progress: Callable[[int], None] = lambda done: None
) -> Path:
    """Speaks the whole script into `directory`, or what is missing of it.

    Args:
        config: what to make.
        directory: created if needed; wave files, manifest and settings go there.
        on_progress: called with the number of utterances finished so far, first at the start.

    Returns:
        The path of the manifest, which is written last.

    Raises:
        ValueError: a voice does not exist.
        SpeechEngineError: no speech engine on this machine.
    """
    script = write_script(config)
    size = config.utterances_per_block
    blocks = [_Block(directory, config.seed, tuple(script[i : i + size])) for i in range(0, len(script), size)]
    missing = [block for block in blocks if not block.is_complete()]
    done = len(script) - sum(len(block.utterances) for block in missing)
    on_progress(done)
    manifest = directory / MANIFEST_NAME
    if missing:
        manifest.unlink(missing_ok=True)  # it may describe other recordings than those that are made now
        (directory / "wav").mkdir(parents=True, exist_ok=True)
        (directory / "blocks").mkdir(exist_ok=True)
        save_config(config, directory / "speech.yaml")
    for count in map_blocks(_Block.speak, missing, config.num_workers):
        done += count
        on_progress(done)
    write_whole(manifest, "".join(block.note.read_text() for block in blocks))
    return manifest


@dataclass(frozen=True)
class _Block:
    """Some consecutive utterances: the unit of work, and of resuming."""

    directory: Path
    seed: int
    utterances: tuple[Utterance, ...]

    @property
    def note(self) -> Path:
        """The block's lines of the manifest; the file exists once all its recordings do."""
        digest = hashlib.sha256(repr((self.seed, self.utterances)).encode()).hexdigest()[:12]
        return self.directory / "blocks" / f"{self.utterances[0].id:06d}-{digest}.jsonl"

    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        audio = (self.directory / _audio_name(utterance) for utterance in self.utterances)
        return self.note.exists() and all(path.exists() for path in audio)

    def speak(self) -> int:
        """Makes all recordings with a fresh engine, then the note; returns the number of utterances."""
        for stale in (self.directory / "blocks").glob(f"{self.utterances[0].id:06d}-*"):
            stale.unlink()
        with Espeak(seed=self.seed) as engine:
            lines = [self._speak(engine, utterance) for utterance in self.utterances]
        write_whole(self.note, "".join(json.dumps(line) + "\n" for line in lines))
        return len(lines)

    def _speak(self, engine: Espeak, utterance: Utterance) -> dict[str, Any]:
        delivery = utterance.delivery
        raw = engine.speak(spoken_form(utterance.text), utterance.speaker, delivery.rate_wpm, delivery.pitch)
        noise_seed = int(np.random.SeedSequence([self.seed, utterance.id]).generate_state(1)[0])
        speech = record(raw, noise_seed, utterance.gain, utterance.noise_lsb)
        path = self.directory / _audio_name(utterance)
        soundfile.write(path, speech.samples, speech.sample_rate_hz, subtype="PCM_16")
        return _manifest_line(utterance, speech)


def _manifest_line(utterance: Utterance, speech: Speech) -> dict[str, Any]:
    line = {
        "id": utterance.id,
        "audio": _audio_name(utterance),
        "duration_s": len(speech.samples) / speech.sample_rate_hz,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "role": utterance.role,
        "split": utterance.split,
        "kind": utterance.kind,
        "style": utterance.style,
        "phones": [[phone.start_s, phone.symbol] for phone in speech.phones],
    }
    return line if utterance.answer is None else {**line, "answer": utterance.answer}


def _audio_name(utterance: Utterance) -> str:
    return f"wav/{utterance.id:06d}.wav"
