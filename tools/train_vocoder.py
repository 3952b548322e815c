"""Train one half of a token vocoder: what makes mel of tokens, or what makes waveforms of mel.

The miniature has an `acoustic` model and a `generator` (`voice` trains both in turn); the full-size vocoder
a `flow` model and a `hift` generator, which is trained against discriminators.

Examples:
    python tools/train_vocoder.py generator examples/tiny_cpu/generator.yaml
    python tools/train_vocoder.py acoustic examples/tiny_cpu/acoustic.yaml fit.steps=200
    python tools/train_vocoder.py voice examples/tiny_cpu/vocoder.yaml
    python tools/train_vocoder.py hift examples/vocoder/hift.yaml speech.manifest=data/speech/manifest.jsonl
    torchrun --nproc-per-node 2 tools/train_vocoder.py generator examples/tiny_cpu/generator.yaml fit.num_shares=2

The two halves do not need each other and can run side by side. Prints the errors on held-out recordings.
Run the same command again after an interruption: it continues at the last checkpoint.
Exit codes: 0 done, 1 the run diverged or a file could not be written, 2 wrong settings or files, 130 stopped by a
signal after saving.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from megatron_aqaa.config import load_config
from megatron_aqaa.training.speech_models.full_size_vocoder import (
    FlowTrainConfig,
    HiftTrainConfig,
    train_flow,
    train_hift,
)
from megatron_aqaa.training.speech_models.vocoder_jobs import (
    AcousticTrainConfig,
    GeneratorTrainConfig,
    VoiceTrainConfig,
    train_acoustic,
    train_generator,
    train_voice,
)

JOBS: dict[str, tuple[type, Callable[[Any], dict[str, float]]]] = {
    "acoustic": (AcousticTrainConfig, train_acoustic),
    "generator": (GeneratorTrainConfig, train_generator),
    "voice": (VoiceTrainConfig, train_voice),
    "flow": (FlowTrainConfig, train_flow),
    "hift": (HiftTrainConfig, train_hift),
}


def main() -> int:
    """Parse, load, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=JOBS)
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="section.field=value")
    arguments = parser.parse_args()
    try:
        settings, train = JOBS[arguments.network]
        report = train(load_config(settings, arguments.config, arguments.overrides))
    except ValueError as error:
        print(f"train_vocoder: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError) as error:
        print(f"train_vocoder: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"train_vocoder: {error}", file=sys.stderr)
        return 130
    for name, value in report.items():  # none but in the first process
        print(f"{name:16} {value:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
