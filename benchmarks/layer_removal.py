"""Layer removal beside other ways to the same size: accuracy, parameters and time of the student (Pahwa et al. 2019,
tables 2 and 3), and what the policy finds beside chance.

Every student is trained for the same epochs; the test split is read once, after the last. Seeds are those of search and
training; the teacher is one and the same. What is finished is kept, so that a call that is repeated goes on. The
paper's VGG-11 has four times the channels of the default here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.removal_search import FOLDER, Kind, Rewards, build, coin_flips, job_of, searched
from benchmarks.result import DATA, SKIPPED, close, is_missing
from benchmarks.workers import Record, run_all

NAME = "layer_removal"
# (kind of search, its objective, the weight of the teacher's soft labels)
SEARCHES = {
    "DDC": ("policy_gradient", "ddc", 0.7),
    "DDC, hard labels": ("policy_gradient", "ddc", 0.0),
    "N2N": ("policy_gradient", "n2n", 0.7),
    "random removal": ("coin flips", "ddc", 0.7),
}
FEWER, RANKED, RANKED_FEWER, DISTILLED = (
    "DDC, then fewer filters", "ranked filters, as many parameters as DDC", "ranked filters, as many as the fewest",
    "distilled, 7 layers",
)  # fmt: skip


def choose(piece: Sequence[Any]) -> Record:
    """piece: (key of SEARCHES, kind, students, seed). The best student's plan and reward, and all rewards in order."""
    from dataclasses import replace

    from pfray.config import Distill
    from pfray.objective import Objective

    name, kind, students, seed = piece
    how, objective, weight = SEARCHES[name]
    job = replace(job_of(*kind), objective=Objective(objective), distill=Distill(weight=weight))
    rewards = Rewards(job, kind)
    records = coin_flips(rewards, students, seed) if how == "coin flips" else searched(rewards, students, seed)
    best = max(records, key=lambda record: record["score"])
    return {"plan": best["plan"], "reward": best["score"], "rewards": [record["score"] for record in records]}


def thinned(model: Any, task: Any, params: float) -> Any:
    """The model with so many parameters, the same share of the filters of every layer left by a Taylor ranking."""
    import copy

    from learners.filter_ranked import FilterRanked, Settings

    settings = Settings(criterion="taylor", round_to=1)
    plan = FilterRanked.space(model, task, settings).uniform({"params": params})
    student = copy.deepcopy(model)
    FilterRanked.compress(student, plan, settings, FilterRanked.prepare(model, task, settings), 0)
    return student


def student_of(piece: Sequence[Any], learn: Callable[[Any], None]) -> Any:
    """The student of a piece of ``train``. learn(student): called after each step."""
    import copy

    import torch

    from learners.layer_removal import LayerRemoval, removed
    from pfray.bridging import take_out

    method, kind, _, seed, plan, sizes = piece
    job = job_of(*kind)
    student = copy.deepcopy(job.teacher)
    if method == DISTILLED:
        torch.manual_seed(seed)
        student = build("vgg7", job.task, kind[2])
        learn(student)
    if plan is not None:
        take_out(student, LayerRemoval.prepare(job.teacher, job.task, job.settings), removed(plan))
        learn(student)
    for params in sizes:
        student = thinned(student, job.task, params)
        learn(student)
    return student


def train(piece: Sequence[Any]) -> Record:
    """piece: (method, kind, epochs, seed, plan or None, the parameters that filters are ranked down to, one by one).

    The student is trained after each step, for all ``epochs``.
    """
    import torch

    from pfray.config import Distill, Training
    from pfray.measure import count_params, evaluate
    from pfray.train import choose_precision, fit

    method, kind, epochs, seed, *_ = piece
    job = job_of(*kind)
    training = Training(epochs=epochs, lr=0.05, batch_size=job.training.batch_size)
    distill = Distill(weight=SEARCHES[method][2] if method in SEARCHES else job.distill.weight)

    def learn(student: Any) -> None:
        precision = choose_precision(student, torch.device("cpu"))
        fit(student, job.task, training, seed=seed, precision=precision, teacher=job.teacher, distill=distill)

    student = student_of(piece, learn)
    params, whole = count_params(student)[0], count_params(job.teacher)[0]
    return {"test": evaluate(student, job.task, job.task.test).accuracy, "params": params, "fewer": whole / params}


def time_of(piece: Sequence[Any]) -> float:
    """The student's inference time over the teacher's: of one image, in turns, on one thread. Weights do not matter."""
    import torch

    from pfray.measure import example_input, latencies_ms, place

    torch.set_num_threads(1)  # as where rewards are measured
    job = job_of(*piece[1])
    models = [place(model, "cpu").eval() for model in (student_of(piece, lambda student: None), job.teacher)]
    own, its = latencies_ms(models, example_input(job.task), rounds=200)
    return own / its


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.data == "cifar10" and is_missing(NAME, [DATA / "cifar10-jpeg"], "put the data there"):
        return SKIPPED
    kind = [options.data, options.model, options.width, options.teacher_epochs]
    job_of(*kind)  # once, before processes share it
    _table(kind, options)
    return 0


