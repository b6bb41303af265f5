"""Checks of a user's model: dense float32 parameters, deterministic outputs, and that it can be copied."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from ray import cloudpickle
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pfray.errors import UnsupportedModel, first_line, short
from pfray.nn.inputs import Inputs, call, count, take, tensors
from pfray.nn.modes import evaluating
from pfray.task import Task
from pfray.utils.random_state import generators, kept_generators

# Passes over the same inputs for a model that draws random numbers; a branch with probability 1/2 is then missed once
# in 30,000 checks.
PASSES = 16
# Allowed difference of two passes, as a share of the largest output.
TOLERANCE = 1e-4
# The same for a sample alone and beside another, which other kernels may compute.
BATCH_TOLERANCE = 1e-2


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
    check_not_meta(model)
    for name, parameter in model.named_parameters():
        known = True
        if is_lazy(parameter):
            continue
        where = f"the model {kind}: parameter {short(name)}"
        if parameter.device.type != "cpu":
            raise UnsupportedModel(f"{where} is on the device {parameter.device}. Remedy: model.cpu()")
        if parameter.layout != torch.strided:
            raise UnsupportedModel(f"{where} is of the layout {_plain(parameter.layout)}. Remedy: dense parameters")
        if (parameter.is_floating_point() or parameter.is_complex()) and parameter.dtype != torch.float32:
            raise UnsupportedModel(f"{where} is {_plain(parameter.dtype)}, not float32. Remedy: model.float()")
    if not known:
        raise UnsupportedModel(f"the model {kind} has no parameters, so nothing to compress. Remedy: another model")


def check_not_meta(model: nn.Module) -> None:
    """Raise UnsupportedModel for parameters and buffers on the meta device, which have no values."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedModel(
                f"the model {type(model).__name__}: {short(name)} is on the device meta and has no values. Remedy: "
                "build the model on the CPU, or model.to_empty(device='cpu') and then model.load_state_dict(...)"
            )


def check_values(model: nn.Module) -> None:
    """Raise UnsupportedModel for parameters that are not finite and for NaN in buffers (masks hold infinities)."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if (count := unfit_values(tensor, isinstance(tensor, nn.Parameter))) and not is_lazy(tensor):
            raise UnsupportedModel(
                f"the model {type(model).__name__}: {count} of {tensor.numel()} numbers of {short(name)} are NaN or "
                "infinite. Remedy: initialize it, or give weights of a training that did not diverge"
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
    """Raise UnsupportedModel unless outputs in evaluation mode are finite, repeat and do not depend on a batch's other
    samples, and the model can be copied and pickled. The global random generators are restored.
    """
    kind, inputs = type(model).__name__, task.normalize(task.train.head(2).inputs)
    with kept_generators(), evaluating(model):
        before = generators()
        first = _outputs(model, inputs)
        if not all(bool(torch.isfinite(output).all()) for output in first):
            raise UnsupportedModel(
                f"the model {kind} gives NaN or infinite outputs for the first training inputs. Remedy: look at its "
                "forward pass, its weights and the range of its inputs"
            )
        # Two passes miss a random branch half of the time; a model that draws no random numbers needs no more.
        passes = PASSES if generators() != before else 2
        apart = max(_apart(_outputs(model, inputs), first) for _ in range(passes - 1))
        if not apart <= TOLERANCE:
            raise UnsupportedModel(
                f"the model {kind} gives other outputs for the same inputs in evaluation mode (apart by {apart:.3g} of "
                "the largest), so nothing measured would hold. Remedy: random branches and noise only where "
                "self.training is True"
            )
        alone = _outputs(model, take(inputs, slice(0, 1)))
        if all(output.dim() and len(output) == count(inputs) for output in first) and alone:
            apart = _apart(alone, [output[:1] for output in first])
            if not apart <= BATCH_TOLERANCE:
                raise UnsupportedModel(
                    f"the model {kind} gives a sample other outputs alone than beside another one (apart by "
                    f"{apart:.3g} of the largest), so that a file for one sample would not be this model. Remedy: no "
                    "operation over axis 0, such as x.mean(0) or a norm without running statistics"
                )
    _check_copies(model, kind)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [output.float() for output in tensors(call(model, inputs))]


def _apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference of any output, as a share of its largest value; infinite for outputs of other shapes."""
    if [output.shape for output in found] != [output.shape for output in wanted]:
        return float("inf")
    pairs = zip(found, wanted, strict=True)
    shares = (float((own - other).abs().max()) / max(float(other.abs().max()), 1e-30) for own, other in pairs)
    return max(shares, default=0.0)


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
