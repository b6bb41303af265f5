"""A number of bits for every layer, the folded model and its quantized weights: shared by the quantization learners.

Notation: layer t has a weight W_t of |W_t| elements, which a plan gives b_t bits. The cost ``bits`` is the mean over
all weights of layers with a knob, sum(b_t |W_t|) / sum(|W_t|) (Wu et al. 2018, section 3.3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from pfray.errors import ConfigError, UnsupportedModel
from pfray.measure.cost import FLOAT_BITS, count_params, layer_macs, stored_bytes
from pfray.nn.dense import can_shift, norms_behind, shift_output
from pfray.nn.layers import WeightLayer, run_order, sharing, weight_layers, without_skipped
from pfray.quantization import activations, qparams
from pfray.quantization.activations import Ranges
from pfray.quantization.affine import Range
from pfray.quantization.bias_correction import mean_error, mean_inputs
from pfray.quantization.bn_folding import fold, foldable_norms, folded
from pfray.quantization.delayed_start import with_delays
from pfray.quantization.equalization import Scales, equalize, equalizing_scales
from pfray.quantization.fisher import fisher, lost_share
from pfray.quantization.granularity import Buckets, bucket_count, check_finite
from pfray.quantization.qparams import QParams
from pfray.space import CompressionSpace, Knob, Plan
from pfray.task import Task, example_input
from pfray.training.hooks import Hook

Bits = Annotated[int, Field(ge=1, le=8)]


@dataclass(frozen=True)
class BitSettings:
    """Settings of every quantization learner.

    min_bits, max_bits: the ends of every layer's knob. skip: layers left float, by name.
    ends: quantize the first and the last layer too; they hold few weights and lose much.
    fold: fold batch norms into the layers before them first. Off by default: with a bucket for each channel folding
        changes no output, because a channel's scale scales its range too, but it costs two things. A search
        re-estimates batch-norm statistics, which is most of the accuracy at 2 and 3 bits; and batch norms keep a
        training stable, without which it needs about a tenth of the learning rate. Useful for 8 bits without training.
    buckets: granularity of ranges and codebooks: the whole ``tensor``, every output ``channel`` (of a transposed
        convolution every input channel), or every ``run`` of at most bucket_size weights.
    activation_bits: bits of the quantized layers' inputs, 2 to 8; null leaves them float. images: training inputs that
        their ranges are found on. range_from: how, also for even levels of the weights: ``min_max``, the ``percentile``
        at both ends, or ``mse``, the least squared error.
    equalize: with ``fold``, make the ranges of layers in a row equal first, channel by channel (``equalization.py``).
        Off by default: useful with ``buckets: tensor``, and no help where each channel has its own range.
    bias_correction: take the mean of the rounding's effect on a layer's outputs off its bias (``bias_correction.py``),
        or off the batch norm behind it, until that is re-estimated.
    delay: optimizer steps of a training before activations are rounded. freeze_norms: steps after which the statistics
        of batch norms that are not folded stay fixed; null for never (``delayed_start.py``).
    """

    min_bits: Bits = 1
    max_bits: Bits = 8
    skip: tuple[str, ...] = ()
    ends: bool = False
    fold: bool = False
    buckets: Buckets = "channel"
    bucket_size: Annotated[int, Field(ge=1)] = 256
    activation_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    images: Annotated[int, Field(ge=1)] = 500
    range_from: Range = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.9
    delay: Annotated[int, Field(ge=0)] = 0
    freeze_norms: Annotated[int, Field(ge=0)] | None = None
    equalize: bool = False
    bias_correction: bool = True

    def __post_init__(self) -> None:
        if self.min_bits >= self.max_bits:
            raise ValueError(f"min_bits is {self.min_bits} and max_bits is {self.max_bits}; min_bits must be below")
        if self.delay and self.activation_bits is None:
            raise ValueError(f"delay is {self.delay} and activation_bits is null, so there is nothing to delay. "
                             "Remedy: activation_bits=8, or delay=0")  # fmt: skip
        if self.equalize and not self.fold:
            raise ValueError("equalize is true and fold is false, but batch norms between layers keep their ranges "
                             "apart. Remedy: fold=true, or equalize=false")  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Results that are the same for every plan.

    norms: the batch norms to fold, by layer. levels: quantization parameters by layer and bits. inputs: ranges of the
    layers' inputs; empty if those stay float. information: Fisher information of the weights, by layer; empty if the
    levels do not depend on it. scales: of the layers to equalize. means: mean inputs of the layers whose biases are
    corrected. shifted: batch norms that are not folded, by layer, which take a correction in place of a bias.
    """

    norms: dict[str, str]
    levels: dict[str, dict[int, QParams]]
    inputs: Ranges
    information: dict[str, Tensor] = field(default_factory=dict)
    scales: Scales = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    shifted: dict[str, str] = field(default_factory=dict)

    def error_curves(self, model: nn.Module, task: Task) -> dict[str, np.ndarray]:
        """Loss of the predictions, to second order, by a layer's bits."""
        levels = {name: list(own.values()) for name, own in self.levels.items()}
        return error_curves(model, task, self.norms, levels, self.information, self.scales)


