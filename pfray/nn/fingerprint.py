"""What tells one model from another, for the keys of cached results: what it is made of, and what it does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfray.nn.modes import evaluating
from pfray.task import Task
from pfray.utils.cache import state_bytes


def fixed_batch_outputs(model: nn.Module, task: Task) -> Tensor:
    """``(4, ...)`` float32: the model's outputs on the first two training inputs, and on three times their values,
    which reach where activations saturate; ``(2, ...)`` where it takes no such inputs. One thread computes them, so
    that one machine always gives the same.
    """
    inputs = task.normalize(task.train.inputs[:2]).to(next(model.parameters()).device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), evaluating(model):
            torch.manual_seed(0)
            try:
                return model(torch.cat([inputs, 3 * inputs])).float().cpu()
            except Exception:  # numbers of words, say, or a check of the inputs' range
                return model(inputs).float().cpu()
    finally:
        torch.set_num_threads(threads)


def model_parts(model: nn.Module, task: Task) -> tuple[object, ...]:
    """What a cached result depends on of a model, for ``cache_key``: its printed form, its state, its outputs.

    The last tell what ``forward`` does. They are rounded to a thousandth of the largest one. Machines differ in the
    last bits of theirs, so that one may in rare cases not find what another has cached, and makes it again.
    """
    outputs = fixed_batch_outputs(model, task)
    steps = (outputs / outputs.abs().max().clamp_min(1e-30) * 1000).nan_to_num().round().int()
    return repr(model), state_bytes(model), tuple(outputs.shape), steps.numpy().tobytes()
