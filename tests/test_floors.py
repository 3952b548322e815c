"""The house as DESIGN draws it: imports only go down, one room names `torch.cuda`, files and functions stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    {"vocabulary", "config", "network_file", "whole_file", "platform"},
    {"ops", "audio"},
    {"tokenizer", "model", "vocoder"},
    {"data", "checkpoint"},
    {"training", "planner", "slurm", "inference", "evaluation"},
)
SIDEWAYS = {("evaluation", "inference"), ("network_file", "config")}  # the pairs on a floor that may meet
PACKAGE = sorted((ROOT / "megatron_aqaa").rglob("*.py"))
COMMANDS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "examples").rglob("*.py")])
MAX_FILE_LINES = 400
MAX_COMMAND_LINES = 120
MAX_FUNCTION_LINES = 60  # without its docstring; most have about ten


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imported_rooms(path):
    """Rooms of the package that a file imports, wherever in the file the import stands."""
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "megatron_aqaa" and len(parts) > 1:
                yield parts[1], node.lineno


def may_import(room, other):
    return other == room or (room, other) in SIDEWAYS or floor_of(other) < floor_of(room)


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_imports_only_go_down(path):
    parts = path.relative_to(ROOT / "megatron_aqaa").parts
    room = parts[0].removesuffix(".py")
    if room == "__init__":
        assert not list(imported_rooms(path)), "the package itself imports no room, so that each can be used alone"
        return
    known = set().union(*FLOORS)
    for other, line in imported_rooms(path):
        if other.startswith("_"):  # __version__
            continue
        assert other in known, f"{relative(path)}:{line} imports {other}, which DESIGN puts on no floor"
        assert may_import(room, other), (
            f"{relative(path)}:{line}: {room} (floor {floor_of(room)}) imports {other} (floor {floor_of(other)})"
        )


def test_every_room_is_on_a_floor():
    rooms = {path.relative_to(ROOT / "megatron_aqaa").parts[0].removesuffix(".py") for path in PACKAGE} - {"__init__"}
    assert rooms <= set().union(*FLOORS)


@pytest.mark.parametrize("path", [p for p in [*PACKAGE, *COMMANDS] if "platform" not in p.parts], ids=relative)
def test_only_the_platform_names_torch_cuda(path):
    for node in ast.walk(ast.parse(path.read_text())):
        attribute = isinstance(node, ast.Attribute) and node.attr == "cuda" and isinstance(node.value, ast.Name)
        imported = (isinstance(node, ast.Import) and any(a.name.startswith("torch.cuda") for a in node.names)) or (
            isinstance(node, ast.ImportFrom)
            and ((node.module or "").startswith("torch.cuda") or (node.module == "torch" and "cuda" in names(node)))
        )
        named = imported or (attribute and node.value.id == "torch")
        assert not named, f"{relative(path)}:{node.lineno} names torch.cuda: ask megatron_aqaa.platform instead"


def names(node):
    return {alias.name for alias in node.names}


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES, f"{relative(path)} holds more than one idea: split it"


@pytest.mark.parametrize("path", COMMANDS, ids=relative)
def test_commands_parse_and_call(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_COMMAND_LINES, f"{relative(path)}: what it does belongs in the package"


def code_lines(function):
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno - body[0].lineno + 1) if body else 0


@pytest.mark.parametrize("path", [*PACKAGE, *COMMANDS], ids=relative)
def test_functions_stay_small(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{relative(path)}:{node.lineno} {node.name}"
            assert code_lines(node) <= MAX_FUNCTION_LINES, f"{where} has {code_lines(node)} lines: name its parts"
