"""8-bit weights and activations for LiteRT's integer kernels (Wu et al. 2018, PocketFlow: ``UniformQuantTFLearner``).

The plan decides for each layer between 8 bits and float (32). Candidates of a search are quantized by pfray's own fake
quantization, which needs no graph and less than a second. The PT2E graph of ``pfray/quantization/pt2e/int8_model.py``
is trained and shipped: post-training quantization if ``finetune.epochs`` is 0, else quantization-aware training.

Batch norms are folded with their statistics before the training, hence frozen from its first step on; PocketFlow's
``uqtf_freeze_bn_delay`` freezes them after some steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import nn

from pfray.errors import UnsupportedModel
from pfray.learner.base import Algorithm, Compressed
from pfray.measure.calibration import affordable_inputs, fewer_inputs_note
from pfray.measure.cost import total_macs
from pfray.nn.inputs import Inputs
from pfray.nn.layers import run_order, weight_layers, without_skipped
from pfray.quantization import activations, affine, bit_space, qparams
from pfray.quantization.activations import Ranges
from pfray.quantization.bn_folding import channel_scales, fold, foldable_norms, folded, train_as_unfolded
from pfray.quantization.delayed_start import with_delays
from pfray.quantization.granularity import bucket_count, check_finite
from pfray.quantization.pt2e import int8_model
from pfray.quantization.pt2e.int8_model import Int8Model
from pfray.quantization.qparams import QParams
from pfray.space import CompressionSpace, Plan
from pfray.task import example_input

BITS, FLOAT = 8, 32
BATCH = 50


@dataclass(frozen=True)
class Settings:
    """skip: layers that stay float, by name. images: training inputs for calibrating activation ranges;
    null: 1,000, or as many as cost 1.2e12 multiply-adds, each forward pass counted twice, but at least 50.

    delay: optimizer steps of a training before activations are rounded (``pfray/quantization/delayed_start.py``).
    """

    skip: tuple[str, ...] = ()
    images: Annotated[int, Field(ge=1)] | None = None
    delay: Annotated[int, Field(ge=0)] = 0


class LitertQuant(Algorithm):
    settings: Settings
    settings_type = Settings
    has_finish = True
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """One knob, 8 or 32 bits, per convolution and linear layer; the cost is ``bits``, the mean over weights.

        Raises UnsupportedModel for an unknown name in ``skip``, or if no layer remains.
        """
        without_skipped(run_order(self.model, example_input(self.task)), self.settings.skip)
        if not self.names:
            raise UnsupportedModel(
                f"{type(self.model).__name__} has no layer to quantize. Remedy: another learner, or fewer layers in "
                "learner.skip"
            )
        return bit_space.layer_space(
            self.model, self.task, self.names, compressed=BITS, full=FLOAT, choices=(BITS, FLOAT), kind="int8_switch"
        )

    @cached_property
    def names(self) -> list[str]:
        """Names of the layers with a knob, in the order in which they run."""
        names = run_order(self.model, example_input(self.task, self.device))
        return [name for name in names if name not in self.settings.skip]

    @cached_property
    def images(self) -> int:
        """Training inputs for calibration."""
        return self.settings.images or affordable_inputs(self.macs)

    @cached_property
    def macs(self) -> int:
        """Work of the calibration for each input: observing the values takes about as long as the forward pass."""
        return 2 * total_macs(self.model, example_input(self.task, self.device))

    def notes(self) -> list[str]:
        if self.settings.images is not None:
            return []
        return fewer_inputs_note("litert_quant", self.images, len(self.task.train), self.macs)

    @cached_property
    def norms(self) -> dict[str, str]:
        """The batch norm to fold into each layer."""
        return foldable_norms(self.model, example_input(self.task, self.device))

    @cached_property
    def levels(self) -> dict[str, QParams]:
        """Quantization levels of the folded weights. Raises WeightsError for weights that are not finite."""
        whole, found = folded(self.model, self.norms), {}
        for name in self.names:
            weight = whole.get_submodule(name).get_parameter("weight").detach()
            check_finite(name, weight)
            count = bucket_count(weight, "channel", 0)
            low, step = affine.fit(weight, BITS, count, symmetric=True, method="min_max")
            found[name] = QParams(BITS, low, step)
        return found

    @cached_property
    def inputs(self) -> Ranges:
        """Ranges of the layers' inputs."""
        whole = folded(self.model, self.norms)
        return activations.input_ranges(
            whole, self.names, self.task, bits=BITS, images=self.images, method="min_max", percentile=100.0
        )

    def error_curves(self) -> dict[str, np.ndarray]:
        """Second-order damage to the predictions by a layer's weight in 8 bits; 0 in float."""
        levels = {name: [own] for name, own in self.levels.items()}
        curves = bit_space.error_curves(self.model, self.task, self.norms, levels)
        return {name: np.append(curve, 0.0) for name, curve in curves.items()}

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Rounds the layers' weights and inputs by fake quantization."""
        model = copy.deepcopy(self.model)
        fold(model, self.norms)
        for name, width in plan.items():
            if width == BITS and name in self.levels:  # not where an earlier learner has taken the layer out
                qparams.attach(model.get_submodule(name), self.levels[name])
                activations.attach(model, name, *self.inputs[name], BITS)
        return Compressed(model, with_delays(model, None, self.settings.delay) if steps else None)

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The PT2E graph, calibrated on ``images`` training inputs.

        Raises UnsupportedModel for a model that PT2E cannot quantize.
        """
        images = self.task.batches(self.task.train.head(self.images), BATCH, self.device)
        structure = self.structure(plan)
        return Compressed(self._graph(structure, (inputs for inputs, _ in images)), structure=structure)

    def structure(self, plan: Plan) -> list[str]:
        """Names of the layers that stay float."""
        return [name for name in weight_layers(self.model) if plan.get(name, FLOAT) != BITS]

    def rebuild(self, structure: list[str]) -> Int8Model:
        # One batch, because the observers determine the shapes of the scales.
        return self._graph(structure, [example_input(self.task, self.device)])

    def _graph(self, floats: list[str], batches: Iterable[Inputs]) -> Int8Model:
        whole = folded(self.model, self.norms)
        quantized = int8_model.prepare(whole, example_input(self.task, self.device), batches, floats)
        for name, scale in channel_scales(self.model, self.norms).items():
            train_as_unfolded(quantized.graph.get_parameter(f"{name}.weight"), scale)
        if self.settings.delay:
            quantized.round_after(self.settings.delay)
        return quantized
