"""Show records of a data set as text, with audio tokens as `<audio_17>` in groups of five and `*` on targets.

Of a preference data set it shows pairs: the prompt once, then both answers. With a vocoder it speaks every spoken
segment of the records into wav files.

Examples:
    python tools/inspect_dataset.py runs/demo/data/sft/train/answer --tokenizer runs/demo/tokenizer
    python tools/inspect_dataset.py runs/demo/tokens/audio --tokenizer runs/demo/tokenizer --index 17 --count 1
    python tools/inspect_dataset.py runs/demo/tokens/audio --tokenizer runs/demo/tokenizer --vocoder runs/demo -o heard

Exit codes: 0 done, 2 wrong arguments or files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.data.describe import describe, describe_pair
from megatron_aqaa.data.finished import record_of
from megatron_aqaa.data.indexed import Document, Documents
from megatron_aqaa.data.spoken_record import open_vocoder, save_speech
from megatron_aqaa.tokenizer.huggingface_text import open_text
from megatron_aqaa.tokenizer.text import TextCodec
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.group_repair import GroupFault
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder


def main() -> int:
    """Parse, open, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", help="path of the data set without .bin/.idx")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with text model and vocabulary.yaml")
    parser.add_argument("--index", type=int, default=0, help="first record, from 0")
    parser.add_argument("--count", type=int, default=3, help="number of records")
    parser.add_argument("--vocoder", type=Path, help="run or vocoder folder: speak the records")
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="folder for the wav files")
    try:
        show(parser.parse_args())
    except ValueError as error:
        print(f"inspect_dataset: {error}", file=sys.stderr)
        return 2
    return 0


def show(arguments: argparse.Namespace) -> None:
    """Print records `index … index + count − 1`, of a preference data set pairs, and speak them if that is asked."""
    tokenizer, first = arguments.tokenizer, arguments.index
    text, vocabulary = open_text(tokenizer), Vocabulary.load(tokenizer / "vocabulary.yaml")
    documents = Documents(arguments.prefix)
    is_pairs = record_of(arguments.prefix).get("kind") == "preference"
    size, noun = (len(documents) // 2, "pair") if is_pairs else (len(documents), "record")
    if not 0 <= first < size:
        raise ValueError(f"{arguments.prefix}: has {noun}s 0 … {size - 1}, not {first}")
    vocoder = open_vocoder(arguments.vocoder, vocabulary) if arguments.vocoder else None
    for index in range(first, min(first + arguments.count, size)):
        title, stem = f"{noun} {index} of {size}", arguments.output / f"{noun}_{index}"
        if is_pairs:
            halves = {name: documents[2 * index + half] for half, name in enumerate(("chosen", "rejected"))}
            show_pair(title, halves["chosen"], halves["rejected"], text, vocabulary)
            spoken = {stem.with_name(f"{stem.name}_{name}"): document for name, document in halves.items()}
        else:
            show_record(title, documents[index], documents.mask is not None, text, vocabulary)
            spoken = {stem: documents[index]}
        for path, document in spoken.items():
            speak(document, path, vocoder)


def show_record(title: str, document: Document, has_mask: bool, text: TextCodec, vocabulary: Vocabulary) -> None:
    """Print one document."""
    targets = f", {document.loss_mask.sum()} targets" if has_mask else ""
    print(f"{title}: {len(document.token_ids)} tokens{targets}")
    print(describe(document, text, vocabulary))


def show_pair(title: str, chosen: Document, rejected: Document, text: TextCodec, vocabulary: Vocabulary) -> None:
    """Print the prompt once, then both answers."""
    targets = [half.loss_mask.sum() for half in (chosen, rejected)]
    prompt = len(chosen.token_ids) - targets[0]
    print(f"{title}: prompt {prompt} tokens, chosen {targets[0]} targets, rejected {targets[1]} targets")
    print(describe_pair(chosen, rejected, text, vocabulary))


def speak(document: Document, stem: Path, vocoder: TokenVocoder | None) -> None:
    """Write the speech of a document and name the files, if there is a vocoder."""
    if vocoder is None:
        return
    faults: list[GroupFault] = []
    written = list(save_speech(document.token_ids, stem, vocoder, faults.append))
    for path, duration_s in written:
        print(f"  {path}: {duration_s:.2f} s")
    if not written:
        print("  no speech in it")
    for fault in faults:
        print(f"inspect_dataset: {stem.name}: {fault}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
