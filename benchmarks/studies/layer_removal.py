"""Layer removal against other ways to the same size: accuracy, parameters and time of the student (Pahwa et al. 2019,
tables 2 and 3), and the policy's result against chance.

Every student is trained for the same epochs, and as many again each time it loses filters; the test split is read after
the last ones. Seeds vary search and training; the teacher is always the same. Finished results are kept, so that a
repeated call continues. The paper's VGG-11 has four times the channels of the default here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import DATA, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import Job
from benchmarks.studies.removal_search import FOLDER, Kind, Rewards, build, coin_flips, job_of, searched
from benchmarks.studies.workers import Record, run_all

NAME = "layer_removal"
# (kind of search, its objective, the weight of the teacher's soft labels)
SEARCHES = {
    "DDC": ("policy_gradient", "ddc", 0.7),
    "DDC, hard labels": ("policy_gradient", "ddc", 0.0),
    "N2N": ("policy_gradient", "n2n", 0.7),
    "random removal": ("coin flips", "ddc", 0.7),
}
FEWER, RANKED, RANKED_FEWER, DISTILLED, FROM_NOTHING = (
    "DDC, then fewer filters", "ranked filters, as many parameters as DDC", "ranked filters, as many as the fewest",
    "distilled, 7 layers", "architecture",
)  # fmt: skip
# Stages of a network of full width that is searched from nothing, and how many times larger than the teacher it may be:
# the paper's Auto-Keras ends at three times the size.
CHANNELS, DEPTH, LARGEST = (64, 128, 256, 512, 512), 3, 3.0
# That go before each training (section 4.2), of a network of full width; of a thinner one as large a share.
FILTERS = 512


def choose(piece: Sequence[Any]) -> Record:
    """piece: (key of SEARCHES, kind, students, seed). The best student's plan and reward, and all rewards in order."""
    from dataclasses import replace

    from pfray.objective import Objective

    name, kind, students, seed = piece
    how, objective, weight = SEARCHES[name]
    job = job_of(*kind)
    distill = job.recipe.distill.model_copy(update={"weight": weight})
    job = replace(
        job,
        recipe=replace(job.recipe, distill=distill),
        scoring=replace(job.scoring, objective=Objective(objective)),
    )
    rewards = Rewards(job, kind)
    records = coin_flips(rewards, students, seed) if how == "coin flips" else searched(rewards, students, seed)
    best = max(records, key=lambda record: record["score"])
    return {"plan": best["plan"], "reward": best["score"], "rewards": [record["score"] for record in records]}


def choose_network(piece: Sequence[Any]) -> Record:
    """piece: (``FROM_NOTHING``, kind, networks, seed). As ``choose``, of networks searched from nothing by a Gaussian
    process for their accuracy alone, each trained on the labels for as long as it is twice for a student.
    """
    from benchmarks.studies.searching import run_search
    from pfray.config.registry import find_class
    from pfray.measure.cost import count_params
    from pfray.search.base import PlanSearcher

    _, kind, networks, seed = piece
    job = network_job(kind)
    space = job.bind().space()
    found: Any = find_class("search", "gp", PlanSearcher)
    limits = {"params": min(LARGEST * count_params(job.teacher)[0], 0.99 * space.reachable("params")[1])}
    searcher = found(space, limits, found.settings_type(spread=1), seed=seed, trials=networks, use_full_budget=False)
    run_search(job.scorer(), searcher)
    best = searcher.best()
    return {"plan": best["plan"], "reward": best["score"], "rewards": [record["score"] for record in searcher.records]}


def network_job(kind: Kind) -> Job:
    from dataclasses import replace

    from learners.architecture import Architecture, Settings
    from pfray.objective import Objective
    from pfray.training.settings import Distill

    job = job_of(*kind)
    widths = tuple(max(16, round(kind[2] * channels / 8) * 8) for channels in CHANNELS)
    recipe = replace(job.recipe, algorithm=Architecture, settings=Settings(widths, DEPTH), distill=Distill())
    steps = 2 * job.scoring.finetune_steps
    scoring = replace(job.scoring, finetune_steps=steps, objective=Objective("accuracy"))
    return replace(job, recipe=recipe, scoring=scoring)


