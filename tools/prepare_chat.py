"""Make SFT and preference data sets from chat JSON Lines; audio files are tokenized on the way, each once.

Examples:
    python tools/prepare_chat.py examples/chat/prepare.yaml
    python tools/prepare_chat.py examples/chat/prepare.yaml shard=3 num_shards=16
    python tools/prepare_chat.py examples/chat/prepare.yaml strict=true

With `shard` it tokenizes that part of the audio and stops, for the tasks of a job array; without, it tokenizes what is
left and writes the data sets. Bad records are set aside in `<data set>_rejects.jsonl` with file, line and reason.
Run the same command again after an interruption: what is finished is kept. Formats: docs/data.md.
Exit codes: 0 done, 65 done but some records were rejected, 1 done but more were than `max_rejected_ratio` allows,
2 wrong settings or files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from megatron_aqaa.config import load_config
from megatron_aqaa.data.chat_records import count_records
from megatron_aqaa.data.prepare_chat import ChatPreparation, PrepareChatConfig
from megatron_aqaa.platform.exit_status import after_rejects
from megatron_aqaa.training.progress import Progress

COLUMNS = ("records", "rejected", "left_out", "tokens", "text_tokens", "audio_tokens", "targets", "segments", "longest")


def main() -> int:
    """Parse, load, prepare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, see docs/data.md")
    parser.add_argument("overrides", nargs="*", help="field=value")
    arguments = parser.parse_args()
    try:
        config = load_config(PrepareChatConfig, arguments.config, arguments.overrides)
        summary = prepare(config)
    except ValueError as error:
        print(f"prepare_chat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare_chat: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    if summary is None:
        return 0
    print_table(summary["data_sets"])
    print(f"\ncounts in {config.output}/summary.json")
    num_all = sum(counts["records"] for counts in summary["data_sets"].values())
    if summary["rejected"]:
        where = f"{config.output}/*/*_rejects.jsonl"
        print(f"prepare_chat: {summary['rejected']} of {num_all} records rejected, see {where}", file=sys.stderr)
    return after_rejects(summary["rejected"], num_all, config.max_rejected_ratio)


def prepare(config: PrepareChatConfig) -> dict[str, Any] | None:
    """Read, tokenize and, if this is no shard, write the data sets; returns their summary."""
    with Progress("records read", sum(map(count_records, config.files))) as progress:
        preparation = ChatPreparation(config, progress.update)
    if preparation.num_audio:
        with Progress("recordings", preparation.num_audio) as progress:
            preparation.tokenize(progress.update)
    if config.shard is not None:
        return None
    with Progress("records written", preparation.num_records) as progress:
        return preparation.write(progress.update)


def print_table(data_sets: dict[str, Any]) -> None:
    """Counts, one line a data set, and why records were rejected."""
    width = max(map(len, data_sets))
    print(" " * width + "".join(f"{name:>13}" for name in COLUMNS))
    for name, counts in data_sets.items():
        print(f"{name:{width}}" + "".join(f"{counts[column]:>13,}" for column in COLUMNS))
    for name, counts in data_sets.items():
        for problem, count in counts["rejects"].items():
            print(f"{name}: {count:,} rejected: {problem}")
        if counts["unknown_tokens"]:
            print(f"{name}: {counts['unknown_tokens']:,} tokens stand for characters that the text model does not know")
        if counts.get("pairs_of_same_text"):
            print(
                f"{name}: {counts['pairs_of_same_text']:,} pairs differ in audio alone; loss_mask: text learns nothing"
            )


if __name__ == "__main__":
    sys.exit(main())
