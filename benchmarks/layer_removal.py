"""Layer removal beside other ways to the same size: accuracy, parameters and time of the student (Pahwa et al. 2019,
tables 2 and 3), and what a policy that was learned on all classes is worth on some of them (tables 8 to 10).

Every student is trained for the same epochs; the test split is read once, after the last. What is finished is kept, so
that a call that is repeated goes on. The paper's VGG-11 has four times the weights of the default here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.result import DATA, ROOT, SKIPPED, close, is_missing
from benchmarks.workers import Record, run_all

NAME = "layer_removal"
FOLDER = ROOT / "runs" / NAME
METHODS = ("DDC", "DDC, hard labels", "DDC, fewer filters", "N2N", "random removal", "ranked filters", "distilled")
SUBSETS: dict[str, dict[str, list[Any]]] = {
    "cifar10": {
        "animals": ["bird", "cat", "deer", "dog", "frog", "horse"],
        "vehicles": ["airplane", "automobile", "ship", "truck"],
    },
    "digits": {"round": [0, 6, 8, 9], "straight": [1, 4, 7]},
}
LIMITS = {"params": 0.5}
SOFT = 0.7


@lru_cache
def job_of(data: str, classes: tuple[Any, ...] | None, model: str, width: float, epochs: int, seed: int) -> Any:
    """The job of a trial of layer removal; its teacher is trained once for so many epochs and kept."""
    import torch

    from learners.layer_removal import Settings
    from pfray.cache import load_tensors, save_tensors
    from pfray.components import find_function
    from pfray.config import Distill, Search, Training
    from pfray.job import Job
    from pfray.objective import Objective
    from pfray.train import choose_precision, fit

    settings: dict[str, Any] = {"path": str(DATA / "cifar10-jpeg")} if data == "cifar10" else {}
    task: Any = find_function("data", data)(**settings, classes=None if classes is None else list(classes))
    torch.manual_seed(seed)
    teacher: Any = build(model, task, width)
    training = Training(epochs=epochs, lr=0.05, batch_size=128 if data == "cifar10" else 64)
    some = "all" if classes is None else "-".join(map(str, classes))
    path = FOLDER / f"teacher-{data}-{some}-{model}-{width}-{epochs}-{seed}.safetensors"
    state = load_tensors(path)
    if state is None:
        fit(teacher, task, training, seed=seed, precision=choose_precision(teacher, torch.device("cpu")))
        save_tensors(path, teacher.state_dict())
    else:
        teacher.load_state_dict(state)
    search = Search(name="policy_gradient", finetune_steps=20, validation_images=1000)
    return Job(
        task, teacher.eval(), Settings(), training, Distill(weight=SOFT), search, seed, "auto", Objective("ddc")
    )  # fmt: skip


def build(model: str, task: Any, width: float) -> Any:
    from pfray.components import find_function

    factory = find_function("model", model)
    return factory(num_outputs=task.num_outputs, in_channels=task.input_shape[0], width=width)


def searched(
    job: Any, name: str, students: int, objective: str, seed: int, folder: Path | None = None, policy: str | None = None
) -> list[Any]:
    """The records of a finished search, in order. folder: where its policy is kept. policy: the run to start from."""
    from dataclasses import replace

    from benchmarks.searching import search
    from learners.layer_removal import LayerRemoval
    from pfray.components import find_class
    from pfray.objective import Objective
    from pfray.search.base import PlanSearcher

    space = LayerRemoval.space(job.teacher, job.task, job.settings)
    limits = {unit: share * space.reachable(unit)[1] for unit, share in LIMITS.items()}
    found: Any = find_class("search", name, PlanSearcher)
    settings = found.settings_type(**({"policy_from": policy} if policy else {}))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    searcher = found(space, limits, settings, seed=seed, trials=students, use_up=False, folder=folder)
    search(LayerRemoval, replace(job, objective=Objective(objective)), searcher)
    return searcher.records


def coin_flips(job: Any, students: int, seed: int) -> list[Any]:
    """Records of students of which each layer is kept or removed by chance, moved onto the limits."""
    from dataclasses import replace

    import numpy as np
    import torch

    from learners.layer_removal import LayerRemoval
    from pfray.objective import Objective
    from pfray.scoring import Scorer

    space = LayerRemoval.space(job.teacher, job.task, job.settings)
    limits = {unit: share * space.reachable(unit)[1] for unit, share in LIMITS.items()}
    scorer = Scorer(LayerRemoval, replace(job, objective=Objective("ddc")), torch.device("cpu"))
    rng = np.random.default_rng(seed)
    records: list[Any] = []
    while len(records) < students:
        plan = space.decode(rng.integers(0, 2, len(space)).astype(float))
        if space.meets(plan, limits):
            records.append({"plan": plan, "score": scorer.score(plan)["score"]})
    return records


def thinned(model: Any, task: Any, params: float) -> Any:
    """The model with so many parameters, the same share of the filters of every layer left by a Taylor ranking."""
    import copy

    from learners.filter_ranked import FilterRanked, Settings

    settings = Settings(criterion="taylor", round_to=1)
    plan = FilterRanked.space(model, task, settings).uniform({"params": params})
    student = copy.deepcopy(model)
    FilterRanked.compress(student, plan, settings, FilterRanked.prepare(model, task, settings), 0)
    return student


def compare(piece: Sequence[Any]) -> Record:
    """piece: (method, arguments of job_of but the classes, students, epochs, parameters of ranked filters)."""
    import copy

    import torch

    from learners.layer_removal import LayerRemoval, removed
    from pfray.bridging import take_out
    from pfray.config import Distill, Training
    from pfray.measure import count_params, evaluate, example_input, latencies_ms
    from pfray.train import choose_precision, fit

    method, (data, model, width, teacher_epochs, seed), students, epochs, params = piece
    job = job_of(data, None, model, width, teacher_epochs, seed)
    task, teacher = job.task, job.teacher
    training = Training(epochs=epochs, lr=0.05, batch_size=job.training.batch_size)
    weight = 0.0 if method == "DDC, hard labels" else SOFT
    reward, records = None, []

    def train(student: Any) -> Any:
        precision = choose_precision(student, torch.device("cpu"))
        distill = Distill(weight=weight)
        fit(student, task, training, seed=seed, precision=precision, teacher=teacher, distill=distill)
        return student

    if method == "distilled":
        torch.manual_seed(seed)
        student = train(build("vgg7", task, width))
    elif method == "ranked filters":
        student = train(thinned(teacher, task, params))
    else:
        if method == "random removal":
            records = coin_flips(job, students, seed)
        else:
            records = searched(job, "policy_gradient", students, "n2n" if method == "N2N" else "ddc", seed)
        scored = [record for record in records if record["score"] is not None and record["score"] == record["score"]]
        best = max(scored, key=lambda record: record["score"])
        reward, student = best["score"], copy.deepcopy(teacher)
        take_out(student, LayerRemoval.prepare(teacher, task, job.settings), removed(best["plan"]))
        train(student)
        if method == "DDC, fewer filters":
            student = train(thinned(student, task, 0.4 * count_params(student)[0]))
    own, its = latencies_ms([student.eval(), teacher], example_input(task))
    return {
        "test": evaluate(student, task, task.test).accuracy,
        "teacher": evaluate(teacher, task, task.test).accuracy,
        "params": count_params(student)[0],
        "fewer": count_params(teacher)[0] / count_params(student)[0],
        "time": own / its,
        "reward": reward,
    }


def transfer(piece: Sequence[Any]) -> Record:
    """piece: (subset, ``from scratch`` or the folder of a policy, arguments of job_of but the classes, students)."""
    subset, start, (data, model, width, teacher_epochs, seed), students = piece
    classes = None if subset == "all" else tuple(SUBSETS[data][subset])
    job = job_of(data, classes, model, width, teacher_epochs, seed)
    folder = FOLDER / f"policy-{data}-{model}-{width}-{seed}" if subset == "all" else None
    policy = None if start == "from scratch" else start
    records = searched(job, "policy_gradient", students, "ddc", seed, folder and folder / "search", policy)
    return {"rewards": [record["score"] or 0.0 for record in records], "folder": str(folder)}


def iterations_to(rewards: Sequence[float], wanted: float, size: int = 5) -> int:
    """The iterations of ``size`` students until the mean reward of one is as wanted; one more than all if never."""
    means = [sum(rewards[i : i + size]) / size for i in range(0, len(rewards), size)]
    return next((count for count, mean in enumerate(means, 1) if mean >= wanted), len(means) + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.data == "cifar10" and is_missing(NAME, [DATA / "cifar10-jpeg"], "put the data there"):
        return SKIPPED
    kinds = [[options.data, options.model, options.width, options.teacher_epochs, seed] for seed in options.seeds]
    for kind in kinds:  # each once, before processes share it
        job_of(kind[0], None, *kind[1:])
    if "table" in options.show:
        _table(kinds, options)
    if "transfer" in options.show:
        _transfer(kinds, options)
    return 0


def _table(kinds: list[list[Any]], options: argparse.Namespace) -> None:
    path, settings = FOLDER / "records.jsonl", [options.students, options.epochs]
    searches = [[m, kind, *settings, None] for m in METHODS if m != "ranked filters" for kind in kinds]
    found = run_all(compare, searches, path, options.processes)
    sizes = [r["params"] for r in found if r["piece"][0] == "DDC"]
    ranked = [["ranked filters", kind, *settings, size] for kind, size in zip(kinds, sizes, strict=True)]
    found += run_all(compare, ranked, path, options.processes)
    teacher = 100 * sum(r["teacher"] for r in found) / len(found)
    print(f"\n{options.model} at width {options.width} on {options.data}, {len(kinds)} seeds, {options.students} "
          f"students, {options.epochs} epochs; teacher {teacher:.2f} %")  # fmt: skip
    print("| method | test, % | parameters | time | reward |\n|---|---:|---:|---:|---:|")
    means: dict[str, dict[str, float]] = {}
    for method in METHODS:
        own = [record for record in found if record["piece"][0] == method]
        means[method] = {k: sum(r[k] or 0.0 for r in own) / len(own) for k in ("test", "fewer", "time", "reward")}
        mean = means[method]
        print(f"| {method} | {100 * mean['test']:.2f} | {mean['fewer']:.1f}x fewer | {mean['time']:.2f}x | "
              f"{mean['reward']:.3f} |")  # fmt: skip
    close(f"{NAME}_fewer", means["DDC, fewer filters"]["fewer"], "x fewer parameters", ">= 8")
    close(f"{NAME}_lost", teacher - 100 * means["DDC, fewer filters"]["test"], "points lost", "<= 6")
    lead = 100 * (means["DDC"]["test"] - means["ranked filters"]["test"])
    close(f"{NAME}_ranked", lead, "points over ranked filters of the same size", "> 0")
    lead = means["DDC"]["reward"] - means["random removal"]["reward"]
    close(f"{NAME}_random", lead, "reward over random removal", "> 0")


def _transfer(kinds: list[list[Any]], options: argparse.Namespace) -> None:
    path = FOLDER / "transfer.jsonl"
    whole = run_all(transfer, [["all", "from scratch", k, options.students] for k in kinds], path, options.processes)
    for subset in SUBSETS[options.data]:
        pieces = [[subset, "from scratch", kind, options.students] for kind in kinds]
        pieces += [[subset, r["folder"], r["piece"][2], max(5, options.students // 5)] for r in whole]
        found = run_all(transfer, pieces, path, options.processes)
        shares = []
        for scratch, moved in zip(found[: len(kinds)], found[len(kinds) :], strict=True):
            wanted = sum(scratch["rewards"][-10:]) / 10
            shares.append(iterations_to(moved["rewards"], wanted) / iterations_to(scratch["rewards"], wanted))
        close(f"{NAME}_transfer_{subset}", sum(shares) / len(shares), "of the iterations from scratch", "<= 0.25")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Layer removal beside other ways to the same size, and the transfer of its policy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", choices=SUBSETS, default="cifar10")
    parser.add_argument("--model", default="vgg11", help="or resnet18")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--teacher-epochs", type=int, default=20)
    parser.add_argument("--students", type=int, default=100, help="tried by each search")
    parser.add_argument("--epochs", type=int, default=10, help="of each student that is chosen")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--show", nargs="+", choices=("table", "transfer"), default=["table", "transfer"])
    parser.add_argument("--processes", type=int, default=2, help="pieces at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
