"""Measurements of a model: accuracy, parameters, multiply-adds, bytes, each field named with its unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pfray.errors import UnsupportedModel, first_line
from pfray.task import Split, Task

T = TypeVar("T")

FLOAT_BITS = 32
# Samples whose mean soft loss is one observation of its standard error.
GROUP = 10


@dataclass(frozen=True)
class Measurement:
    """What a model is worth and what it costs.

    accuracy: mean score of the task, a fraction for classification. loss: mean loss.
    accuracy_error: the accuracy's standard error, for samples drawn at random.
    agreement: minus the mean KL divergence from the teacher's soft labels, in nats (the task's ``soft_loss`` at a
        temperature of 1); None where there was no teacher. agreement_error: its standard error.
    params: all parameters. nonzero_params: those that are not 0.0.
    stored_bits: of all parameters: 32 for each float32, k for each weight quantized to k bits (``lattice.py``).
    macs: multiply-adds of one input through the dense model (1 MAC = one multiply and one add).
    size_bytes: bytes of the weights' file on disk; None where no file was written (in a trial).
    latency_ms: median time of one input; None where it was not timed.
    """

    accuracy: float
    loss: float
    params: int
    nonzero_params: int
    macs: int
    size_bytes: int | None = None
    latency_ms: float | None = None
    accuracy_error: float | None = None
    agreement: float | None = None
    agreement_error: float | None = None
    stored_bits: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def place(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The same model on ``device``, its convolutions in the memory format that is fastest there."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored afterwards."""
    with evaluation_mode(model), torch.inference_mode():
        yield


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision for ``bf16``; nothing for ``float32``."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@dataclass(frozen=True)
class Evaluation:
    """A model's outputs on a split, judged. The fields are those of Measurement."""

    accuracy: float
    loss: float
    accuracy_error: float
    agreement: float | None = None
    agreement_error: float | None = None


def outputs_of(
    model: nn.Module, task: Task, split: Split, batch_size: int = 250, precision: str = "float32"
) -> list[Tensor]:
    """The model's outputs on ``split``, a float32 tensor ``(N, ...)`` for each batch, on the model's device."""
    device = next(model.parameters()).device
    outputs = []
    with evaluating(model):
        for inputs, _ in task.batches(split, batch_size, device):
            with autocast(device, precision):
                outputs.append(model(channels_last(inputs)).float())
    return outputs


def judge(
    task: Task, split: Split, outputs: Sequence[Tensor], soft_labels: Sequence[Tensor] | None = None
) -> Evaluation:
    """Score, loss and agreement of ``outputs_of`` a model on ``split``; ``soft_labels`` are those of the teacher.

    The soft loss is a batch's mean, so its standard error is that of the means of groups of ``GROUP`` samples.
    """
    scores, losses, groups, start = [], [], [], 0
    with torch.inference_mode():
        for index, batch in enumerate(outputs):
            targets = split.targets[start : start + len(batch)].to(batch.device)
            start += len(batch)
            scores.append(task.score(batch, targets).float())
            losses.append(task.loss(batch, targets).float() * len(targets))
            if soft_labels is not None:
                pairs = zip(batch.split(GROUP), soft_labels[index].split(GROUP), strict=True)
                groups += [(len(own), task.soft_loss(own, soft, 1.0)) for own, soft in pairs]
    score = torch.cat(scores).double().cpu()
    evaluation = Evaluation(
        score.mean().item(), torch.stack(losses).double().sum().item() / len(split), _standard_error(score)
    )
    if not groups:
        return evaluation
    sizes = torch.tensor([size for size, _ in groups]).double()
    means = torch.stack([mean for _, mean in groups]).double().cpu()
    agreement = -((sizes * means).sum() / sizes.sum()).item()
    return replace(evaluation, agreement=agreement, agreement_error=_standard_error(means))


def evaluate(
    model: nn.Module, task: Task, split: Split, batch_size: int = 250, precision: str = "float32"
) -> Evaluation:
    """Accuracy and loss of ``model`` on ``split``, on the device that holds the model."""
    return judge(task, split, outputs_of(model, task, split, batch_size, precision))


