"""The framework knows no particular learner or environment, and lower layers know no higher ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each may import from itself and those before it only.
LAYERS = [
    {"errors", "command", "bench", "parameter_noise", "widths"},
    {"access", "files", "paths", "space", "split_checks", "task", "randomness", "quiet", "section", "environment",
     "patience", "strict_yaml"},
    {"buckets", "quantize", "codebook", "lattice"},
    {"cache", "components", "measure", "overlay", "ranges", "progress", "bucket", "lease", "plan_file", "search_state",
     "trial_file", "kept_search"},
    {"tracing", "coupling", "removal", "graph"},
    {"layers", "layer_shapes", "rows", "model_key", "moments", "lasso", "masked_regression", "channels", "ranking",
     "refit"},
    {"removable", "find_removable", "bridging", "students", "task_checks", "model_checks", "weights"},
    {"folding", "activations", "straight_through", "sensitivity", "bits", "shared_range", "int8_operators",
     "int8_rewrites", "int8"},
    {"config"},
    {"cluster"},
    {"identity"},
    {"data", "models", "export", "objective", "train", "events", "folder", "mirror", "agent", "search", "warm_start"},
    {"ecq", "shared_norm", "communication", "delays"},
    {"job", "extra_losses", "greedy_choice", "metrics"},
    {"scoring", "learner", "report", "report_input", "figures", "remarks", "report_style"},
    {"goal", "compressed"},
    {"checkpoints", "worker", "distributed", "trials", "latency", "nodes"},
    {"prepare"},
    {"finalize", "retraining"},
    {"teacher"},
    {"jobs"},
    {"run", "inspect", "submit"},
]


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
    allowed = set().union(*LAYERS[: level + 1])
    assert {p for name in found if (p := part(name))} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.py")), ids=lambda p: p.name)
def test_environments_know_the_space_only(path):
    assert {p for name in imports(path) if (p := part(name))} <= {"space", "errors"}


def test_the_device_side_imports_numpy_and_an_interpreter_only():
    paths = [ROOT / "pfray" / name for name in ("bench.py", "command.py", "errors.py", "__init__.py")]
    found = {name.split(".")[0] for path in paths for name in imports(path)}
    assert not found & {"torch", "ray", "pydantic", "yaml", "rich", "safetensors"}
