"""ResNet-20 on CIFAR-10 with 2.5 times fewer MACs: what each item of the training after pruning is worth alone.

Every row is one run of ``experiments/resnet20_channel.yaml`` with overrides, which are printed as its command: the
uniform plan by L1 magnitudes, so that all rows train the same network. The base has soft labels and no other item. The
test split is read once, after the last epoch. A finished row is kept in ``records.jsonl`` of the folder ``--storage``,
and a row that was stopped goes on from its last epoch. One standard error is 0.33 points, so one seed is a first look.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from pfray.utils.files import append_line, read_records

NAME = "recipe"
EXPERIMENT = Path("experiments/resnet20_channel.yaml")
BASE = ("finetune.weight_decay=1e-4", "finetune.lr=0.02", "export.tflite=false")
# Each item's own overrides of the base.
ITEMS: dict[str, tuple[str, ...]] = {
    "base": (),
    "no soft labels": ("distill.weight=0",),
    "weight decay 5e-4": ("finetune.weight_decay=5e-4",),
    "linear schedule": ("finetune.schedule=linear",),
    "average ema": ("finetune.average=ema",),
    "average 25%": ("finetune.average=25%",),
    "features": ("distill.features=1",),
    "2 rungs": ("finetune.rungs=2",),
    "cached views": ("distill.cached_views=4",),
    "lr 0.01": ("finetune.lr=0.01",),
    "lr 0.05": ("finetune.lr=0.05",),
}


def overrides(item: str, epochs: int, seed: int, limit_train: int | None, more: Sequence[str]) -> list[str]:
    """Overrides of a row. more: those of all rows."""
    own = [*BASE, f"finetune.epochs={epochs}", f"seed={seed}"]
    own += [] if limit_train is None else [f"data.limit_train={limit_train}"]
    return [*own, *more, *ITEMS[item]]


def row(settings: Sequence[str], storage: Path) -> dict[str, Any]:
    """Record of the run with these overrides; read if it is finished. Raises CalledProcessError."""
    path = storage / "records.jsonl"
    for record in read_records(path)[0] if path.exists() else []:
        if record["overrides"] == list(settings):
            return record
    name = re.sub("[^A-Za-z0-9._]+", "-", "_".join(word for word in settings if word not in BASE)).rstrip("-")
    command = ["pfray.run", str(EXPERIMENT), *settings, f"name={name}", f"storage={storage}", "--resume", "--quiet"]
    print(f"python -m {shlex.join(command)}", flush=True)
    # In the root, because the experiment's paths are relative to it.
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    record = {"overrides": list(settings), **read(json.loads((storage / name / "summary.json").read_text()))}
    append_line(path, json.dumps(record))
    return record


def read(summary: dict[str, Any]) -> dict[str, float]:
    """Accuracies on the test split, and the seconds of the training, of a finished run."""
    seconds = sum(own for stage, own in summary["seconds"].items() if stage.startswith("train "))
    accuracies = {name: summary[name]["accuracy"] for name in ("teacher", "compressed")}
    return {**accuracies, "seconds": seconds}


def table(records: dict[str, dict[str, float]]) -> str:
    """The rows as a markdown table. The gain is over the row ``base``, if there is one."""
    heading = "| item | overrides | test, % | lost, points | gain, points | training, s |"
    lines = [heading, "|---|---|---:|---:|---:|---:|"]
    base = records.get("base", {}).get("compressed")
    for item, record in records.items():
        lost = 100 * (record["teacher"] - record["compressed"])
        gain = "" if base is None or item == "base" else f"{100 * (record['compressed'] - base):+.2f}"
        own = f"`{' '.join(ITEMS[item])}`" if ITEMS[item] else ""
        numbers = f"{100 * record['compressed']:.2f} | {lost:.2f} | {gain} | {record['seconds']:.0f}"
        lines.append(f"| {item} | {own} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed("resnet20"), "put the data there"):
        return SKIPPED
    storage = options.storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    records: dict[str, dict[str, Any]] = {}
    for item in options.items:
        settings = overrides(item, options.epochs, options.seed, options.limit_train, options.set)
        try:
            records[item] = row(settings, storage)
        except subprocess.CalledProcessError as error:
            print(f"error: {NAME}: {item}: exit code {error.returncode}", file=sys.stderr)
            return 1
        print(f"\n{table(records)}\n", flush=True)
    if "base" in records and len(records) > 1:
        best = max(record["compressed"] for item, record in records.items() if item != "base")
        close(NAME, 100 * (best - records["base"]["compressed"]), "points of the best item over the base", "> 0")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "What each item of the training after pruning is worth alone.")
    parser.add_argument("--items", nargs="+", choices=list(ITEMS), default=list(ITEMS), help="rows to make")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-train", type=int, help="training images; without it all 45,000")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / NAME, help="folder of the run folders")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="overrides of every row")
    return parser


if __name__ == "__main__":
    sys.exit(main())
