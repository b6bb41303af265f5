"""Feature mimicking: the relative error of a student's stages beside its teacher's (Romero et al. 2015, "FitNets";
Wang et al. 2022, "Compressing models with few samples: mimicking then replacing").

FitNets trains a student's layer to give the features of its teacher's, by the squared error and through an adapter of
1x1 kernels where the widths differ. Mimicking then replacing shows that for a pruned network the squared error of the
last features alone is enough for its training, without labels. Here all stages count, each relative to the size of the
teacher's features, so that no stage outweighs the others.

Notation: s and t are the features of one stage, of student and teacher, of any shape with the batch on axis 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.nn.attention import module_by_module
from pfray.nn.inputs import Inputs, tensors
from pfray.nn.modes import evaluating, forward

# What groups modules, and is none of a network's repeated blocks.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Shape = tuple[int, ...]


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """||s - t||^2 / ||t||^2, a scalar over the whole batch."""
    size = teacher.square().sum().clamp_min(torch.finfo(teacher.dtype).tiny)
    return F.mse_loss(student, teacher, reduction="sum") / size


def share_left(step: int, total: int) -> float:
    """Factor on the weight of the features at ``step`` of ``total``: from 1 in a line to 0 at half of the steps."""
    return max(0.0, 1 - 2 * step / max(1, total))


@dataclass(frozen=True)
class Stage:
    """A module of both networks whose outputs are compared.

    axis: on which their channels lie. widths: number of channels of the student and of the teacher.
    """

    name: str
    axis: int
    widths: tuple[int, int]


@runtime_checkable
class Traced(Protocol):
    """A network whose modules have become a graph."""

    def stage_modules(self) -> dict[str, nn.Module]:
        """Modules of the graph whose outputs are those of the network's modules, by the names of the latter."""


