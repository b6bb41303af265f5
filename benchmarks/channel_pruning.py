"""ResNet-56 on CIFAR-10 with 2.5 and 3.3 times fewer multiply-adds: what is left right after pruning, without training.

For uniform L1 magnitudes (the baseline), and for LASSO with least squares under a uniform, an allocated and a searched
plan, each finished as a run finishes it. The test split is read for these models only; the search scores one-shot
pruned candidates on validation images.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import job, needed
from benchmarks.workers import Record, run_all

NAME = "channel_pruning"
MODEL = "resnet56"
METHODS = ("uniform L1", "uniform LASSO", "allocated LASSO", "searched LASSO")
GOALS = {2.5: 0.84, 3.3: 0.77}
FASTER = 1.9
CANDIDATE_SECONDS = 0.3
BN_IMAGES = 2000
# The residual stream stays as wide as it is, as in the papers' tables.
SKIP = ("conv1",)


def prune(piece: Sequence[Any]) -> Record:
    """piece: (factor, method, trials, seed). Accuracy on the test split without any training."""
    import torch

    from learners.channel_pruned import ChannelPruned
    from learners.filter_ranked import FilterRanked
    from pfray.measure import evaluate
    from pfray.search.allocate import allocate_plan
    from pfray.train import reestimate_batch_norm

    factor, method, trials, seed = piece
    learner: Any = FilterRanked if method == "uniform L1" else ChannelPruned
    work = _job(learner)
    space = learner.space(work.teacher, work.task, work.settings)
    whole = space.costs({knob.name: knob.full for knob in space.knobs})["macs"]
    limits = {"macs": whole / factor}
    cache = learner.prepare(work.teacher, work.task, work.settings)
    plan = space.uniform(limits)
    if method in ("allocated LASSO", "searched LASSO"):
        curves = learner.error_curves(work.teacher, work.task, work.settings)
        allocated = allocate_plan(space, curves, limits)
        plan = allocated if method == "allocated LASSO" else _searched(work, space, limits, allocated, trials, seed)
    model = copy.deepcopy(work.teacher)
    started = time.perf_counter()
    learner.compress(model, plan, work.settings, cache, 0)
    candidate = time.perf_counter() - started
    started = time.perf_counter()
    if learner is ChannelPruned:
        model = learner.finish(work.teacher, work.teacher, plan, work.task, work.settings)
    else:
        reestimate_batch_norm(model, work.task, BN_IMAGES, "float32")
    seconds = time.perf_counter() - started
    path = ROOT / "runs" / NAME / f"{factor}-{METHODS.index(method)}-{trials}-{seed}.pt"
    torch.save(model.state_dict(), path)
    return {
        "plan": plan,
        "macs": whole / space.costs(plan)["macs"],
        "test": evaluate(model, work.task, work.task.test).accuracy,
        "candidate": candidate,
        "finish": seconds,
        "file": str(path),
    }


def _job(learner: Any) -> Any:
    from dataclasses import replace

    return replace(job(MODEL), settings=learner.settings_type(skip=SKIP))


def _searched(work: Any, space: Any, limits: Any, allocated: Any, trials: int, seed: int) -> dict[str, float]:
    """The best of the search's rivals on all validation images."""
    from dataclasses import replace

    import torch

    from learners.channel_pruned import ChannelPruned
    from pfray.scoring import Scorer
    from pfray.search.gp import GP

    first = (("allocate", allocated), ("uniform", space.uniform(limits)))
    searcher = GP(space, limits, GP.settings_type(), seed=seed, trials=trials, first_plans=first)
    scorer = Scorer(ChannelPruned, work, torch.device("cpu"))
    while isinstance(entry := searcher.suggest("trial"), dict):
        searcher.on_trial_complete("trial", scorer.score(entry["plan"]))
    every = replace(work, search=work.search.model_copy(update={"validation_images": None}))
    again = Scorer(ChannelPruned, every, torch.device("cpu"))
    rivals = searcher.rivals(work.search.rescore)
    return max(rivals, key=lambda record: again.score(record["plan"])["score"])["plan"]


def speed_up(record: Record) -> tuple[float, float]:
    """(milliseconds of the teacher's .tflite, of the pruned one's), timed in turns."""
    import torch

    from learners.channel_pruned import ChannelPruned
    from pfray import bench
    from pfray.export import tflite
    from pfray.measure import example_input

    work = _job(ChannelPruned)
    model = copy.deepcopy(work.teacher)
    ChannelPruned.restructure(model, record["plan"], work.task, work.settings)
    model.load_state_dict(torch.load(record["file"], weights_only=True))
    paths = []
    for name, each in (("teacher", work.teacher), ("pruned", model)):
        paths.append(Path(record["file"]).with_name(f"{name}.tflite"))
        tflite.export(each, example_input(work.task), paths[-1])
    teacher, pruned = bench.latency_ms(paths)
    return teacher, pruned


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    pieces = [[factor, method, options.trials, options.seed] for factor in GOALS for method in METHODS]
    path = ROOT / "runs" / NAME / "records.jsonl"
    records = dict(zip(map(tuple, pieces), run_all(prune, pieces, path, options.processes), strict=True))
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
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Accuracy right after channel pruning, and what it buys.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=100, help="trials of each search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="pieces at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
