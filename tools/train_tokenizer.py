"""Train a part of the tokenizer: the text model, the linguistic encoder with its codebook, or the semantic encoder.

Examples:
    python tools/train_tokenizer.py text examples/tiny_cpu/text_tokenizer.yaml
    python tools/train_tokenizer.py linguistic examples/tiny_cpu/linguistic.yaml
    python tools/train_tokenizer.py semantic examples/tiny_cpu/semantic.yaml output=runs/mine/tokenizer fit.steps=500
    torchrun --nproc-per-node 8 tools/train_tokenizer.py linguistic examples/tokenizer/linguistic.yaml fit.num_shares=8
    python tools/train_tokenizer.py export examples/tokenizer/export.yaml

The first three write into one tokenizer directory and may run side by side. The speech encoders need the features that
tools/extract_features.py makes, and print their scores on held-out voices. Run the same command again after an
interruption: training continues at its last checkpoint, or once finished, is not repeated. `export` writes the files of
the released tokenizer, of encoders of the kinds sanm and whisper (docs/tokenizer_training.md).
Exit codes: 0 done, 1 the training failed or a file could not be written, 2 wrong settings or files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.config import load_config
from megatron_aqaa.tokenizer.codebook_report import CodebookReport
from megatron_aqaa.tokenizer.released.export import ExportConfig, export_tokenizer
from megatron_aqaa.training.speech_models.tokenizer_training import (
    LinguisticTrainingConfig,
    SemanticTrainingConfig,
    TextTrainingConfig,
    train_linguistic,
    train_semantic,
    train_text,
)

PARTS = {
    "text": (TextTrainingConfig, train_text),
    "linguistic": (LinguisticTrainingConfig, train_linguistic),
    "semantic": (SemanticTrainingConfig, train_semantic),
    "export": (ExportConfig, lambda config: {f"equal_{k}_codes": v for k, v in vars(export_tokenizer(config)).items()}),
}


def main() -> int:
    """Parse, load, train, print scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, help="what to train, or to export")
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="field=value, section.field=value")
    arguments = parser.parse_args()
    config_class, train = PARTS[arguments.part]
    try:
        config = load_config(config_class, arguments.config, arguments.overrides)
        scores = train(config)
    except ValueError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError) as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"train_tokenizer: {error or 'interrupted; run the same command to continue'}", file=sys.stderr)
        return 130
    for name, value in scores.items():
        print(f"{name:24} {value:.4g}")
    if scores and arguments.part in ("linguistic", "semantic"):
        _draw(config.output / arguments.part, arguments.part)
    return 0


def _draw(directory: Path, part: str) -> None:
    try:
        from megatron_aqaa.evaluation.codebook_picture import draw_codebook
    except ImportError as error:
        print(f"no picture of the codebook: {error}")
        return
    report = CodebookReport.load(directory / "codebook.json")
    draw_codebook(report, f"{part} codebook", directory / "codebook.png", part)
    print(f"codebook: {directory / 'codebook.png'}")


if __name__ == "__main__":
    sys.exit(main())