def quantized_layers(model: nn.Module, task: Task, settings: BitSettings) -> list[str]:
    """The layers that are quantized, in the order in which they run."""
    names = run_order(model, example_input(task, next(model.parameters()).device))
    return [name for name in (names if settings.ends else names[1:-1]) if name not in settings.skip]


def bit_space(
    model: nn.Module, task: Task, settings: BitSettings, numbers: Callable[[np.ndarray], np.ndarray | float]
) -> CompressionSpace:
    """A knob, the bits, for the weight of every quantized layer; costs as in ``layer_space``.

    numbers(bits): float32 numbers that describe a bucket of so many bits, for ``size_bytes``. Raises UnsupportedModel
    for an unknown name in ``skip``, and if no layer is left.
    """
    without_skipped(run_order(model, example_input(task)), settings.skip)
    names = quantized_layers(model, task, settings)
    if not names:
        raise UnsupportedModel(
            f"{type(model).__name__} has no layer to quantize beside its first and its last. Remedy: "
            "learner.ends=true quantizes those too, or fewer layers in learner.skip"
        )
    layers = weight_layers(model)
    counts = np.array([bucket_count(layers[name].weight, settings.buckets, settings.bucket_size) for name in names])
    ends = {"compressed": settings.min_bits, "full": settings.max_bits, "integer": True, "kind": "bits"}
    return layer_space(model, task, names, partial(_described, counts=counts, numbers=numbers), **ends)


def layer_space(
    model: nn.Module,
    task: Task,
    names: Sequence[str],
    described: Callable[[np.ndarray], float] | None = None,
    **knob: Any,
) -> CompressionSpace:
    """A knob with the fields ``knob`` for each layer of ``names``.

    Costs: ``bits``, the mean over the weights of these layers; ``size_bytes``, all parameters at their bits plus
    ``described(bits)`` for the buckets' descriptions.
    """
    layers, macs = weight_layers(model), layer_macs(model, example_input(task))
    facts = {name: {"params": layers[name].weight.numel(), "macs": macs[name]} for name in names}
    sizes = np.array([facts[name]["params"] for name in names])
    knobs = tuple(Knob(name, facts=facts[name], **knob) for name in names)
    return CompressionSpace(knobs, partial(_costs, sizes=sizes, params=count_params(model)[0], described=described))


def prepare(
    model: nn.Module, task: Task, settings: BitSettings, fit: Callable[..., QParams], *, weighed: bool = False
) -> Prepared:
    """Fold, calibrate, and fit the levels of every layer for every number of bits.

    fit(weight, bits, buckets): quantization parameters of a weight. weighed: fit gets the weight's Fisher information
    as a fourth argument. Raises WeightsError for weights that are not finite, UnsupportedModel for a layer that
    calibration does not reach.
    """
    names = quantized_layers(model, task, settings)
    for name, layer in weight_layers(model).items():
        check_finite(name, layer.weight)
    example = example_input(task, next(model.parameters()).device)
    norms = foldable_norms(model, example) if settings.fold else {}
    whole = folded(model, norms)
    scales = equalizing_scales(whole, example) if settings.equalize else {}
    equalize(whole, scales)
    information = fisher(whole, names, task) if weighed else {}
    levels: dict[str, dict[int, QParams]] = {}
    for name in names:
        weight = whole.get_submodule(name).get_parameter("weight").detach()
        count = bucket_count(weight, settings.buckets, settings.bucket_size)
        widths = range(settings.min_bits, settings.max_bits + 1)
        beside = (information[name],) if weighed else ()
        levels[name] = {bits: fit(weight, bits, count, *beside) for bits in widths}
    inputs: Ranges = {}
    if settings.activation_bits is not None:
        ran = layer_macs(whole, example)
        inputs = activations.input_ranges(
            whole,
            [each for name in names for each in sharing(whole, name) if each == name or ran[each]],
            task,
            bits=settings.activation_bits,
            images=settings.images,
            method=settings.range_from,
            percentile=settings.percentile,
        )
    means: dict[str, Tensor] = {}
    shifted: dict[str, str] = {}
    if settings.bias_correction:
        shifted = norms_behind(whole, example, lambda module: isinstance(module, WeightLayer))
        means = mean_inputs(whole, [n for n in names if can_shift(whole, n, shifted)], task, settings.images)
    return Prepared(norms, levels, inputs, information, scales, means, shifted)


