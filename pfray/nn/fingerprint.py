"""Fingerprints of models, for the keys of cached results: structure, state and outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfray.nn.modes import evaluating
from pfray.task import Task
from pfray.utils.cache import state_bytes


def fixed_batch_outputs(model: nn.Module, task: Task) -> Tensor:
    """The model's outputs ``(4, ...)`` float32 on the first two training inputs and on three times their values, where
    activations saturate; ``(2, ...)`` for a model that refuses those. Computed by one thread, so that one machine
    always gives the same.
    """
    inputs = task.normalize(task.train.inputs[:2]).to(next(model.parameters()).device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), evaluating(model):
            torch.manual_seed(0)
            try:
                return model(torch.cat([inputs, 3 * inputs])).float().cpu()
            except Exception:  # word indices, say, or a check of the inputs' range
                return model(inputs).float().cpu()
    finally:
        torch.set_num_threads(threads)


def model_parts(model: nn.Module, task: Task) -> tuple[object, ...]:
    """Parts of a ``cache_key`` for a model: its printed form, its state, its outputs.

    The outputs identify ``forward``. They are rounded to a thousandth of the largest, because machines differ in the
    last bits. A machine that still rounds otherwise misses another one's cached result and computes it again.
    """
    outputs = fixed_batch_outputs(model, task)
    steps = (outputs / outputs.abs().max().clamp_min(1e-30) * 1000).nan_to_num().round().int()
    return repr(model), state_bytes(model), tuple(outputs.shape), steps.numpy().tobytes()
