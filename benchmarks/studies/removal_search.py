"""Shared by the benchmarks of layer removal: the job, the rewards of its students, and two ways to draw students.

A student is measured once and kept in a file for all callers, so that searches with several seeds or another reward
cost little more than one. Only the search then differs between seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.result import DATA, ROOT
from benchmarks.sparse_resnet import Job, scoring_of
from pfray.utils.files import read_records

FOLDER = ROOT / "runs" / "layer_removal"
LIMITS = {"params": 0.5}
# A job's teacher: (data, model, width, epochs).
Kind = Sequence[Any]


@lru_cache
def job_of(data: str, model: str, width: float, epochs: int, classes: tuple[Any, ...] | None = None) -> Job:
    """The job of a trial of layer removal; its teacher is trained once for so many epochs and kept."""
    import torch

    from learners.layer_removal import LayerRemoval, Settings
    from pfray.config.registry import find_function
    from pfray.config.sections import Search
    from pfray.learner.context import Context, Recipe
    from pfray.objective import Objective
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Distill, Training
    from pfray.utils.cache import load_tensors, save_tensors

    settings: dict[str, Any] = {"path": str(DATA / "cifar10-jpeg")} if data == "cifar10" else {}
    task: Any = find_function("data", data)(**settings, classes=None if classes is None else list(classes))
    torch.manual_seed(0)
    teacher: Any = build(model, task, width)
    training = Training(epochs=epochs, lr=0.05, batch_size=128 if data == "cifar10" else 64)
    some = "all" if classes is None else "-".join(map(str, classes))
    path = FOLDER / f"teacher-{data}-{some}-{model}-{width}-{epochs}.safetensors"
    state = load_tensors(path)
    if state is None:
        fit(teacher, task, training, seed=0, precision=choose_precision(teacher, torch.device("cpu")))
        save_tensors(path, teacher.state_dict())
    else:
        teacher.load_state_dict(state)
    search = Search(name="policy_gradient", finetune_steps=20, validation_images=1000)
    recipe = Recipe(LayerRemoval, Settings(), training, Distill(weight=0.7, temperature=1.0))
    return Job(Context(task, teacher.eval(), 0, "auto"), recipe, scoring_of(search, Objective("ddc")))


def build(model: str, task: Any, width: float) -> Any:
    from pfray.config.registry import find_function

    factory = find_function("model", model)
    return factory(num_outputs=task.num_outputs, in_channels=task.input_shape[0], width=width)


class Rewards:
    """The score of plans, by the job's objective, from measurements that are kept in a file.

    subset: the classes' name. Jobs of the same kind, subset and weight of the soft labels have the same file.
    """

    def __init__(self, job: Job, kind: Kind, subset: str = "all") -> None:
        from pfray.objective import Objective

        self.space = job.bind().space()
        self.limits = {unit: share * self.space.reachable(unit)[1] for unit, share in LIMITS.items()}
        self.objective = job.scoring.objective
        # Measures the times too, whatever the objective.
        self.scorer = job.scorer(objective=Objective("ddc"))
        name = "-".join(map(str, (*kind, subset, job.recipe.distill.weight)))
        self.path = FOLDER / "measured" / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_records(self.path)[0] if self.path.exists() else []
        self.known = {json.dumps(line["plan"]): line for line in lines}

    def score(self, plan: Any) -> dict[str, Any]:
        """As ``Scorer.score`` gives it. A plan that fails ends the benchmark."""
        from pfray import objective
        from pfray.measure.evaluation import Measurement

        key = json.dumps(plan)
        if key not in self.known:
            result, scorer = self.scorer.score(plan), self.scorer
            if "error" in result:
                raise RuntimeError(f"{plan}: {result['error']}")
            assert scorer.reference is not None
            _, its = scorer.latencies[repr(scorer.compressed.model)]
            reference = {**scorer.reference.to_dict(), "latency_ms": its}
            self.known[key] = {"plan": plan, "student": result["measurement"], "teacher": reference}
            with self.path.open("a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
        own, teacher = (Measurement(**self.known[key][which]) for which in ("student", "teacher"))
        return {"score": objective.score(self.objective, own, teacher), "measurement": own.to_dict()}


def searched(
    rewards: Rewards, students: int, seed: int, folder: Path | None = None, policy: str | None = None
) -> list[Any]:
    """The records of a search by policy gradient. folder: where its policy is kept. policy: the run to start from."""
    from benchmarks.studies.searching import run_search
    from pfray.config.registry import find_class
    from pfray.search.base import PlanSearcher

    found: Any = find_class("search", "policy_gradient", PlanSearcher)
    settings = found.settings_type(**({"policy_from": policy} if policy else {}))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    options = {"seed": seed, "trials": students, "use_full_budget": False, "folder": folder}
    searcher = found(rewards.space, rewards.limits, settings, **options)
    run_search(rewards, searcher)
    return searcher.records


def coin_flips(rewards: Rewards, students: int, seed: int) -> list[Any]:
    """Records of students within the limits of which each layer is kept or removed by chance, none of them twice."""
    import numpy as np

    rng = np.random.default_rng(seed)
    records: dict[str, Any] = {}
    for _ in range(1000 * students):
        plan = rewards.space.decode(rng.integers(0, 2, len(rewards.space)).astype(float))
        if json.dumps(plan) not in records and rewards.space.meets(plan, rewards.limits):
            records[json.dumps(plan)] = {"plan": plan, "score": rewards.score(plan)["score"]}
        if len(records) == students:
            break
    return list(records.values())
