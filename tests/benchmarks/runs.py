"""What benchmarks leave behind, for their tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_run(folder: Path, seed: int, uniform: float, compressed: float, best: int) -> Path:
    """The part of a run folder that the table is made from."""
    (folder / "search").mkdir(parents=True)
    accuracies = {"teacher": 0.9, "uniform": uniform, "compressed": compressed}
    summary = {"seed": seed, "trials": {"finished": 3, "failed": 0, "best": best}}
    summary |= {name: {"accuracy": accuracy, "loss": 1.0} for name, accuracy in accuracies.items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    # In the order in which they finished, which is not that of their numbers.
    lines = [{"trial": number, "origin": origin} for number, origin in ((1, "heuristic"), (0, "uniform"), (2, "tpe"))]
    (folder / "search" / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def trial(finished_at: float, seconds: float | None) -> dict[str, Any]:
    return {"finished_at": finished_at if seconds is not None else None, "seconds": seconds}


def closing(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])
