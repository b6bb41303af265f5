"""Torch-Pruning's own pruner beside pfray: a ResNet on CIFAR-10 with 2.5 times fewer MACs, after as many epochs.

Three rows a seed: Torch-Pruning with the training that it documents (``torch_pruning_resnet.py``), in pfray's loop and
so without soft labels; its network with pfray's training; and pfray. The last two are runs of ``--experiment``, which
differ in the learner and the search only, so they follow the experiment and pfray's defaults: a row whose settings have
changed is made anew. The test split is read once for a network, and decides nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import DATA, ROOT, SKIPPED, close, is_missing
from benchmarks.studies.workers import Record, run_all

NAME = "against_torch_pruning"
FACTOR = 2.5
GOAL = "> 0"
EXPERIMENT = ROOT / "experiments" / "resnet56_channel.yaml"
OWN, WITH_OURS, OURS = ROWS = ("Torch-Pruning, its own training", "Torch-Pruning, pfray's training", "pfray")
PRUNED = "pruned by Torch-Pruning"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    weights = options.weights / f"{options.network}.pt"
    if is_missing(NAME, [options.data, weights, options.experiment], "put it there, or name another place"):
        return SKIPPED
    options.folder.mkdir(parents=True, exist_ok=True)
    shared = {
        "network": options.network, "data": str(options.data.resolve()), "weights": str(weights.resolve()),
        "folder": str(options.folder.resolve()),
    }  # fmt: skip
    pieces: list[dict[str, Any]] = [{"row": PRUNED, **shared}]
    training = {"epochs": options.epochs, "limit_train": options.limit_train}
    for seed in options.seeds:
        own = {"seed": seed, **training, **shared}
        runs = [run_piece(row, own, options.experiment.resolve(), options.trials) for row in (WITH_OURS, OURS)]
        pieces += [{"row": OWN, **own}, *runs]
    try:
        whole, *rows = run_all(work, pieces, options.folder / "records.jsonl", 1)
    except subprocess.CalledProcessError as error:  # a run, which has said why
        print(f"error: {NAME}: {error}", file=sys.stderr)
        return 1
    print(table(whole, rows))
    for value, goal in judged(rows):
        close(NAME, *value, goal)
    return 0


def run_piece(row: str, own: Mapping[str, Any], experiment: Path, trials: int | None = None) -> dict[str, Any]:
    """The piece of a row that is a run. Its settings count with all defaults, whose change makes another run."""
    from pfray.config import schema
    from pfray.utils.cache import content_key
    from pfray.workflow.components import with_defaults
    from pfray.workflow.experiment_file import load_experiment

    settings = overrides(row, own, trials)
    key = content_key(schema.dump(with_defaults(load_experiment(experiment, settings))))[:8]
    return {"row": row, **own, "experiment": str(experiment), "settings": [*settings, f"name={NAME}-{key}"]}


def overrides(row: str, own: Mapping[str, Any], trials: int | None = None) -> list[str]:
    """What a run takes in place of the experiment's settings, as ``key=value``; trials: None for the experiment's."""
    changed: dict[str, Any] = {
        "model": {"name": own["network"], "weights": own["weights"]},
        "data": {"name": "cifar10", "path": own["data"], "limit_train": own["limit_train"]},
        "target": {"macs": f"{1 / FACTOR:g}x"},
        "finetune.epochs": own["epochs"],
        "export.tflite": False,
        "seed": own["seed"],
        "storage": own["folder"],
    }
    if row == WITH_OURS:
        file = str(pruned_file(own))
        changed["learner"] = {"factory": "benchmarks.pruned_elsewhere:PrunedElsewhere", "file": file}
        changed["search"] = {"name": "uniform", "baselines": []}
    else:
        changed["search.baselines"] = []
        if trials is not None:
            changed["search.trials"] = trials
    return [f"{key}={json.dumps(value)}" for key, value in changed.items()]


def pruned_file(piece: Mapping[str, Any]) -> Path:
    """State dict of Torch-Pruning's network before any training."""
    return Path(piece["folder"]) / f"{piece['network']}.pt"


def work(piece: dict[str, Any]) -> Record:
    """A row: MACs and parameters as shares of the whole network's, accuracies on the test split, seconds."""
    import torch

    # All processors, as a run's training has.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    return {PRUNED: prune, OWN: train_own, WITH_OURS: run, OURS: run}[piece["row"]](piece)


def prune(piece: Mapping[str, Any]) -> Record:
    """Torch-Pruning's network, kept in a file, and the accuracy of the whole one."""
    import torch

    from benchmarks.torch_pruning_resnet import prune as prune_in_place
    from pfray.task import example_input

    task, model = load(piece)
    whole = measured(model, task)
    started = time.time()
    prune_in_place(model, example_input(task), FACTOR)
    seconds = time.time() - started
    torch.save(model.state_dict(), pruned_file(piece))
    found = measured(model, task)
    shares = {unit: found[unit] / whole[unit] for unit in ("macs", "params")}
    return {**shares, "before": found["accuracy"], "teacher": whole["accuracy"], "seconds": seconds}