def error_curves(
    model: nn.Module,
    task: Task,
    norms: dict[str, str],
    levels: Mapping[str, Sequence[QParams]],
    information: Mapping[str, Tensor] | None = None,
    scales: Scales | None = None,
) -> dict[str, np.ndarray]:
    """Predicted damage, 0 to 1, of each of a layer's levels, most bits last (``fisher.py``).

    information: the Fisher information of the folded weights, if it is known already. scales: of equalized layers.
    """
    whole = folded(model, norms)
    equalize(whole, scales or {})
    information = information or fisher(whole, list(levels), task)
    curves = {}
    for name, own in levels.items():
        weight = whole.get_submodule(name).get_parameter("weight").detach()
        lost = [lost_share(information[name], each.quantize(weight) - weight) for each in own]
        curves[name] = np.minimum.accumulate(lost)  # more bits can do what fewer do
    return curves


def compress(
    model: nn.Module,
    plan: Plan,
    settings: BitSettings,
    prepared: Prepared,
    steps: int,
    make_hook: Callable[[dict[str, nn.Module], dict[str, Tensor]], Hook],
) -> tuple[nn.Module, Hook | None]:
    """(a copy of ``model`` quantized at once, the hook that keeps it so in a training of so many steps).

    make_hook(layers, their float weights) gives the hook.
    """
    model = copy.deepcopy(model)
    latents = quantize(model, plan, settings, prepared)
    if not steps:
        return model, None
    hook = make_hook({name: model.get_submodule(name) for name in latents}, latents)
    return model, with_delays(model, hook, settings.delay, settings.freeze_norms)


def quantize(model: nn.Module, plan: Plan, settings: BitSettings, prepared: Prepared) -> dict[str, Tensor]:
    """Fold and quantize in place. Returns the folded float weights of the plan's layers that the model has, by name.

    Raises ConfigError for bits that the settings do not allow.
    """
    fold(model, prepared.norms)
    equalize(model, prepared.scales)
    floats = {}
    for name, bits in plan.items():
        if name not in prepared.levels:
            continue  # an earlier learner has taken the layer out
        if bits not in prepared.levels[name]:
            raise ConfigError(f"{name}: {bits:g} bits are not allowed. Allowed: whole numbers from {settings.min_bits} "
                              f"to {settings.max_bits}. Remedy: learner.min_bits and learner.max_bits")  # fmt: skip
        layer = model.get_submodule(name)
        floats[name] = layer.get_parameter("weight").detach().clone()
        qparams.attach(layer, prepared.levels[name][int(bits)])
        if name in prepared.means:
            change = layer.get_parameter("weight").detach() - floats[name]
            shift_output(model, name, prepared.shifted, -mean_error(layer, change, prepared.means[name]))
        if settings.activation_bits is not None:
            for each in prepared.inputs.keys() & sharing(model, name):
                activations.attach(model, each, *prepared.inputs[each], settings.activation_bits)
    return floats


def _costs(
    values: np.ndarray, sizes: np.ndarray, params: int, described: Callable[[np.ndarray], float] | None
) -> dict[str, float]:
    size = stored_bytes(params, sizes, values) + (described(values) if described else 0.0)
    return {"bits": float(values @ sizes / sizes.sum()), "size_bytes": size}


def _described(bits: np.ndarray, counts: np.ndarray, numbers: Callable[[np.ndarray], np.ndarray | float]) -> float:
    """Bytes that describe all buckets."""
    return float(np.sum(counts * numbers(bits))) * FLOAT_BITS / 8
