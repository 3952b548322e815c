"""Show records of a data set as text, with audio tokens as `<audio_17>` in groups of five and `*` on targets.

Of a preference data set it shows pairs: the prompt once, then both answers.

Examples:
    python tools/inspect_dataset.py runs/demo/data/sft/train/answer --tokenizer runs/demo/tokenizer
    python tools/inspect_dataset.py runs/demo/tokens/audio --tokenizer runs/demo/tokenizer --index 17 --count 1

Exit codes: 0 done, 2 wrong arguments or files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.data.describe import describe, describe_pair
from megatron_aqaa.data.finished import record_of
from megatron_aqaa.data.indexed import Document, Documents
from megatron_aqaa.tokenizer.huggingface_text import open_text
from megatron_aqaa.tokenizer.text import TextCodec
from megatron_aqaa.vocabulary import Vocabulary


def main() -> int:
    """Parse, open, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", help="path of the data set without .bin/.idx")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with text model and vocabulary.yaml")
    parser.add_argument("--index", type=int, default=0, help="first record, from 0")
    parser.add_argument("--count", type=int, default=3, help="number of records")
    arguments = parser.parse_args()
    try:
        show(arguments.prefix, arguments.tokenizer, arguments.index, arguments.count)
    except ValueError as error:
        print(f"inspect_dataset: {error}", file=sys.stderr)
        return 2
    return 0


def show(prefix: str, tokenizer: Path, first: int, count: int) -> None:
    """Print records `first … first + count − 1`, of a preference data set pairs."""
    text, vocabulary = open_text(tokenizer), Vocabulary.load(tokenizer / "vocabulary.yaml")
    documents = Documents(prefix)
    is_pairs = record_of(prefix).get("kind") == "preference"
    size, noun = (len(documents) // 2, "pair") if is_pairs else (len(documents), "record")
    if not 0 <= first < size:
        raise ValueError(f"{prefix}: has {noun}s 0 … {size - 1}, not {first}")
    for index in range(first, min(first + count, size)):
        if is_pairs:
            show_pair(f"pair {index} of {size}", documents[2 * index], documents[2 * index + 1], text, vocabulary)
            continue
        document = documents[index]
        targets = "" if documents.mask is None else f", {document.loss_mask.sum()} targets"
        print(f"record {index} of {size}: {len(document.token_ids)} tokens{targets}")
        print(describe(document, text, vocabulary))


def show_pair(title: str, chosen: Document, rejected: Document, text: TextCodec, vocabulary: Vocabulary) -> None:
    """Print the prompt once, then both answers."""
    targets = [half.loss_mask.sum() for half in (chosen, rejected)]
    prompt = len(chosen.token_ids) - targets[0]
    print(f"{title}: prompt {prompt} tokens, chosen {targets[0]} targets, rejected {targets[1]} targets")
    print(describe_pair(chosen, rejected, text, vocabulary))


if __name__ == "__main__":
    sys.exit(main())
