"""ResNet-56 on CIFAR-10 with 2.5 and 3.3 times fewer MACs: accuracy after the same ten epochs of training.

It starts from the models of ``channel_pruning``, which are made if missing. Every method gets the same training;
"distilled" adds the distance to the teacher's soft labels to the loss. The test split is read once, after the last
epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies import searching
from benchmarks.studies.channel_pruning import MODEL, prune_all, pruned_model
from benchmarks.studies.workers import Record, run_all
from pfray.utils.files import read_records

NAME = "channel_retraining"
FOLDER = ROOT / "runs" / NAME
DISTILLED = ", distilled"
# Of each factor what is retrained, and the points of accuracy that the best may lose.
TABLE = {
    2.5: (
        "uniform L1",
        "searched LASSO, distilled",
        "searched LASSO",
        "uniform LASSO, distilled",
        "uniform LASSO",
        "uniform DCP",
    ),
    3.3: ("uniform L1", "searched LASSO, distilled", "uniform LASSO, distilled"),
}
GOALS = {2.5: 0.2, 3.3: 0.5}
DISTILL = {"weight": 0.9, "temperature": 4.0}
TRAINING = {"lr": 0.02, "batch_size": 128, "warmup_epochs": 0}


def retrain(piece: Sequence[Any]) -> Record:
    """piece: (factor, method, seed, epochs, file and plan of the pruned model). Prints the loss after each epoch.

    Stopped in between, it goes on from the last whole epoch.
    """
    import torch

    from benchmarks.checkpointed import fit_on
    from pfray.measure.evaluation import evaluate
    from pfray.nn.modes import place
    from pfray.training.settings import Distill, Training

    factor, method, seed, epochs, pruned = piece
    distilled = method.endswith(DISTILLED)
    model, work = pruned_model(method.removesuffix(DISTILLED), pruned)
    device = torch.device("cpu")
    name = f"{factor}-{method.replace(', ', '-').replace(' ', '-')}-{epochs}-{seed}"
    checkpoint = FOLDER / f"{name}.checkpoint.pt"
    seconds = fit_on(
        place(model, device),
        work.task,
        Training(epochs=epochs, **TRAINING),
        checkpoint,
        f"{factor}x, {method}",
        seed=seed,
        teacher=place(work.teacher, device) if distilled else None,
        distill=Distill(**DISTILL) if distilled else None,
    )
    torch.save(model.state_dict(), FOLDER / f"{name}.pt")
    checkpoint.unlink()
    return {
        "validation": evaluate(model, work.task, work.task.validation).accuracy,
        "test": evaluate(model, work.task, work.task.test).accuracy,
        "seconds": seconds,
        "file": f"{name}.pt",
    }


def retrained_model(factor: float, method: str) -> Any:
    """Record of this retraining from an earlier call; None if there is none."""
    import torch

    path = FOLDER / "records.jsonl"
    for record in read_records(path)[0] if path.exists() else []:
        at, name, *_, pruned = record["piece"]
        if (at, name) == (factor, method):
            model, _ = pruned_model(method.removesuffix(DISTILLED), pruned)
            model.load_state_dict(torch.load(FOLDER / record["file"], weights_only=True))
            return model
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    wanted = [(factor, method) for factor, methods in TABLE.items() for method in methods]
    starts = {key: (key[0], key[1].removesuffix(DISTILLED), options.trials, options.seed) for key in wanted}
    pruned = prune_all(list(dict.fromkeys(starts.values())), options.processes)
    pieces = [[*key, options.seed, options.epochs, pruned[starts[key]]] for key in wanted]
    path = FOLDER / "records.jsonl"
    records = dict(zip(wanted, run_all(retrain, pieces, path, options.processes), strict=True))
    teacher = searching.teacher_accuracy(MODEL)
    print(f"\n{MODEL}, {options.epochs} epochs; teacher {100 * teacher:.2f} % on the test split")
    print("| MACs | method | right after pruning, % | validation, % | test, % | lost, points |")
    print("|---|---|---:|---:|---:|---:|")
    for key, record in records.items():
        start = pruned[starts[key]]
        numbers = (start["test"], record["validation"], record["test"], teacher - record["test"])
        cells = " | ".join(f"{100 * number:.2f}" for number in numbers)
        print(f"| {start['macs']:.2f}x fewer | {key[1]} | {cells} |")
    for factor, goal in GOALS.items():
        found = {method: record["test"] for (at, method), record in records.items() if at == factor}
        best = max(found.values())
        close(f"{NAME}_{factor}x", 100 * (teacher - best), "points lost by the best", f"<= {goal}")
        close(f"{NAME}_{factor}x_l1", 100 * (best - found["uniform L1"]), "points over uniform L1", "> 0")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Accuracy after channel pruning and retraining.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100, help="trials of each search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
