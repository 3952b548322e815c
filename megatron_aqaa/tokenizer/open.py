"""Opening a tokenizer directory of either kind."""

from __future__ import annotations

from pathlib import Path

from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from megatron_aqaa.tokenizer.released.tokenizer import CENTROIDS, GRAPH, ReleasedTokenizer, paraformer_folder
from megatron_aqaa.tokenizer.speech import SpeechTokenizer

VOCABULARY = "vocabulary.yaml"
_TRAINED_FILES = (VOCABULARY, "linguistic.pt", "linguistic_codebook.npy", "semantic.pt")


def is_released(directory: str | Path) -> bool:
    """True for a folder with the released files, or some of them."""
    return any((Path(directory) / name).exists() for name in (CENTROIDS, GRAPH))


def open_tokenizer(directory: str | Path) -> SpeechTokenizer:
    """The speech tokenizer in a directory: one that was trained here, or the released one, told by its files.

    Raises:
        ValueError: a file is missing or damaged, or the parts do not fit each other; names what.
    """
    return ReleasedTokenizer.load(directory) if is_released(directory) else DualCodebookTokenizer.load(directory)


def tokenizer_files(directory: Path) -> list[Path]:
    """Files of a tokenizer directory that audio tokens depend on.

    Raises:
        ValueError: one is missing; the message names it.
    """
    if is_released(directory):
        folder = paraformer_folder(directory)
        files = [directory / name for name in (VOCABULARY, CENTROIDS, GRAPH)]
        files += [folder / name for name in ("config.yaml", "model.pt", "am.mvn")]
        origin = "docs/tokenizer.md lists what the folder of a released tokenizer holds"
    else:
        files = [directory / name for name in _TRAINED_FILES]
        origin = "tools/train_tokenizer.py makes the parts of a tokenizer directory"
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; {origin}")
    return files
