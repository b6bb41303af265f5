"""Best plan of each searcher with the same number of trials: a CIFAR ResNet, 90 % sparsity, no fine-tuning.

    python -m benchmarks.studies.search_quality --model resnet20
    python -m benchmarks.studies.search_quality --model synthetic --ablation --seeds 3 --trials 100

The first command compares pfray's searchers. The second is an ablation of the searcher ``critic``, with DDPG of AMC and
PocketFlow for comparison (variants.py), here on a synthetic landscape (synthetic.py).

Every searcher gets pfray's defaults: the same first plans, the same score, and finally the best trials measured again
on all validation images before one is chosen. The test split is read for the chosen plan only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import LIMITS, first_plans, job, needed, space
from benchmarks.studies import searching, synthetic
from benchmarks.studies.variants import ABLATION, variant
from benchmarks.studies.workers import Record, run_all

NAME = "search_quality"
GOAL = "> 0"
FIXED = ("uniform", "allocate")
SEARCHERS = (*FIXED, "random", "tpe", "gp", "critic", "ddpg_amc")
SYNTHETIC = "synthetic"
# A plan has passed another one when it has so much more accuracy on the images of the search.
MARGIN = 0.02


def search(piece: Sequence[Any]) -> Record:
    """piece: (model, searcher, seed, trials, settings). A whole search, and its choice on images it did not see."""
    from pfray.measure.evaluation import evaluate

    model, name, seed, trials, _ = piece
    work = job(model)
    found, settings = variant(name, trials)
    first = first_plans(work, found)
    searcher = found(space(work), LIMITS, settings, seed=seed, trials=trials, first_plans=first)
    started = time.perf_counter()
    scorer, scoring = searching.search(work, searcher)
    seconds = time.perf_counter() - started
    chosen, again = searching.choose(work, searcher)
    scorer.score(chosen["plan"])  # leaves the compressed model there
    test = evaluate(scorer.compressed.model, work.task, work.task.test, precision=scorer.precision)
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


def settings_of(name: str, trials: int) -> str:
    """All that a search depends on but for the seed; a search with others is done again."""
    from pfray.config.sections import Search

    return f"{variant(name, trials)[1]} {Search().model_dump_json()}"


def trials_to_pass(record: Mapping[str, Any], accuracy: float) -> int | None:
    """Number of trials until a plan was ``MARGIN`` above ``accuracy``; None if none was."""
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
    made_up = options.model == SYNTHETIC
    if not made_up and is_missing(NAME, needed(options.model), "put the data there"):
        return SKIPPED
    names = options.searchers or (ABLATION if options.ablation else SEARCHERS)
    if made_up:
        names = [name for name in names if name not in FIXED]
    pieces = [
        [options.model, name, seed, options.trials, settings_of(name, options.trials)]
        for seed in range(options.seeds)
        for name in names
        if seed == 0 or name not in FIXED  # these are the same for every seed
    ]
    path = options.folder / f"{options.model}.jsonl"
    found = run_all(synthetic.search if made_up else search, pieces, path, options.processes)
    records: dict[str, list[Record]] = {name: [] for name in names}
    for piece, record in zip(pieces, found, strict=True):
        records[piece[1]].append(record)
    print(f"\n{options.model}, {options.trials} trials each, spread is min .. max over the seeds")
    if made_up:
        print(synthetic.table(records))
        best = {name: fmean(max(run["scores"]) for run in runs) for name, runs in records.items()}
        _compare(options.model, best, "score")
        return 0
    print(table(records))
    for name, runs in records.items():
        if len(runs[0]["accuracies"]) > 3:
            share = fmean(run["scoring"] / run["seconds"] for run in runs)
            print(f"{name}: {100 * share:.0f} % of the time is scoring; chosen from {_names(runs)}")
    means = {name: 100 * fmean(run["test"] for run in runs) for name, runs in records.items()}
    _compare(options.model, means, "points of test accuracy")
    return 0


def _compare(model: str, means: Mapping[str, float], unit: str) -> None:
    """A closing line for each searcher that learns and each other one. means: by searcher, over its seeds."""
    others = [name for name in ("random", "allocate") if name in means]
    for name in (name for name in means if name not in ("random", *FIXED)):
        for other in others:
            close(f"{NAME}_{model}_{name}_{other}", means[name] - means[other], f"{unit} over {other}", GOAL)


def _spread(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    return f"{fmean(percent):.2f}" + (f" ({min(percent):.2f} .. {max(percent):.2f})" if len(percent) > 1 else "")


def _counts(counts: Sequence[int | None]) -> str:
    return ", ".join("never" if count is None else str(count) for count in counts)


def _names(runs: Sequence[Record]) -> str:
    origins = [run["origin"] for run in runs]
    return ", ".join(f"{origin} ({origins.count(origin)})" for origin in dict.fromkeys(origins))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Compare the searchers at equal numbers of trials.")
    parser.add_argument("--model", default="resnet20", choices=("resnet20", "resnet56", SYNTHETIC),
                        help="the network, or the made-up landscape")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each searcher")
    parser.add_argument("--trials", type=int, default=200, help="trials of each search")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--searchers", nargs="+", choices=sorted({*SEARCHERS, *ABLATION}), help="which of them")
    chosen.add_argument("--ablation", action="store_true", help=", ".join(ABLATION))
    parser.add_argument("--processes", type=int, default=2, help="searches at once, a core each")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / NAME, help="where finished searches are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