def rank_away(model: Any, task: Any, params: float, most: int) -> Any:
    """The model without up to ``most`` filters, those ranked lowest in all layers (Molchanov et al. 2017); fewer
    where ``params`` parameters are left with fewer gone. Each layer keeps its best one.
    """
    import numpy as np

    from learners.filter_ranked import Settings, rank
    from pfray.measure.cost import count_params
    from pfray.pruning.channels.importance import Ranking, keep_highest
    from pfray.pruning.channels.keep_ratios import graph_of, searched_groups

    settings = Settings(criterion="taylor", round_to=1)
    graph = graph_of(model, task)
    ranking = Ranking(graph, rank(model, searched_groups(graph, settings), task, settings))
    # Of each layer all but its best filter, the lowest of all first.
    removable = [(score, name) for name, own in ranking.scores.items() for score in np.sort(own)[:-1]]
    order = [name for _, name in sorted(removable)]

    def without(count: int) -> Any:
        kept = {name: len(own) - order[:count].count(name) for name, own in ranking.scores.items()}
        return keep_highest(model, ranking, kept)

    low, high = 0, min(most, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count_params(without(middle))[0] <= params else (middle, high)
    return without(high)


def train(piece: Sequence[Any]) -> Record:
    """piece: (method, kind, epochs, seed, plan or None, the parameters that filters are ranked down to, one by one).

    The student is trained for all ``epochs`` after its layers are gone, and after every ``FILTERS`` filters that go
    then. Returns ``stages``, what it is before filters go and at each of those sizes: test accuracy, parameters, how
    many times fewer than the teacher's, and the inference time of an image over the teacher's.
    """
    import copy

    import torch

    from pfray.measure.cost import count_params
    from pfray.measure.evaluation import evaluate
    from pfray.measure.timing import latencies_ms
    from pfray.nn.modes import place
    from pfray.task import example_input
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Training

    method, kind, epochs, seed, plan, sizes = piece
    job = job_of(*kind)
    training = Training(epochs=epochs, lr=0.05, batch_size=job.recipe.training.batch_size)
    weight = 0.0 if method == FROM_NOTHING else SEARCHES[method][2] if method in SEARCHES else job.recipe.distill.weight
    distill = job.recipe.distill.model_copy(update={"weight": weight})
    whole = count_params(job.teacher)[0]
    stages: list[Record] = []

    def learn(student: Any) -> None:
        precision = choose_precision(student, torch.device("cpu"))
        fit(student, job.task, training, seed=seed, precision=precision, teacher=job.teacher, distill=distill)

    def note(student: Any) -> None:
        torch.set_num_threads(1)  # as where rewards are measured
        timed = [place(model, "cpu").eval() for model in (student, job.teacher)]
        its_time, whole_time = latencies_ms(timed, example_input(job.task), rounds=200)
        params, test = count_params(student)[0], evaluate(student, job.task, job.task.test).accuracy
        stages.append({"test": test, "params": params, "fewer": whole / params, "time": its_time / whole_time})

    student = copy.deepcopy(job.teacher)
    if method == DISTILLED:
        torch.manual_seed(seed)
        student = build("vgg7", job.task, kind[2])
        learn(student)
        note(student)
    elif method == FROM_NOTHING:
        torch.manual_seed(seed)
        student = network_job(kind).bind().compress(plan).model
        learn(student)
        note(student)
    elif plan is not None:
        student = job.bind().compress(plan).model
        learn(student)
        note(student)
    for params in sizes:
        while count_params(student)[0] > params:
            student = rank_away(student, job.task, params, round(FILTERS * kind[2]))
            learn(student)
        note(student)
    return {"stages": stages}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.data == "cifar10" and is_missing(NAME, [DATA / "cifar10-jpeg"], "put the data there"):
        return SKIPPED
    kind = [options.data, options.model, options.width, options.teacher_epochs]
    job_of(*kind)  # once, before processes share it
    _table(kind, options)
    return 0


def _table(kind: Kind, options: argparse.Namespace) -> None:
    from pfray.measure.cost import count_params
    from pfray.measure.evaluation import evaluate

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
    plans = [
        [r["piece"][0], kind, options.epochs, r["piece"][3], r["plan"], [fewest] if r["piece"][0] == "DDC" else []]
        for r in chosen
    ]
    found: dict[str, list[Record]] = {}
    for record in run_all(train, plans, path, count):
        for method, stage in zip((record["piece"][0], FEWER), record["stages"], strict=False):
            found.setdefault(method, []).append(stage)
    pieces = [[FROM_NOTHING, kind, options.students, seed] for seed in options.seeds]
    networks = run_all(choose_network, pieces, FOLDER / "networks.jsonl", count)
    rivals = [[FROM_NOTHING, kind, options.epochs, r["piece"][3], r["plan"], []] for r in networks]
    rivals += [
        [method, kind, options.epochs, seed, None, [stage["params"], fewest] if method == RANKED else []]
        for seed, stage in zip(options.seeds, found["DDC"], strict=True)
        for method in (RANKED, DISTILLED)
    ]
    for record in run_all(train, rivals, path, count):
        method = record["piece"][0]
        names = (RANKED, RANKED_FEWER) if method == RANKED else (method,)
        for method, stage in zip(names, record["stages"], strict=True):
            found.setdefault(method, []).append(stage)
    print(f"\n{options.model} at width {options.width} on {options.data}, seeds {options.seeds}, {options.students} "
          f"students, {options.epochs} epochs; teacher {teacher:.2f} %")  # fmt: skip
    print("| method | test, % | fewer parameters | time | best reward |\n|---|---:|---:|---:|---:|")
    test: dict[str, float] = {}
    for method, own in found.items():
        mean = {key: sum(stage[key] for stage in own) / len(own) for key in ("test", "fewer", "time")}
        test[method] = 100 * mean["test"]
        ends = [100 * end(stage["test"] for stage in own) for end in (min, max)]
        best = f"{sum(rewards[method]) / len(own):.4f}" if method in rewards else ""
        spread = f"{test[method]:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"
        print(f"| {method} | {spread} | {mean['fewer']:.1f}x | {mean['time']:.2f}x | {best} |")
    name = f"{NAME}_{options.model}"
    close(f"{name}_lost", teacher - test[FEWER], f"points lost with {options.fewer:g}x fewer parameters", "<= 6")
    close(f"{name}_ranked", test["DDC"] - test[RANKED], "points over ranked filters of DDC's size", "> 0")
    close(f"{name}_ranked_fewer", test[FEWER] - test[RANKED_FEWER], "points over ranked filters, fewest", "> 0")


def _policy_and_chance(chosen: Sequence[Record], rewards: Mapping[str, Sequence[float]], name: str) -> None:
    """Best rewards of the policy and of chance after as many students. rewards: the best of each search."""
    counts = [10, 20, 40, 70, 100]
    print("| search | seed | mean reward | " + " | ".join(f"best of {count}" for count in counts) + " |")
    print("|---|---:|---:|" + "---:|" * len(counts))
    means: dict[str, list[float]] = {method: [] for method in SEARCHES}
    for record in chosen:
        method, _, _, seed = record["piece"]
        means[method].append(sum(record["rewards"]) / len(record["rewards"]))
        best = " | ".join(f"{max(record['rewards'][:count]):.4f}" for count in counts)
        print(f"| {method} | {seed} | {means[method][-1]:.4f} | {best} |")
    for kind, found in (("mean", means), ("best", rewards)):
        lead = [ours - chance for ours, chance in zip(found["DDC"], found["random removal"], strict=True)]
        close(f"{name}_{kind}", sum(lead) / len(lead), f"{kind} reward over chance's, least {min(lead):.4f}", "> 0")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Layer removal beside other ways to the same size.")
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
