"""Fingerprints of models, for the keys of cached results: structure, state and outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfray.nn.inputs import call, join, map_tensors, moved, tensors
from pfray.nn.modes import evaluating
from pfray.task import Task
from pfray.utils.cache import state_bytes


def fixed_batch_outputs(model: nn.Module, task: Task) -> Tensor:
    """The model's outputs in a row, float32, on the first two training inputs and, of inputs that are floats, on three
    times their values, where activations saturate; only on the two for a model that refuses those. Computed by one
    thread, so that one machine always gives the same.
    """
    device = next(model.parameters()).device
    inputs = task.normalize(moved(task.train.head(2).inputs, device))
    larger = map_tensors(lambda tensor: 3 * tensor if tensor.is_floating_point() else tensor, inputs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), evaluating(model):
            torch.manual_seed(0)
            try:
                outputs = tensors(call(model, join([inputs, larger])))
            except Exception:  # a check of the inputs' range, say
                outputs = tensors(call(model, inputs))
            return torch.cat([output.float().flatten().cpu() for output in outputs])
    finally:
        torch.set_num_threads(threads)


def model_parts(model: nn.Module, task: Task) -> tuple[object, ...]:
    """Parts of a ``cache_key`` for a model: its printed form, its state, its outputs.

    The outputs identify ``forward``. They are rounded to a thousandth of the largest, because machines differ in the
    last bits. A machine that still rounds otherwise misses another one's cached result and computes it again.
    """
    outputs = fixed_batch_outputs(model, task)
    steps = (outputs / outputs.abs().max().clamp_min(1e-30) * 1000).nan_to_num().round().int()
    return repr(model), state_bytes(model), len(outputs), steps.numpy().tobytes()
