"""Every file, command and option that the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("megatron_aqaa", "csrc", "tools", "examples", "tests", "benchmarks", "docs", ".ci")
MADE_LATER = ("benchmarks/results/",)  # by `make bench` and `make gpu`


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(params=DOCUMENTS, ids=relative)
def document(request):
    return request.param


def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{relative(document)} links to {target}"


def test_named_paths_exist(document):
    pattern = rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*)`"
    for path in re.findall(pattern, document.read_text()):
        assert (ROOT / path).exists() or path.startswith(MADE_LATER), f"{relative(document)} names {path}"


def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^|\$ )make ([a-z-]+)", document.read_text(), re.MULTILINE))
    assert named <= targets, f"{relative(document)} names make targets that do not exist"


def test_commands_exist_with_their_options(document):
    for script, rest in re.findall(r"python3? ((?:tools|benchmarks)/\w+\.py)([^\n`|]*)", document.read_text()):
        assert (ROOT / script).exists(), f"{relative(document)} runs {script}"
        source = (ROOT / script).read_text()
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest):
            assert f'"{option}"' in source, f"{relative(document)} runs {script} with {option}, which it does not have"


def test_the_documents_are_found():
    assert (ROOT / "README.md") in DOCUMENTS