def channels_last(inputs: Tensor) -> Tensor:
    """Images in the memory format that is fastest; anything else as it is."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _standard_error(values: Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else 0.0


def example_input(task: Task, device: torch.device | str = "cpu") -> Tensor:
    """``(1, C, H, W)``: the first training input, normalized."""
    return task.normalize(task.train.inputs[:1]).to(device)


def once_for_structure(
    known: WeakKeyDictionary[nn.Module, tuple[Any, T]], model: nn.Module, example: Tensor, find: Callable[..., T]
) -> T:
    """``find(model, example)``, once for a model object, and again where its structure or the example's has changed.

    known: what was found before, of all models.
    """
    shapes = [example.shape, *(parameter.shape for parameter in model.parameters())]
    if model not in known or known[model][0] != shapes:
        known[model] = shapes, find(model, example)
    return known[model][1]


def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds of one forward pass of ``example``, by the name of the module that does them.

    Raises UnsupportedModel where the model's forward fails on the input.
    """
    names = {module: name for name, module in model.named_modules()}
    # Not in inference mode: there lazy layers would make weights that cannot learn, and the counter trips over weights
    # that are computed.
    with FlopCounterMode(display=False) as counter, evaluation_mode(model), torch.no_grad():
        try:
            model(example)
        except (Exception, SystemExit) as error:
            reason = "it ends the program" if isinstance(error, SystemExit) else first_line(error)
            raise UnsupportedModel(
                f"the model {type(model).__name__} fails on an input of shape {tuple(example.shape)}: "
                f"{reason}. Remedy: choose a model for this shape, or data of another shape"
            ) from error
    root = type(model).__name__
    counts = {key.removeprefix(f"{root}."): sum(ops.values()) // 2 for key, ops in counter.get_flop_counts().items()}
    return {name: counts.get(name, 0) for name in names.values() if name}


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward pass, convolutions and matrix products counted."""
    # Without parameters that want a gradient: the counter trips over one that is handed from module to module.
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as counter, evaluating(model):
            model(example)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    return counter.get_total_flops() // 2


def count_params(model: nn.Module) -> tuple[int, int]:
    """(all parameters, those that are not zero)."""
    params = list(model.parameters())
    return sum(p.numel() for p in params), sum(int(torch.count_nonzero(p)) for p in params)


def stored_bits(model: nn.Module) -> int:
    """Bits of all parameters, each counted once; of a quantized weight its codes, not what describes its buckets."""
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            bits = getattr(module, f"{name}_bits", None)
            # Of layers that share a weight one says how many bits it has.
            if bits is not None or parameter not in found:
                found[parameter] = 8 * parameter.element_size() if bits is None else int(bits)
    return sum(parameter.numel() * bits for parameter, bits in found.items())


def stored_bytes(params: float, weights: np.ndarray | float = 0.0, bits: np.ndarray | float = FLOAT_BITS) -> float:
    """Bytes of ``params`` parameters in float32 of which, in each layer, so many ``weights`` have so many ``bits``.

    As ``stored_bits``: without what describes the buckets. Nor is a file's own overhead in it.
    """
    return float(params * FLOAT_BITS - np.sum(weights * (FLOAT_BITS - bits))) / 8


def latencies_ms(models: Sequence[nn.Module], example: Tensor, rounds: int = 30) -> list[float]:
    """Median milliseconds of one forward pass of ``example`` for each model.

    They are timed in turns, so that all are disturbed alike; passes that another process interrupted do not count,
    since on a busy machine that befalls the slower model more often. Where less than a third are left, all count.
    """
    times: list[list[tuple[float, bool]]] = [[] for _ in models]
    for turn in range(rounds + 3):
        for model, own in zip(models, times, strict=True):
            with evaluating(model):
                before, start = _interruptions(), time.perf_counter()
                model(example).sum().item()  # waits for the device
                if turn >= 3:
                    own.append((1e3 * (time.perf_counter() - start), _interruptions() > before))
    alone = [[took for took, interrupted in own if not interrupted] for own in times]
    return [
        median(few if 3 * len(few) >= rounds else [took for took, _ in own])
        for few, own in zip(alone, times, strict=True)
    ]


def _interruptions() -> int:
    """How often this thread has lost its processor to another; 0 where the system does not tell."""
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    except (ImportError, AttributeError, OSError):
        return 0


def measure(
    model: nn.Module,
    task: Task,
    split: Split,
    precision: str = "float32",
    macs: int | None = None,
    soft_labels: Sequence[Tensor] | None = None,
) -> Measurement:
    """Measure ``model`` on ``split``. ``macs`` may be given where it is already known, to save a pass.

    soft_labels: the teacher's ``outputs_of`` the split, to measure the agreement with.
    """
    evaluation = judge(task, split, outputs_of(model, task, split, precision=precision), soft_labels)
    return measurement_of(model, task, evaluation, macs)


def measurement_of(model: nn.Module, task: Task, evaluation: Evaluation, macs: int | None = None) -> Measurement:
    """What was evaluated, together with what the model costs."""
    params, nonzero = count_params(model)
    if macs is None:
        macs = total_macs(model, example_input(task, next(model.parameters()).device))
    return Measurement(
        params=params, nonzero_params=nonzero, macs=macs, stored_bits=stored_bits(model), **asdict(evaluation)
    )
