"""Checks of a user's model: dense float32 parameters, deterministic outputs, and that it can be copied."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from ray import cloudpickle
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pfray.errors import UnsupportedModel, first_line, short
from pfray.nn.modes import evaluating
from pfray.task import Task
from pfray.utils.random_state import generators, kept_generators

# Passes over the same inputs for a model that draws random numbers; a branch with probability 1/2 is then missed once
# in 30,000 checks.
PASSES = 16
# Allowed difference of two passes, as a share of the largest output.
TOLERANCE = 1e-4


def check_parameters(model: nn.Module) -> None:
    """Raise UnsupportedModel unless there are parameters, all dense float32 on the CPU, and no TorchScript."""
    kind, known = type(model).__name__, False
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f": {short(name)}" if name else ""
            raise UnsupportedModel(
                f"the model {kind}{where} is TorchScript, which cannot be taken apart or sent to workers. "
                "Remedy: the torch.nn.Module that it was made from"
            )
    for name, parameter in model.named_parameters():
        known = True
        if is_lazy(parameter):
            continue
        where = f"the model {kind}: parameter {short(name)}"
        if parameter.is_meta:
            raise UnsupportedModel(f"{where} is on the device meta and has no values. Remedy: build it on the CPU")
        if parameter.device.type != "cpu":
            raise UnsupportedModel(f"{where} is on the device {parameter.device}. Remedy: return model.cpu()")
        if parameter.layout != torch.strided:
            raise UnsupportedModel(f"{where} is of the layout {_plain(parameter.layout)}. Remedy: dense parameters")
        if (parameter.is_floating_point() or parameter.is_complex()) and parameter.dtype != torch.float32:
            raise UnsupportedModel(f"{where} is {_plain(parameter.dtype)}, not float32. Remedy: return model.float()")
    if not known:
        raise UnsupportedModel(f"the model {kind} has no parameters, so nothing to compress. Remedy: another model")


def check_values(model: nn.Module) -> None:
    """Raise UnsupportedModel for parameters that are not finite and for NaN in buffers (masks hold infinities)."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if (count := unfit_values(tensor, isinstance(tensor, nn.Parameter))) and not is_lazy(tensor):
            raise UnsupportedModel(
                f"the model {type(model).__name__}: {count} of {tensor.numel()} numbers of {short(name)} are NaN or "
                "infinite. Remedy: initialize it, or give model.weights of a training that did not diverge"
            )


def unfit_values(tensor: Tensor, parameter: bool) -> int:
    """Count of NaN and, in a parameter, of infinite values."""
    if is_lazy(tensor) or not tensor.numel() or not tensor.is_floating_point():
        return 0
    low, high = torch.aminmax(tensor.detach())
    if torch.isfinite(low) and torch.isfinite(high):
        return 0
    return int((~torch.isfinite(tensor) if parameter else tensor.isnan()).sum())


def check_evaluation(model: nn.Module, task: Task) -> None:
    """Raise UnsupportedModel unless outputs in evaluation mode are finite and repeat, and the model can be copied and
    pickled. The global random generators are restored.
    """
    kind, inputs = type(model).__name__, task.normalize(task.train.inputs[:2])
    with kept_generators(), evaluating(model):
        before = generators()
        first = model(inputs).float()
        if not torch.isfinite(first).all():
            raise UnsupportedModel(
                f"the model {kind} gives NaN or infinite outputs for the first training inputs. Remedy: look at its "
                "forward pass, its weights and the task's mean and std"
            )
        # Two passes miss a random branch half of the time; a model that draws no random numbers needs no more.
        passes = PASSES if generators() != before else 2
        apart = max(float((model(inputs).float() - first).abs().max()) for _ in range(passes - 1))
    if not apart <= TOLERANCE * float(first.abs().max()):
        raise UnsupportedModel(
            f"the model {kind} gives other outputs for the same inputs in evaluation mode (apart by {apart:.3g}), so "
            "nothing measured would hold. Remedy: random branches and noise only where self.training is True"
        )
    _check_copies(model, kind)


def _check_copies(model: nn.Module, kind: str) -> None:
    for what, make in (("copied", copy.deepcopy), ("sent to workers", cloudpickle.dumps)):
        try:
            make(model)
        except Exception as error:
            raise UnsupportedModel(
                f"the model {kind} cannot be {what} ({first_line(error)}). Remedy: keep locks, open files, generators "
                "and the like out of its attributes"
            ) from error


def _plain(kind: object) -> str:
    return str(kind).removeprefix("torch.")
