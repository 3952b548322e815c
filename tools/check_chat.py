"""Check chat and preference JSON Lines: every bad record by file, line and reason, then a summary.

Examples:
    python tools/check_chat.py examples/chat/conversations.jsonl examples/chat/preferences.jsonl
    python tools/check_chat.py --decode --spoken my/*.jsonl

Audio files must exist and have a readable head; --decode reads them to the end, as the tokenizer will (some
milliseconds a file). The format is told in docs/data.md.
Exit codes: 0 all records can be used, 1 some cannot, 2 wrong arguments or files.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from megatron_aqaa.data.audio_files import AudioFiles
from megatron_aqaa.data.chat_records import BadRecord, ChatReader, ChatRecord, PreferenceRecord, Record, count_records
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, read every file, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="chat or preference files")
    parser.add_argument("--spoken", action="store_true", help="every answer must have audio")
    parser.add_argument("--decode", action="store_true", help="read audio files to the end")
    arguments = parser.parse_args()
    reader = ChatReader(spoken_answers=arguments.spoken, audio_files=AudioFiles(arguments.decode))
    try:
        with Progress("records", sum(map(count_records, arguments.files))) as progress:
            problems = check(chain.from_iterable(map(reader.read, arguments.files)), progress)
    except ValueError as error:
        print(f"check_chat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 1 if problems else 0


def check(records: Iterable[Record | BadRecord], progress: Progress) -> Counter[str]:
    """Print bad records and a summary; returns the kinds of fault with their numbers."""
    found: Counter[type] = Counter()
    problems: Counter[str] = Counter()
    same_words = 0
    for number, record in enumerate(records, start=1):
        progress.update(number)
        found[type(record)] += 1
        if isinstance(record, BadRecord):
            print(record)
            problems[record.problem] += 1
        elif isinstance(record, PreferenceRecord) and record.same_words:
            print(f"{record.file}:{record.line}: warning: both answers have the same words")
            same_words += 1
    print(f"{found[ChatRecord]:,} conversations, {found[PreferenceRecord]:,} pairs, {found[BadRecord]:,} bad records")
    if same_words:
        print(f"{same_words:,} pairs have the same words twice: a loss on text alone learns nothing from them")
    for problem, count in problems.most_common():
        print(f"{count:8,} {problem}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
