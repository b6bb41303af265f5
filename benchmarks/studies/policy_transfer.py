"""Value of a policy learned on all classes for a subset of them (Pahwa et al. 2019, tables 8 to 10).

On each subset one policy is learned from scratch, and another continues from the policy of all classes with a fifth of
the students. Two numbers of iterations are counted: until the mean reward of a policy's students reaches the mean of
the last third of the iterations from scratch, and until a student is as good as the best from scratch. The goal is a
quarter of all iterations of the policy from scratch. No policy tries a student twice, so there have to be fewer tries
than students: VGG-11 has 88 of at most half the parameters, ResNet-18 thousands. Seeds vary the searches; each subset
has one teacher. Finished results are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import DATA, SKIPPED, close, is_missing
from benchmarks.studies.removal_search import FOLDER, Rewards, job_of, searched
from benchmarks.studies.workers import Record, run_all

NAME = "policy_transfer"
STUDENTS = 5  # of an iteration, as in configs/search/ddc.yaml
SUBSETS: dict[str, dict[str, list[Any]]] = {
    "cifar10": {
        "animals": ["bird", "cat", "deer", "dog", "frog", "horse"],
        "vehicles": ["airplane", "automobile", "ship", "truck"],
    },
    "digits": {"round": [0, 6, 8, 9], "straight": [1, 4, 7]},
}


def transfer(piece: Sequence[Any]) -> Record:
    """piece: (subset or ``all``, ``from scratch`` or the folder of a policy, kind, students, seed)."""
    subset, start, kind, students, seed = piece
    classes = None if subset == "all" else tuple(SUBSETS[kind[0]][subset])
    folder = FOLDER / f"policy-{'-'.join(map(str, (*kind, students, seed)))}" if subset == "all" else None
    policy = None if start == "from scratch" else start
    rewards = Rewards(job_of(*kind, classes), kind, subset)
    records = searched(rewards, students, seed, folder and folder / "search", policy)
    return {"rewards": [record["score"] or 0.0 for record in records], "folder": str(folder)}


def by_iteration(rewards: Sequence[float], of: Callable[[Sequence[float]], float]) -> list[float]:
    """``of`` (``max``, ``fmean``) the rewards of each iteration."""
    return [of(rewards[i : i + STUDENTS]) for i in range(0, len(rewards), STUDENTS)]


def iterations_to(wanted: float, found: Sequence[float]) -> int | None:
    """The first iteration, from 1, of which as much as is wanted was found; None where there is none."""
    return next((number for number, value in enumerate(found, 1) if value >= wanted), None)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.data == "cifar10" and is_missing(NAME, [DATA / "cifar10-jpeg"], "put the data there"):
        return SKIPPED
    kind = [options.data, options.model, options.width, options.teacher_epochs]
    for classes in (None, *map(tuple, SUBSETS[options.data].values())):
        job_of(*kind, classes)  # each teacher once, before processes share it
    path, students = FOLDER / "transfer.jsonl", options.students
    pieces = [["all", "from scratch", kind, students, seed] for seed in options.seeds]
    whole = run_all(transfer, pieces, path, options.processes)
    for subset in SUBSETS[options.data]:
        pieces = [[subset, "from scratch", kind, students, seed] for seed in options.seeds]
        pieces += [[subset, r["folder"], kind, max(5, students // 5), r["piece"][4]] for r in whole]
        found = run_all(transfer, pieces, path, options.processes)
        pairs = [
            (moved["rewards"], scratch["rewards"])
            for scratch, moved in zip(found[: len(whole)], found[len(whole) :], strict=True)
        ]
        print(f"\n{subset}: mean reward of each iteration, transferred / from scratch")
        for pair in pairs:
            print(" / ".join(" ".join(f"{mean:.3f}" for mean in by_iteration(own, fmean)) for own in pair))
        _compare(f"{NAME}_{subset}_mean", pairs, fmean, lambda own: fmean(own[-(len(own) // 3) :]))
        _compare(f"{NAME}_{subset}_best", pairs, max, max)
    return 0


def _compare(
    name: str, pairs: Sequence[tuple[Any, Any]], of: Callable[[Any], float], goal: Callable[[Any], float]
) -> None:
    """pairs: rewards (transferred, from scratch). goal(rewards from scratch): what both have to reach.

    A transfer that does not reach it has saved nothing.
    """
    shares = []
    for moved, scratch in pairs:
        wanted = goal(scratch)
        ours, theirs = by_iteration(moved, of), by_iteration(scratch, of)
        needed = iterations_to(wanted, ours)
        print(
            f"  {of.__name__} {wanted:.3f}: iteration {needed or 'none'} of {len(ours)} after the transfer, "
            f"{iterations_to(wanted, theirs)} of {len(theirs)} from scratch"
        )
        shares.append(needed / len(theirs) if needed else 1.0)
    close(name, fmean(shares), "of the iterations from scratch", "<= 0.25")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Iterations that a policy of all classes saves on some of them.")
    parser.add_argument("--data", choices=SUBSETS, default="cifar10")
    parser.add_argument("--model", default="resnet18", help="or vgg11")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--students", type=int, default=100, help="tried from scratch; a fifth of it after a transfer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="pieces at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
