"""Models of a candidate: made quickly, finished with care, or rebuilt from a state dict."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfray.learner.base import Algorithm, Compressed
from pfray.learner.context import Candidate, Context
from pfray.measure.evaluation import evaluate
from pfray.nn.modes import place
from pfray.training.batch_norm import BN_IMAGES, batch_norms, reestimate_batch_norm


@dataclass(frozen=True)
class Weights:
    """A model as data: its structure, JSON for ``Algorithm.rebuild``, and the state dict that fits into it.

    The structure None stands for the one that ``Algorithm.structure`` gives the plan.
    """

    structure: Any
    state: dict[str, Tensor]


def bound(candidate: Candidate, context: Context, device: torch.device) -> Algorithm:
    """The candidate's algorithm on a copy of the context's model, which a store may hold read-only."""
    return candidate.bind(place(copy.deepcopy(context.model), device), context.task)


def compressed(candidate: Candidate, context: Context, device: torch.device, steps: int) -> Compressed:
    """The candidate's model as ``Algorithm.compress`` makes it, for a training of so many steps."""
    return bound(candidate, context, device).compress(candidate.plan, steps)


def finished(
    candidate: Candidate, context: Context, start: tuple[Candidate, Weights] | None, device: torch.device
) -> Compressed:
    """The candidate's model as ``Algorithm.finish`` makes it. start: an earlier stage's candidate and trained model."""
    torch.manual_seed(context.seed)
    begun = None if start is None else rebuilt(start[0], context, start[1], device)
    return bound(candidate, context, device).finish(candidate.plan, begun)


def rebuilt(candidate: Candidate, context: Context, weights: Weights, device: torch.device) -> nn.Module:
    """The model of a structure, with its weights."""
    algorithm = bound(candidate, context, torch.device("cpu"))
    structure = algorithm.structure(candidate.plan) if weights.structure is None else weights.structure
    model = algorithm.rebuild(structure)
    model.load_state_dict(weights.state)
    return place(model, device)


def untrained(candidate: Candidate, context: Context) -> nn.Module:
    """The candidate's model without a training, on the CPU.

    Its batch norms are estimated again, as in a trial, where the validation split says that it helps: with 8 bits a
    weight the statistics of a whole training are the better ones.
    """
    model = compressed(candidate, context, torch.device("cpu"), steps=0).model
    if not candidate.plan or not batch_norms(model):
        return model
    again = copy.deepcopy(model)
    reestimate_batch_norm(again, context.task, BN_IMAGES, "float32")
    return max((model, again), key=lambda each: evaluate(each, context.task, context.task.validation).accuracy)
