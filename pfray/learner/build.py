"""The compressed model of a plan, as a training starts from it: made at once, with care, or from what was kept."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pfray.learner.context import Job
from pfray.learner.trainable import Learner
from pfray.measure.evaluation import evaluate
from pfray.nn.modes import place
from pfray.space import Plan
from pfray.training.batch_norm import BN_IMAGES, batch_norms, reestimate_batch_norm


def build_compressed(
    learner: type[Learner], job: Job, plan: Plan, device: torch.device, steps: int
) -> tuple[nn.Module, Any]:
    """(a copy of the job's model on ``device`` compressed by ``plan``, the hook of its training)."""
    job, plan = job.for_plan(plan)
    model = place(copy.deepcopy(job.model), device)
    cache = learner.prepare(model, job.task, job.settings)
    return model, learner.compress(model, plan, job.settings, cache, steps)


def untrained(learner: type[Learner], job: Job, plan: Plan) -> nn.Module:
    """The model that the plan gives without a training, on the CPU.

    Its batch norms are put right, as those of a trial are, where the validation split says that it helps: with 8 bits a
    weight the statistics of a whole training are the better ones.
    """
    model, _ = build_compressed(learner, job, plan, torch.device("cpu"), steps=0)
    if not plan or not batch_norms(model):
        return model
    again = copy.deepcopy(model)
    reestimate_batch_norm(again, job.task, BN_IMAGES, "float32")
    return max((model, again), key=lambda each: evaluate(each, job.task, job.task.validation).accuracy)


def finishes(learner: type[Learner]) -> bool:
    """Whether the learner has a ``finish`` of its own."""
    return learner.finish is not Learner.finish


def finished(
    learner: type[Learner],
    job: Job,
    plan: Plan,
    before: tuple[Plan, dict[str, torch.Tensor]] | None,
    device: torch.device,
) -> nn.Module:
    """What ``learner.finish`` makes of the job's model. before: an earlier stage's plan and state dict."""
    torch.manual_seed(job.seed)
    model = place(copy.deepcopy(job.model), device) if before is None else restored(learner, job, *before, device)
    own, plan = job.for_plan(plan)
    return learner.finish(model, place(job.model, device), plan, own.task, own.settings)


def restored(
    learner: type[Learner], job: Job, plan: Plan, state: dict[str, torch.Tensor], device: torch.device
) -> nn.Module:
    """The model that a learner with a ``finish`` made of the job's model, from its state dict."""
    own, plan = job.for_plan(plan)
    model = copy.deepcopy(job.model)
    model = learner.restructure(model, plan, own.task, own.settings)
    model.load_state_dict(state)
    return place(model, device)
