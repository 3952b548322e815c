"""Make the data sets of a run: pre-training documents and SFT conversations from tokenized recordings.

Examples:
    python tools/prepare_data.py examples/tiny_cpu/data.yaml
    python tools/prepare_data.py examples/tiny_cpu/data.yaml output=runs/mine/data num_takes=2
    python tools/prepare_data.py examples/speech/data.yaml

Prints a table of counts and writes it to `summary.json`. Data sets that the recordings do not allow, for want of text
or of a role, are named with the reason. Run the same command again after an interruption: finished data sets are kept,
those whose inputs or settings changed are made again.
Exit codes: 0 done, 2 wrong settings or files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from megatron_aqaa.config import load_config
from megatron_aqaa.data.prepare import Preparation, PrepareConfig
from megatron_aqaa.training.progress import Progress

COLUMNS = ("documents", "left_out", "without_text", "tokens", "targets", "audio_hours", "mean_tokens", "longest")


def main() -> int:
    """Parse, load, prepare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, see docs/data.md")
    parser.add_argument("overrides", nargs="*", help="field=value")
    arguments = parser.parse_args()
    try:
        config = load_config(PrepareConfig, arguments.config, arguments.overrides)
        preparation = Preparation(config)
        with Progress("documents", preparation.num_documents) as progress:
            summary = preparation.run(progress.update)
    except ValueError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare_data: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    print_table(summary["data_sets"])
    for name, reason in summary["impossible"].items():
        print(f"{name}: no documents: {reason}")
    print(f"\n{summary['rejected_recordings']} rejected recordings left out; counts in {config.output}/summary.json")
    return 0


def print_table(data_sets: dict[str, Any]) -> None:
    """Counts, one line a data set."""
    width = max(map(len, data_sets), default=0)
    print(" " * width + "".join(f"{name:>13}" for name in COLUMNS))
    for name, counts in data_sets.items():
        print(f"{name:{width}}" + "".join(f"{counts.get(column, 0):>13,}" for column in COLUMNS))


if __name__ == "__main__":
    sys.exit(main())
