"""The numerical proof that taking channels out of a model changes nothing else.

If all weights that read a channel are 0, the outputs are the same with and without the channel. Both are computed, on
random inputs, with the model's own weights and with random ones, because some trained weights (a batch norm whose scale
is 0) would hide a mistake.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pfray.errors import first_line
from pfray.measure.cost import count_params
from pfray.measure.macs import count_macs
from pfray.nn.attention import calling_projections, module_by_module
from pfray.nn.inputs import Inputs, call, join, map_tensors, tensors
from pfray.nn.modes import evaluating
from pfray.pruning.channels.layer_entries import Removal, mask, owner_of, remove_entries

# Largest difference that counts as rounding, as a share of the largest output.
TOLERANCE = 1e-4


@contextmanager
def _restored(model: nn.Module, removals: Sequence[Removal]) -> Iterator[nn.Module]:
    """The model, whose layers are restored afterwards; copying the model would take longer than the proof."""
    layers = list({owner_of(model, removal): None for removal in removals})
    kinds = [type(layer) for layer in layers]
    saved = [
        # Recurrent layers have a list of their weights, changed with each of them.
        {**{key: list(value) if type(value) is list else value for key, value in vars(layer).items()},
         "_parameters": dict(layer._parameters), "_buffers": dict(layer._buffers),
         "_modules": dict(layer._modules)} for layer in layers
    ]
    try:
        yield model
    finally:
        for layer, kind, state in zip(layers, kinds, saved, strict=True):
            layer.__class__ = kind
            vars(layer).clear()
            vars(layer).update(state)


class Unprovable(Exception):
    """Nothing can be proven about the model. The text says why, in plain words."""


class Failure(NamedTuple):
    """The reason why a removal is refused: the forward pass ``fails``, or the property that changes."""

    kind: Literal["fails", "shape", "values", "costs", "training"]
    detail: str = ""


class Proof:
    """Tries removals on copies of ``model``, on the CPU; the model stays as it is.

    inputs: the example's. Floating-point ones are replaced by random numbers, if the model runs on those; integers,
    such as tokens, stay, because a model knows the meaning of few. Raises Unprovable.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        try:
            self.model = copy.deepcopy(model).cpu().float().eval()
            inputs = map_tensors(lambda x: x.detach().cpu(), inputs)
            self.inputs = _random(inputs) if self._runs(_random(inputs)) else inputs
            self.keys: Counter[str] = Counter()
            with calling_projections(self.model), self._counting_keys():
                self.macs, self.macs_of = count_macs(self.model, self.inputs)
            with evaluating(self.model):
                twice = [tensors(call(self.model, self.inputs)) for _ in range(2)]
        except Exception as error:
            raise Unprovable(f"the model cannot be copied and run on this input ({first_line(error)})") from error
        if not all(map(_same, *twice)):
            raise Unprovable("the model's outputs differ from run to run, or are not finite")
        self.params = count_params(self.model)[0]
        self._drawn: nn.Module | None = None
        failure = self._training_failure([])
        self._trains = failure is None
        if failure:
            logging.getLogger("pfray").warning(
                "%s: pruned networks are tried in evaluation mode only, since the model itself does not run in "
                "training mode (%s)",
                type(model).__name__,
                failure.detail,
            )

    def failure(
        self,
        removals: Sequence[Removal],
        *,
        drawn: bool,
        costs: Mapping[str, float] | None = None,
        training: bool = False,
    ) -> Failure | None:
        """The failure of taking ``removals`` out; None for a proven removal.

        drawn: use random weights instead of the model's own. costs: expected costs of the pruned model, tried if given.
        training: try the training mode too.
        """
        model = self._with_weights(drawn)
        try:
            with _restored(model, removals), module_by_module(), evaluating(model):
                mask(model, removals)
                before = tensors(call(model, self.inputs))
            with _restored(model, removals):
                remove_entries(model, removals)
                with module_by_module(), evaluating(model):
                    after = tensors(call(model, self.inputs))
                found = {"macs": count_macs(model, self.inputs)[0], "params": count_params(model)[0]} if costs else None
        except Exception as error:
            return Failure("fails", first_line(error))
        if [output.shape for output in before] != [output.shape for output in after]:
            return Failure("shape")
        if not all(map(_same, before, after)):
            return Failure("values")
        if found != costs:
            return Failure("costs", f"{found} instead of {costs}")
        return self._training_failure(removals) if training and self._trains else None

    @contextmanager
    def _counting_keys(self) -> Iterator[None]:
        """Counts the tokens that each ``nn.MultiheadAttention`` takes its keys from, in ``keys``."""

        def count(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            key = kwargs["key"] if "key" in kwargs else args[1]
            self.keys[name] += key.shape[:-1].numel()

        handles = [
            module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: count(name, args, kwargs), with_kwargs=True
            )
            for name, module in self.model.named_modules()
            if isinstance(module, nn.MultiheadAttention)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _runs(self, inputs: Inputs) -> bool:
        try:
            with evaluating(self.model):
                call(self.model, inputs)
        except Exception:
            return False
        return True

    def _training_failure(self, removals: Sequence[Removal]) -> Failure | None:
        """The failure in training mode, in which some layers run only then or differently."""
        model = copy.deepcopy(self.model).train()
        # Two samples, because batch norms cannot train on one.
        inputs = join([self.inputs, self.inputs])
        try:
            remove_entries(model, removals)
            with torch.no_grad():
                call(model, inputs)
        except Exception as error:
            return Failure("training", first_line(error))
        return None

    def _with_weights(self, drawn: bool) -> nn.Module:
        if not drawn:
            return self.model
        if self._drawn is None:
            model = copy.deepcopy(self.model)
            _draw(model, torch.Generator().manual_seed(0))
            with evaluating(model):
                finite = all(bool(output.isfinite().all()) for output in tensors(call(model, self.inputs)))
            self._drawn = model if finite else self.model
        return self._drawn


def _random(inputs: Inputs) -> Inputs:
    """The inputs with normal noise in place of floating-point tensors."""
    generator = torch.Generator().manual_seed(0)
    return map_tensors(lambda x: torch.randn(x.shape, generator=generator) if x.is_floating_point() else x, inputs)


@torch.no_grad()
def _draw(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights and statistics, under which activations neither vanish nor explode in a deep network."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() > 1:
            fan_in = parameter.numel() / len(parameter)
            parameter.normal_(0.0, 1.2 / max(1.0, fan_in) ** 0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0.1, 0.2, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)


def _same(first: Tensor, second: Tensor) -> bool:
    """True if the tensors are equal but for rounding; NaN is never equal."""
    if not first.is_floating_point():
        return torch.equal(first, second)
    return bool(((first - second).abs() <= TOLERANCE * first.abs().max()).all()) if first.numel() else True
