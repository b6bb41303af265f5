"""The framework knows no particular learner or environment, and lower layers know no higher ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folders and files of pfray/. Each may import from itself, from its own row and from those above it.
LAYERS = [
    {"errors"},
    {"utils"},
    {"space", "task", "units", "data", "models", "nn"},
    {"measure"},
    {"bench"},
    {"objective"},
    {"training"},
    {"quantization"},
    {"pruning"},
    {"export"},
    {"config"},
    {"search"},
    {"learner"},
    {"storage", "cluster", "reporting"},
    {"workflow"},
    {"run", "inspect", "submit", "__main__", "api"},
]
# Each may import from itself only, and from higher rows.
APART = {"pruning", "quantization"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str | None:
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "pfray" and len(pieces) > 1 else None


@pytest.mark.parametrize("path", sorted((ROOT / "pfray").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_framework_imports_downwards_only(path):
    own = path.relative_to(ROOT / "pfray").parts[0].removesuffix(".py")
    found = imports(path)
    assert not {name for name in found if name.split(".")[0] in ("envs", "learners")}
    if own == "__init__":
        return
    level = next(i for i, layer in enumerate(LAYERS) if own in layer)
    allowed = set().union(*LAYERS[: level + 1]) - (APART - {own} if own in APART else set())
    assert {p for name in found if (p := part(name))} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.py")), ids=lambda p: p.name)
def test_environments_know_the_space_and_its_units_only(path):
    assert {p for name in imports(path) if (p := part(name))} <= {"space", "units", "errors"}


def test_the_device_side_imports_numpy_and_an_interpreter_only():
    names = (
        "bench.py", "measure/interpreter.py", "utils/command.py", "utils/file_values.py", "utils/quiet.py", "errors.py",
        "__main__.py",
    )  # fmt: skip
    paths = [ROOT / "pfray" / name for name in names]
    found = {name.split(".")[0] for path in paths for name in imports(path)}
    assert not found & {"torch", "ray", "pydantic", "yaml", "rich", "safetensors"}


def test_every_folder_of_the_package_has_a_layer():
    names = {path.stem for path in (ROOT / "pfray").glob("*.py")} - {"__init__", "__main__"}
    names |= {path.parent.name for path in (ROOT / "pfray").glob("*/__init__.py")}
    assert names <= set().union(*LAYERS)