def train_own(piece: Mapping[str, Any]) -> Record:
    """Torch-Pruning's training of its network. Stopped in between, it goes on from the last whole epoch."""
    import torch

    from benchmarks.checkpointed import fit_on
    from benchmarks.pruned_elsewhere import take_weights
    from benchmarks.torch_pruning_resnet import own_decay, own_training
    from pfray.nn.modes import place

    task, model = load(piece)
    take_weights(model, torch.load(pruned_file(piece), weights_only=True))
    training = own_training(piece["epochs"])
    steps = training.epochs * task.train.steps(training.batch_size)
    limited = "" if piece["limit_train"] is None else f"-{piece['limit_train']}"
    checkpoint = pruned_file(piece).with_suffix(f".{training.epochs}{limited}-{piece['seed']}.checkpoint")
    with own_decay(steps) as hook:
        seconds = fit_on(
            place(model, "cpu"), task, training, checkpoint, f"{piece['row']}, seed {piece['seed']}",
            seed=piece["seed"], hook=hook,
        )  # fmt: skip
    after = measured(model, task)["accuracy"]
    checkpoint.unlink(missing_ok=True)
    return {"after": after, "seconds": seconds}


def run(piece: Mapping[str, Any]) -> Record:
    """A run of the experiment; one that was stopped goes on. Raises CalledProcessError if it fails."""
    settings = piece["settings"]
    # On a Ray of its own, whose processors no one else takes.
    command = [sys.executable, "-m", "pfray.run", piece["experiment"], *settings, "--resume", "--address", "local"]
    # In the root, because the experiment's own paths are relative to it, and so that Ray's workers find the learner.
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    folder = Path(piece["folder"]) / settings[-1].removeprefix("name=")
    summary = json.loads((folder / "summary.json").read_text())
    costs = summary["costs"]
    record = {unit: costs["compressed"][unit] / costs["teacher"][unit] for unit in ("macs", "params")}
    record |= {"after": summary["compressed"]["accuracy"], "seconds": sum(summary["seconds"].values())}
    if piece["row"] == OURS:
        record["before"] = untrained_accuracy(piece, summary["plan"])
    return record


def untrained_accuracy(piece: Mapping[str, Any], plan: Mapping[str, float]) -> float:
    """Of the run's plan, as its training starts from it."""
    from pfray.workflow.components import resolve
    from pfray.workflow.experiment_file import load_experiment

    task, model = load(piece)
    found = resolve(load_experiment(Path(piece["experiment"]), piece["settings"]))
    algorithm = found.learner(model, task, found.learner_settings)
    own = {name: plan[name] for name in algorithm.space().names}
    made = algorithm.finish(own) if algorithm.has_finish else algorithm.compress(own)
    return measured(made.model, task)["accuracy"]


def load(piece: Mapping[str, Any]) -> tuple[Any, Any]:
    """(the task, the whole network with its weights)."""
    from pfray.data.cifar10 import build
    from pfray.models import resnet
    from pfray.nn.weights import load_weights

    task = build(path=piece["data"], limit_train=piece.get("limit_train"))
    model = getattr(resnet, piece["network"])(num_outputs=task.num_outputs)
    load_weights(model, Path(piece["weights"]))
    return task, model


def measured(model: Any, task: Any) -> dict[str, float]:
    """macs, params, and the accuracy on the test split."""
    from pfray.measure.cost import count_params, total_macs
    from pfray.measure.evaluation import evaluate
    from pfray.task import example_input

    accuracy = evaluate(model, task, task.test).accuracy
    return {"macs": total_macs(model, example_input(task)), "params": count_params(model)[0], "accuracy": accuracy}


def table(whole: Record, rows: Sequence[Record]) -> str:
    """The rows as a markdown table. whole: the record of the pruning, whose time counts in the rows that train it."""
    head = ["", "seed", "MACs", "parameters", "before training, %", "after, %", "lost, points", "minutes"]
    lines = [head, ["---", *["---:"] * 7]]
    for row in rows:
        pruned = {} if row["piece"]["row"] == OURS else whole
        found = {**pruned, **row, "seconds": row["seconds"] + pruned.get("seconds", 0.0)}
        lines.append([
            row["piece"]["row"], str(row["piece"]["seed"]), f"{found['macs']:.3f}x", f"{found['params']:.3f}x",
            f"{100 * found['before']:.2f}", f"{100 * found['after']:.2f}",
            f"{100 * (whole['teacher'] - found['after']):.2f}", f"{found['seconds'] / 60:.1f}",
        ])  # fmt: skip
    epochs = rows[0]["piece"]["epochs"]
    accuracy = f"whole network {100 * whole['teacher']:.2f} % on the test split"
    title = f"{whole['piece']['network']}, {epochs} epochs; {accuracy}"
    return "\n".join(["", title, "", *(f"| {' | '.join(line)} |" for line in lines)])


def judged(rows: Sequence[Record]) -> list[tuple[tuple[float, str], str]]:
    """((points ahead, unit), goal) of pfray beside either row of Torch-Pruning, means over the seeds."""
    mean = {row: fmean(each["after"] for each in rows if each["piece"]["row"] == row) for row in ROWS}
    return [((100 * (mean[OURS] - mean[row]), f"points ahead of {row}"), GOAL) for row in (OWN, WITH_OURS)]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, __doc__.partition("\n")[0])
    parser.add_argument("--network", default="resnet56", choices=("resnet20", "resnet32", "resnet44", "resnet56"))
    parser.add_argument("--epochs", type=int, default=20, help="of every training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit-train", type=int, help="training images (all of them)")
    parser.add_argument("--trials", type=int, help="trials of pfray's search (the experiment's)")
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT, help="what pfray's runs are")
    parser.add_argument("--data", type=Path, default=DATA / "cifar10-jpeg", help="folder of CIFAR-10")
    parser.add_argument("--weights", type=Path, default=DATA / "weights", help="folder of the networks' weights")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / NAME, help="records and runs, continued from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
