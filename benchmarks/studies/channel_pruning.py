"""ResNet-56 on CIFAR-10 with 2.5 and 3.3 times fewer MACs: accuracy directly after pruning, without training.

Compares the uniform plan by L1 magnitudes (the baseline), by discrimination-aware pruning and by LASSO with least
squares, and an allocated and a searched plan by LASSO, each finished as in a run. The test split is read for these
models only; the search scores one-shot pruned candidates on validation images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies import searching
from benchmarks.studies.workers import Record, run_all

NAME = "channel_pruning"
MODEL = "resnet56"
FOLDER = ROOT / "runs" / NAME
# Of each method the learner and the plan.
METHODS = {
    "uniform L1": ("filter_ranked", "uniform"),
    "uniform DCP": ("dis_chn_pruned", "uniform"),
    "uniform LASSO": ("channel_pruned", "uniform"),
    "allocated LASSO": ("channel_pruned", "allocate"),
    "searched LASSO": ("channel_pruned", "search"),
}
GOALS = {2.5: 0.84, 3.3: 0.77}
FASTER = 1.9
CANDIDATE_SECONDS = 0.3
# The residual stream stays as wide as it is, as in the papers' tables.
SKIP = ("conv1",)


def prune(piece: Sequence[Any]) -> Record:
    """piece: (factor, method, trials, seed). Accuracy on the test split without any training."""
    import torch

    from pfray.measure.evaluation import evaluate

    factor, method, trials, seed = piece
    work = job_with(method)
    algorithm = work.bind()
    space = algorithm.space()
    whole = space.costs({knob.name: knob.full for knob in space.knobs})["macs"]
    plan = _plan(METHODS[method][1], work, space, {"macs": whole / factor}, trials, seed)
    algorithm.compress(plan)  # what is computed once for all plans
    started = time.perf_counter()
    algorithm.compress(plan)
    candidate = time.perf_counter() - started
    started = time.perf_counter()
    model = work.bind().finish(plan).model
    seconds = time.perf_counter() - started
    file = f"{factor}-{method.replace(' ', '-')}-{trials}-{seed}.pt"
    torch.save(model.state_dict(), FOLDER / file)
    return {
        "plan": plan,
        "macs": whole / space.costs(plan)["macs"],
        "test": evaluate(model, work.task, work.task.test).accuracy,
        "candidate": candidate,
        "finish": seconds,
        "file": file,
    }


def job_with(method: str) -> searching.Job:
    return searching.job_with(MODEL, METHODS[method][0], skip=SKIP)


def pruned_model(method: str, record: Record) -> Any:
    """The model of a finished piece, and its job."""
    import torch

    work = job_with(method)
    algorithm = work.bind()
    model = algorithm.rebuild(algorithm.structure(record["plan"]))
    model.load_state_dict(torch.load(FOLDER / record["file"], weights_only=True))
    return model, work


def _plan(name: str, work: Any, space: Any, limits: Any, trials: int, seed: int) -> dict[str, float]:
    from pfray.search.allocate import allocate_plan

    uniform = space.uniform(limits)
    if name == "uniform":
        return uniform
    allocated = allocate_plan(space, work.bind().error_curves(), limits)
    if name == "allocate":
        return allocated
    first = (("allocate", allocated), ("uniform", uniform))
    return searching.searched_plan("gp", work, space, limits, first, trials, seed)


def speed_up(record: Record) -> tuple[float, float]:
    """(milliseconds of the teacher's .tflite, of the pruned one's), timed in turns."""
    from pfray import bench
    from pfray.export.tflite import convert
    from pfray.task import example_input

    model, work = pruned_model("searched LASSO", record)
    paths = []
    for name, each in (("teacher", work.teacher), ("pruned", model)):
        paths.append(FOLDER / f"{name}.tflite")
        convert.export(each, example_input(work.task), paths[-1])
    teacher, pruned = bench.latency_ms(paths)
    return teacher, pruned


def prune_all(pieces: Sequence[tuple[Any, ...]], processes: int) -> dict[tuple[Any, ...], Record]:
    """The record of each piece; finished ones are read."""
    path = FOLDER / "records.jsonl"
    return dict(zip(pieces, run_all(prune, [list(piece) for piece in pieces], path, processes), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    pieces = [(factor, method, options.trials, options.seed) for factor in GOALS for method in METHODS]
    records = prune_all(pieces, options.processes)
    print(f"\n{MODEL}, no training after pruning; test split\n| MACs | method | test, % | compress, s | finish, s |")
    print("|---|---|---:|---:|---:|")
    for (_, method, _, _), record in records.items():
        times = f"{record['candidate']:.2f} | {record['finish']:.1f}"
        print(f"| {record['macs']:.2f}x fewer | {method} | {100 * record['test']:.2f} | {times} |")
    for factor, goal in GOALS.items():
        best = max(record["test"] for key, record in records.items() if key[0] == factor)
        close(f"{NAME}_{factor}x", best, "accuracy right after pruning", f">= {goal}")
    slowest = max(record["candidate"] for key, record in records.items() if "LASSO" in key[1])
    close(f"{NAME}_candidate", slowest, "s to compress", f"<= {CANDIDATE_SECONDS}")
    teacher, pruned = speed_up(records[2.5, "searched LASSO", options.trials, options.seed])
    print(f"teacher.tflite {teacher:.3f} ms, pruned {pruned:.3f} ms")
    close(f"{NAME}_tflite", teacher / pruned, "times faster", f">= {FASTER}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Accuracy right after channel pruning, and what it buys.")
    parser.add_argument("--trials", type=int, default=100, help="trials of each search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="pieces at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
