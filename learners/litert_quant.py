"""8-bit weights and activations for LiteRT's integer kernels (Wu et al. 2018, PocketFlow: ``UniformQuantTFLearner``).

The plan says for each layer whether it computes in 8 bits or stays float (32). Candidates of a search are quantized by
pfray's own fake quantization, which takes no graph and no second; what is trained and shipped is the PT2E graph of
``pfray/quantization/pt2e/int8_model.py``: post-training quantization where ``finetune.epochs`` is 0,
quantization-aware training otherwise.

Batch norms are folded with their statistics as they are before the training, so that they are frozen from its first
step on; PocketFlow's ``uqtf_freeze_bn_delay`` does that after some steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.learner.trainable import Learner
from pfray.nn.layers import run_order, weight_layers, without_skipped
from pfray.nn.modes import channels_last
from pfray.quantization import activations, affine, bit_space, qparams
from pfray.quantization.activations import Ranges
from pfray.quantization.bn_folding import channel_scales, fold, foldable_norms, folded, train_as_unfolded
from pfray.quantization.delayed_start import with_delays
from pfray.quantization.granularity import bucket_count, check_finite
from pfray.quantization.pt2e import int8_model
from pfray.quantization.pt2e.int8_model import Int8Model
from pfray.quantization.qparams import QParams
from pfray.space import CompressionSpace, Plan
from pfray.task import Task, example_input
from pfray.training.loop import Hook

BITS, FLOAT = 8, 32
BATCH = 50


@dataclass(frozen=True)
class Settings:
    """skip: layers left float, by name. images: training inputs that the ranges of the activations are found on.

    delay: optimizer steps of a training until activations are rounded (``pfray/quantization/delayed_start.py``).
    """

    skip: tuple[str, ...] = ()
    images: Annotated[int, Field(ge=1)] = 1000
    delay: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Prepared:
    """norms: the batch norms to fold, by layer. levels: of the folded weights. inputs: ranges of what layers read."""

    norms: dict[str, str]
    levels: dict[str, QParams]
    inputs: Ranges


class LitertQuant(Learner):
    settings_type = Settings

    @staticmethod
    def space(model: nn.Module, task: Task, settings: Settings) -> CompressionSpace:
        """One knob, 8 or 32 bits, for every convolution and linear layer; the cost is ``bits``, the weights' mean.

        Raises UnsupportedModel for an unknown name in ``skip``, and where no layer is left.
        """
        without_skipped(run_order(model, example_input(task)), settings.skip)
        if not (names := _names(model, task, settings)):
            raise UnsupportedModel(
                f"{type(model).__name__} has no layer to quantize. Remedy: another learner, or fewer layers in "
                "learner.skip"
            )
        return bit_space.layer_space(model, task, names, compressed=BITS, full=FLOAT, choices=(BITS, FLOAT))

    @staticmethod
    def prepare(model: nn.Module, task: Task, settings: Settings) -> Prepared:
        """Raises WeightsError for weights that are not finite."""
        names = _names(model, task, settings)
        norms = foldable_norms(model, example_input(task, next(model.parameters()).device))
        whole = folded(model, norms)
        levels = {}
        for name in names:
            weight = whole.get_submodule(name).get_parameter("weight").detach()
            check_finite(name, weight)
            count = bucket_count(weight, "channel", 0)
            low, step = affine.fit(weight, BITS, count, symmetric=True, method="min_max")
            levels[name] = QParams(BITS, low, step)
        inputs = activations.input_ranges(
            whole, names, task, bits=BITS, images=settings.images, method="min_max", percentile=100.0
        )
        return Prepared(norms, levels, inputs)

    @staticmethod
    def error_curves(model: nn.Module, task: Task, settings: Settings) -> dict[str, np.ndarray]:
        """What the predictions lose, to second order, by a layer's weight in 8 bits; nothing where it stays float."""
        prepared = LitertQuant.prepare(model, task, settings)
        levels = {name: [own] for name, own in prepared.levels.items()}
        curves = bit_space.error_curves(model, task, prepared.norms, levels)
        return {name: np.append(curve, 0.0) for name, curve in curves.items()}

    @staticmethod
    def compress(model: nn.Module, plan: Plan, settings: Settings, cache: Prepared, steps: int) -> Hook | None:
        fold(model, cache.norms)
        for name, width in plan.items():
            if width == BITS and name in cache.levels:  # not where an earlier learner has taken the layer out
                qparams.attach(model.get_submodule(name), cache.levels[name])
                activations.attach(model.get_submodule(name), *cache.inputs[name], BITS)
        return with_delays(model, None, settings.delay) if steps else None

    @staticmethod
    def finish(model: nn.Module, teacher: nn.Module, plan: Plan, task: Task, settings: Settings) -> Int8Model:
        """The PT2E graph, its ranges those of ``images`` training inputs. Raises UnsupportedModel."""
        device = next(model.parameters()).device
        images = task.batches(task.train.head(settings.images), BATCH, device)
        return _int8(model, plan, task, settings, (channels_last(inputs) for inputs, _ in images))

    @staticmethod
    def restructure(model: nn.Module, plan: Plan, task: Task, settings: Settings) -> Int8Model:
        device = next(model.parameters()).device
        # One batch, because the scales' shapes are known only when something was seen.
        return _int8(model, plan, task, settings, [example_input(task, device)])


def _int8(model: nn.Module, plan: Plan, task: Task, settings: Settings, batches: Iterable[Tensor]) -> Int8Model:
    example = example_input(task, next(model.parameters()).device)
    norms = foldable_norms(model, example)
    floats = [name for name in weight_layers(model) if plan.get(name, FLOAT) != BITS]
    quantized = int8_model.prepare(folded(model, norms), example, batches, floats)
    for name, scale in channel_scales(model, norms).items():
        train_as_unfolded(quantized.graph.get_parameter(f"{name}.weight"), scale)
    if settings.delay:
        quantized.round_after(settings.delay)
    return quantized


def _names(model: nn.Module, task: Task, settings: Settings) -> list[str]:
    names = run_order(model, example_input(task, next(model.parameters()).device))
    return [name for name in names if name not in settings.skip]
