"""Select spoken answers for SFT-2 out of the training recordings: the shortest take that follows its style.

Examples:
    python tools/select_answers.py examples/tiny_cpu/selection.yaml
    python tools/select_answers.py examples/tiny_cpu/selection.yaml num_conversations=500 output=selected.jsonl

Writes chat JSON lines for tools/prepare_chat.py, and counts beside them, to `.counts.json`.
Exit codes: 0 done, 2 wrong settings or files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys

from megatron_aqaa.config import load_config
from megatron_aqaa.evaluation.answer_selection import SelectionConfig, num_takes, select_answers
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, load, select, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, see megatron_aqaa/evaluation/answer_selection.py")
    parser.add_argument("overrides", nargs="*", help="field=value")
    arguments = parser.parse_args()
    try:
        config = load_config(SelectionConfig, arguments.config, arguments.overrides)
        with Progress("recordings", num_takes(config)) as progress:
            counts = select_answers(config, progress.update)
    except ValueError as error:
        print(f"select_answers: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("select_answers: interrupted; run the same command again", file=sys.stderr)
        return 130
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    print(config.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
