"""The README's picture and tree show the project as it is."""

from __future__ import annotations

import re

from tests.readme import README

ROOT = README.parent


def test_the_picture_shows_the_stages_of_the_report() -> None:
    """Same drawings, other arrangement: six in a row would be too small to read beside text."""
    pictures = ("docs/architecture.svg", "megatron_aqaa/evaluation/architecture.svg")
    stages = [re.findall(r"<symbol .*?</symbol>", (ROOT / path).read_text(), re.DOTALL) for path in pictures]
    assert stages[0] == stages[1]
    assert len(stages[0]) == 6


def tree() -> set[str]:
    """Paths in the README's tree, which indents by two spaces and says a phrase after two."""
    block = re.search(r"```text\n(megatron_aqaa/.*?)```", README.read_text(), re.DOTALL)
    assert block, "README.md has no tree"
    paths, folder = set(), ""
    for line in block[1].splitlines():
        indent, name, phrase = re.fullmatch(r"( *)(\S+)(?:  +(.*))?", line).groups()  # type: ignore[union-attr]
        assert phrase, f"{name}: what is it?"
        folder = folder if indent else name
        paths.add(folder + name if indent else name)
    return paths


def test_every_path_in_the_tree_exists() -> None:
    for path in tree():
        assert (ROOT / path).is_dir() == path.endswith("/") and (ROOT / path).exists(), path


def test_the_tree_has_every_room_and_folder() -> None:
    rooms = {f"megatron_aqaa/{path.parent.name}/" for path in (ROOT / "megatron_aqaa").glob("*/__init__.py")}
    modules = {f"megatron_aqaa/{path.name}" for path in (ROOT / "megatron_aqaa").glob("[a-z]*.py")}
    folders = {"csrc/", "tools/", "examples/", "tests/", "benchmarks/", "docs/", ".ci/"}
    assert rooms | modules | folders <= tree()
