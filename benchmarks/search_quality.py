"""What each searcher finds with the same number of trials: a CIFAR ResNet, 90 % sparsity, no fine-tuning.

Every searcher gets pfray's defaults: the same first plans, the same score, and in the end the best trials measured
again on all validation images before one is chosen. The test split is read for the chosen plan only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import searching
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import LIMITS, first_plans, job, needed, space
from benchmarks.workers import Record, run_all

NAME = "search_quality"
GOAL = "> 0"
SEARCHERS = ("uniform", "allocate", "random", "tpe", "gp", "ddpg")
LEARNED = ("tpe", "gp", "ddpg")
# A plan has passed another one when it has so much more accuracy on the images of the search.
MARGIN = 0.02


def search(piece: Sequence[Any]) -> Record:
    """piece: (model, searcher, seed, trials, settings). A whole search, and its choice on images it did not see."""
    from learners.weight_sparse import WeightSparse
    from pfray.components import find_class
    from pfray.measure import evaluate
    from pfray.search.base import PlanSearcher

    model, name, seed, trials, _ = piece
    work = job(model)
    found: type[PlanSearcher] = find_class("search", name, PlanSearcher)
    first = first_plans(work, found)
    searcher = found(space(work), LIMITS, found.settings_type(), seed=seed, trials=trials, first_plans=first)
    started = time.perf_counter()
    scorer, scoring = searching.search(WeightSparse, work, searcher)
    seconds = time.perf_counter() - started
    chosen, again = searching.choose(WeightSparse, work, searcher)
    scorer.score(chosen["plan"])  # leaves the compressed model there
    test = evaluate(scorer.model, work.task, work.task.test, precision=scorer.precision)
    return {
        "seconds": seconds,
        "scoring": scoring,
        "trials": len(searcher.records),
        "accuracies": [(record["measurement"] or {"accuracy": 0.0})["accuracy"] for record in searcher.records],
        "scores": [record["score"] for record in searcher.records],
        "origins": [record["origin"] for record in searcher.records],
        "chosen": chosen["trial"],
        "origin": chosen["origin"],
        "plan": chosen["plan"],
        "seen": chosen["measurement"]["accuracy"],
        "validation": again["measurement"]["accuracy"],
        "test": test.accuracy,
    }


def settings_of(name: str) -> str:
    """All that a search depends on but for the seed; a search with others is done again."""
    from pfray.components import find_class
    from pfray.config import Search
    from pfray.search.base import PlanSearcher

    found: type[PlanSearcher] = find_class("search", name, PlanSearcher)
    return f"{found.settings_type()} {Search().model_dump_json()}"


def trials_to_pass(record: Mapping[str, Any], accuracy: float) -> int | None:
    """How many trials it took to find a plan of ``MARGIN`` more than ``accuracy``, None where none was."""
    return next((i + 1 for i, found in enumerate(record["accuracies"]) if found >= accuracy + MARGIN), None)


def table(records: Mapping[str, Sequence[Record]]) -> str:
    """A row for each searcher: means and spreads (min .. max) over its seeds."""
    reference = max((runs[0] for runs in records.values()), key=lambda run: len(run["origins"]))
    by_origin = dict(zip(reference["origins"], reference["accuracies"], strict=True))
    rows = [
        ["searcher", "seeds", "validation, searched images, %", "validation, all, %", "test, %",
         "trials to pass uniform", "trials to pass allocate", "candidates/minute"],
        ["---", *["---:"] * 7],
    ]  # fmt: skip
    for name, runs in records.items():
        learned = len(runs[0]["accuracies"]) > 3
        passed = [
            _counts([trials_to_pass(run, by_origin[origin]) for run in runs]) if learned else ""
            for origin in ("uniform", "allocate")
        ]
        rate = f"{fmean(60 * run['trials'] / run['seconds'] for run in runs):.0f}" if learned else ""
        accuracies = (_spread([run[key] for run in runs]) for key in ("seen", "validation", "test"))
        rows.append([name, str(len(runs)), *accuracies, *passed, rate])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(options.model), "put the data there"):
        return SKIPPED
    pieces = [
        [options.model, name, seed, options.trials, settings_of(name)]
        for seed in range(options.seeds)
        for name in options.searchers
        if seed == 0 or name not in ("uniform", "allocate")  # these are the same for every seed
    ]
    path = options.folder / f"{options.model}.jsonl"
    found = run_all(search, pieces, path, options.processes)
    records: dict[str, list[Record]] = {name: [] for name in options.searchers}
    for piece, record in zip(pieces, found, strict=True):
        records[piece[1]].append(record)
    print(f"\n{options.model}, {options.trials} trials each, spread is min .. max over the seeds")
    print(table(records))
    for name, runs in records.items():
        if len(runs[0]["accuracies"]) > 3:
            share = fmean(run["scoring"] / run["seconds"] for run in runs)
            print(f"{name}: {100 * share:.0f} % of the time is scoring; chosen from {_names(runs)}")
    means = {name: 100 * fmean(run["test"] for run in runs) for name, runs in records.items()}
    for name in (name for name in LEARNED if name in means):
        for other in (other for other in ("random", "allocate") if other in means):
            gain = means[name] - means[other]
            close(f"{NAME}_{options.model}_{name}_{other}", gain, f"points of test accuracy over {other}", GOAL)
    return 0


def _spread(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    return f"{fmean(percent):.2f}" + (f" ({min(percent):.2f} .. {max(percent):.2f})" if len(percent) > 1 else "")


def _counts(counts: Sequence[int | None]) -> str:
    return ", ".join("never" if count is None else str(count) for count in counts)


def _names(runs: Sequence[Record]) -> str:
    origins = [run["origin"] for run in runs]
    return ", ".join(f"{origin} ({origins.count(origin)})" for origin in dict.fromkeys(origins))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Compare the searchers at equal numbers of trials.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="resnet20", choices=("resnet20", "resnet56"), help="the network")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each searcher")
    parser.add_argument("--trials", type=int, default=200, help="trials of each search")
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=SEARCHERS, help="which of them")
    parser.add_argument("--processes", type=int, default=2, help="searches at once, a core each")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / NAME, help="where finished searches are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