class Features:
    """Outputs of the stages of a student and its teacher, and the adapters between them.

    The adapters are linear maps of the student's channels to the teacher's, as a convolution of 1x1 kernels is, one for
    each stage whose widths differ. They are trained with the student and are no part of it. With several workers all
    begin with the same ones, and ``average_gradients`` keeps them so.
    Raises UnsupportedModel if no stage is found.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, example: Inputs, seed: int) -> None:
        self.stages = find_stages(student, teacher, example)
        if not self.stages:
            raise UnsupportedModel(
                f"distill.features: the {type(student).__name__} and its teacher, a {type(teacher).__name__}, have no "
                "stage in common: no block or last module of a resolution with the same name and outputs (N, C, H, W) "
                "or (N, T, C) of the same size. Remedy: distill.features=0"
            )
        device = next(student.parameters()).device
        with torch.random.fork_rng(devices=[]):  # a student's own random layers are not to notice
            torch.manual_seed(seed)
            adapters = {str(i): nn.Linear(*s.widths) for i, s in enumerate(self.stages) if s.widths[0] != s.widths[1]}
        self.adapters = nn.ModuleDict(adapters).to(device)

    @contextmanager
    def of(self, model: nn.Module, found: list[Tensor]) -> Iterator[None]:
        """A block with a forward pass of ``model``, after which ``found`` holds the stages' outputs, in order."""
        with module_by_module(), _heard(model, [stage.name for stage in self.stages]) as heard:
            yield
        found[:] = [heard[stage.name].float() for stage in self.stages]

    def error(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean of the stages' relative errors."""
        pairs = zip(student, teacher, strict=True)
        errors = [relative_error(self._adapted(number, s), t) for number, (s, t) in enumerate(pairs)]
        return torch.stack(errors).mean()

    def _adapted(self, number: int, features: Tensor) -> Tensor:
        if str(number) not in self.adapters:
            return features
        axis = self.stages[number].axis
        return self.adapters[str(number)](features.movedim(axis, -1)).movedim(-1, axis)

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """Train the adapters by ``optimizer``, whose state dict has their weights from now on."""
        if not self.adapters:
            return
        optimizer.add_param_group({"params": list(self.adapters.parameters())})

        def add(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
            state["adapters"] = self.adapters.state_dict()

        def take(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
            self.adapters.load_state_dict(state["adapters"])

        optimizer.register_state_dict_post_hook(add)
        optimizer.register_load_state_dict_pre_hook(take)

    def average_gradients(self) -> None:
        """Give all workers the mean of the adapters' gradients, which no DistributedDataParallel exchanges."""
        for parameter in self.adapters.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def find_stages(student: nn.Module, teacher: nn.Module, example: Inputs) -> list[Stage]:
    """Stages of a compressed network and its teacher, by names that both have. example: inputs of a batch.

    The stages are the teacher's repeated blocks: of residual blocks, of a transformer's layers, of inception modules.
    A block counts where the student still has weights in it. A network without them, such as a plain row of
    convolutions, has a stage for each resolution: the last module that gives it. Both networks' features have to agree
    in all axes but one, the channels'.
    """
    known = _modules(student)
    common = [name for name in _modules(teacher) if name in known]
    with evaluating(teacher), module_by_module(), _heard(teacher, common) as theirs:
        forward(teacher, example)
    # The ranges of a quantized student may follow every forward pass.
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    with evaluating(student), module_by_module(), _heard(student, common) as own:
        forward(student, example)
    for name, buffer in student.named_buffers():
        buffer.copy_(buffers[name])
    pairs = {name: _stage(name, own[name], theirs[name]) for name in theirs if name in own}
    found = {name: stage for name, stage in pairs.items() if stage is not None}
    blocks = [name for name in repeated_blocks(teacher) if name in found]
    blocks = [name for name in blocks if isinstance(student, Traced) or _has_weights(known[name])]
    if blocks:
        return [found[name] for name in blocks]
    last: dict[Shape, str] = {}
    for name, stage in found.items():  # in the order in which they ended
        shape = list(theirs[name].shape)
        shape[stage.axis] = 0
        last[tuple(shape)] = name
    return [found[name] for name in last.values()]


def repeated_blocks(model: nn.Module) -> list[str]:
    """Names of the outermost modules with modules inside of whose class there are several."""
    inner = {name: module for name, module in model.named_modules() if next(module.children(), None) is not None}
    kinds = Counter(type(module) for module in inner.values() if type(module) not in CONTAINERS)
    found: list[str] = []
    for name, module in inner.items():
        within = name.startswith(tuple(f"{outer}." for outer in found))
        if kinds[type(module)] > 1 and _has_weights(module) and not within:
            found.append(name)
    return found


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, without the network itself."""
    found = model.stage_modules() if isinstance(model, Traced) else dict(model.named_modules())
    return {name: module for name, module in found.items() if name}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _stage(name: str, s: Tensor, t: Tensor) -> Stage | None:
    """The stage, if both outputs are features whose sizes agree but for the channels."""
    if s.dim() != t.dim() or s.dim() not in (3, 4) or not (s.is_floating_point() and t.is_floating_point()):
        return None
    # Where all sizes agree, the axis matters for the resolution alone: channels come last in what has three axes.
    differing = [axis for axis in range(s.dim()) if s.shape[axis] != t.shape[axis]] or [1 if s.dim() == 4 else 2]
    return Stage(name, differing[0], (s.shape[differing[0]], t.shape[differing[0]])) if len(differing) == 1 else None


@contextmanager
def _heard(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """First output tensors of the modules ``names`` that run within the block, by name in the order in which they end.
    """
    heard: dict[str, Tensor] = {}

    def note(name: str, outputs: Any) -> None:
        heard.pop(name, None)  # the last of several runs counts
        if found := tensors(outputs):
            heard[name] = found[0]

    modules = _modules(model)
    handles = [
        modules[name].register_forward_hook(lambda _, inputs, outputs, name=name: note(name, outputs)) for name in names
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
