"""A network whose modules are written out, so that the channels which they split and shuffle can go one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from pfray.nn.inputs import Inputs, call, tensors
from pfray.nn.modes import evaluating
from pfray.nn.parts import SWAPS, Shuffle, Split, write_out

# Functions that modules to be written out call.
MOVING = {"split", "channel_shuffle", "permute", *SWAPS}


def written_out(model: nn.Module, inputs: Inputs) -> nn.Module | None:
    """A copy in which all modules that can be are written out, and know how many channels they split and shuffle.

    None if no module can be, or if the outputs change.
    """
    model = copy.deepcopy(model)
    sizes: dict[nn.Module, int] = {}
    callers: dict[nn.Module, None] = {}
    try:
        with evaluating(model), _running() as stack, _Moving(stack, callers):
            before = tensors(call(model, inputs))
        changed = [write_out(module) for module in callers]
        parts = [module for module in model.modules() if isinstance(module, Split | Shuffle)]
        if not any(changed) and all(part.channels for part in parts):
            return None
        with evaluating(model), _running(sizes):
            after = tensors(call(model, inputs))
    except Exception:
        return None
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Split | Shuffle) and child in sizes:
                module._modules[name] = child.of(sizes[child], np.zeros(0, int))
    return model if len(before) == len(after) and all(map(torch.equal, before, after)) else None


@contextmanager
def _running(sizes: dict[nn.Module, int] | None = None) -> Iterator[list[nn.Module]]:
    """The modules that run now, from the outermost. sizes: channels that each split and shuffle gets, to be filled."""
    stack: list[nn.Module] = []

    def enter(module: nn.Module, given: Any) -> None:
        stack.append(module)
        if sizes is not None and isinstance(module, Split | Shuffle):
            sizes[module] = given[0].shape[module.axis]

    def leave(*_: Any) -> None:
        stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class _Moving(TorchFunctionMode):
    """Records the modules whose own forward pass calls one of ``MOVING``."""

    def __init__(self, stack: list[nn.Module], callers: dict[nn.Module, None]) -> None:
        super().__init__()
        self.stack, self.callers = stack, callers

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.stack and getattr(function, "__name__", "") in MOVING:
            self.callers[self.stack[-1]] = None
        return function(*args, **(kwargs or {}))
