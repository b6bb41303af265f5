"""Builds a candidate's model: fast (``compress``), final (``finish``), or from a saved state dict (``rebuild``)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfray.learner.base import Algorithm, Compressed, check_result
from pfray.learner.context import Candidate, Context
from pfray.nn.modes import keep_memory_format, place
from pfray.training.batch_norm import with_better_statistics


@dataclass(frozen=True)
class Weights:
    """A model as data: its structure, JSON for ``Algorithm.rebuild``, and a state dict that fits it.

    structure: None for the one that ``Algorithm.structure`` gives the plan.
    """

    structure: Any
    state: dict[str, Tensor]


def bind_candidate(candidate: Candidate, context: Context, device: torch.device) -> Algorithm:
    """The candidate's algorithm on a copy of the context's model, which Ray's object store may hold read-only."""
    return candidate.bind(place(copy.deepcopy(context.model), device), context.task)


def compress_candidate(candidate: Candidate, context: Context, device: torch.device, steps: int) -> Compressed:
    """The candidate's model by ``Algorithm.compress``, for a training of ``steps`` optimizer steps."""
    algorithm = bind_candidate(candidate, context, device)
    return check_result(algorithm, "compress", algorithm.compress(candidate.plan, steps))


def finish_candidate(
    candidate: Candidate,
    context: Context,
    start: tuple[Candidate, Weights] | None,
    device: torch.device,
    tell: Callable[[str], None] | None = None,
) -> Compressed:
    """The candidate's model by ``Algorithm.finish``. start: candidate and trained model of an earlier stage.

    tell: called with a few words on where a long one is.
    """
    torch.manual_seed(context.seed)
    trained = None if start is None else rebuild_candidate(start[0], context, start[1], device)
    algorithm = bind_candidate(candidate, context, device)
    algorithm.tell = tell or algorithm.tell
    return check_result(algorithm, "finish", algorithm.finish(candidate.plan, trained))


def rebuild_candidate(candidate: Candidate, context: Context, weights: Weights, device: torch.device) -> nn.Module:
    """The model of a structure with the weights loaded. Raises RuntimeError if they do not fit."""
    algorithm = bind_candidate(candidate, context, torch.device("cpu"))
    structure = algorithm.structure(candidate.plan) if weights.structure is None else weights.structure
    model = algorithm.rebuild(structure)
    keep_memory_format(context.model, model)
    model.load_state_dict(weights.state)
    return place(model, device)


def with_weights(model: nn.Module, weights: Weights) -> nn.Module:
    """A copy of ``model`` with the weights that its compressed form was trained to. Raises KeyError if one is missing.
    """
    trained = copy.deepcopy(model)
    trained.load_state_dict({name: weights.state[name] for name in trained.state_dict()})
    return trained


def untrained_model(candidate: Candidate, context: Context) -> nn.Module:
    """The candidate's model without training, on the CPU.

    Batch norms are re-estimated, as in a trial, if that raises the validation accuracy.
    """
    model = compress_candidate(candidate, context, torch.device("cpu"), steps=0).model
    return with_better_statistics(model, context.task) if candidate.plan else model