def _table(kind: Kind, options: argparse.Namespace) -> None:
    from pfray.measure import count_params, evaluate

    job, count = job_of(*kind), options.processes
    teacher = 100 * evaluate(job.teacher, job.task, job.task.test).accuracy
    fewest = count_params(job.teacher)[0] / options.fewer
    pieces = [[name, kind, options.students, seed] for name in SEARCHES for seed in options.seeds]
    chosen = run_all(choose, pieces, FOLDER / "choices.jsonl", count)
    rewards = {name: [r["reward"] for r in chosen if r["piece"][0] == name] for name in SEARCHES}
    _policy_and_chance(chosen, rewards, f"{NAME}_{options.model}")
    if options.epochs == 0:
        return
    path = FOLDER / "students.jsonl"
    plans = [[r["piece"][0], kind, options.epochs, r["piece"][3], r["plan"], []] for r in chosen]
    found = run_all(train, plans, path, count)
    for one in [r for r in found if r["piece"][0] == "DDC"]:
        seed, plan = one["piece"][3:5]
        same = one["params"]
        rivals = [(FEWER, plan, [fewest]), (RANKED, None, [same]), (RANKED_FEWER, None, [same, fewest])]
        rivals += [(DISTILLED, None, [])]
        found += run_all(train, [[m, kind, options.epochs, seed, p, sizes] for m, p, sizes in rivals], path, count)
    print(f"\n{options.model} at width {options.width} on {options.data}, seeds {options.seeds}, {options.students} "
          f"students, {options.epochs} epochs; teacher {teacher:.2f} %")  # fmt: skip
    print("| method | test, % | fewer parameters | time | best reward |\n|---|---:|---:|---:|---:|")
    test: dict[str, float] = {}
    for method in dict.fromkeys(r["piece"][0] for r in found):
        own = [record for record in found if record["piece"][0] == method]
        mean = {key: sum(record[key] for record in own) / len(own) for key in ("test", "fewer")}
        time = sum(time_of(record["piece"]) for record in own) / len(own)
        test[method] = 100 * mean["test"]
        ends = [100 * end(record["test"] for record in own) for end in (min, max)]
        best = f"{sum(rewards[method]) / len(own):.3f}" if method in rewards else ""
        spread = f"{test[method]:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"
        print(f"| {method} | {spread} | {mean['fewer']:.1f}x | {time:.2f}x | {best} |")
    name = f"{NAME}_{options.model}"
    close(f"{name}_lost", teacher - test[FEWER], f"points lost with {options.fewer:g}x fewer parameters", "<= 6")
    close(f"{name}_ranked", test["DDC"] - test[RANKED], "points over ranked filters of DDC's size", "> 0")
    close(f"{name}_ranked_fewer", test[FEWER] - test[RANKED_FEWER], "points over ranked filters, fewest", "> 0")


def _policy_and_chance(chosen: Sequence[Record], rewards: Mapping[str, Sequence[float]], name: str) -> None:
    """What the policy has found after so many students, and chance after as many. rewards: the best of each search."""
    counts = [10, 20, 40, 70, 100]
    print("| search | seed | mean reward | " + " | ".join(f"best of {count}" for count in counts) + " |")
    print("|---|---:|---:|" + "---:|" * len(counts))
    means: dict[str, list[float]] = {method: [] for method in SEARCHES}
    for record in chosen:
        method, _, _, seed = record["piece"]
        means[method].append(sum(record["rewards"]) / len(record["rewards"]))
        best = " | ".join(f"{max(record['rewards'][:count]):.3f}" for count in counts)
        print(f"| {method} | {seed} | {means[method][-1]:.3f} | {best} |")
    for kind, found in (("mean", means), ("best", rewards)):
        lead = [ours - chance for ours, chance in zip(found["DDC"], found["random removal"], strict=True)]
        close(f"{name}_{kind}", sum(lead) / len(lead), f"{kind} reward over chance's, least {min(lead):.3f}", "> 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Layer removal beside other ways to the same size.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", choices=("cifar10", "digits"), default="cifar10")
    parser.add_argument("--model", default="vgg11", help="or resnet18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--teacher-epochs", type=int, default=20)
    parser.add_argument("--students", type=int, default=100, help="tried by each search")
    parser.add_argument("--epochs", type=int, default=10, help="of each student that is chosen; 0: rewards only")
    parser.add_argument("--fewer", type=float, default=10.0, help="parameters of the teacher over the fewest")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--processes", type=int, default=2, help="pieces at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
