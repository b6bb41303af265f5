"""Architecture search: a convolutional network trained from scratch, the baseline for compression (Pahwa et al. 2019
compare with Auto-Keras, Jin et al. 2019, which also uses Bayesian optimization; here any searcher works).

The networks are VGG-like (``pfray/models/vgg.py``): S stages of 3x3 convolutions with batch norm, each followed by a
pooling that halves the feature map, then one linear layer. The knobs are the depth and the width of every stage. The
teacher contributes only soft labels, if ``distill`` asks for them.

Notation: stage s has d_s <= D layers and c_s <= C_s channels; a plan holds the shares d_s / D and c_s / C_s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pfray.errors import UnsupportedModel
from pfray.learner.base import Algorithm, Compressed
from pfray.measure.cost import stored_bytes
from pfray.models.vgg import VGG
from pfray.nn.build import required_outputs, task_arguments
from pfray.nn.modes import place
from pfray.nn.output_checks import check_output
from pfray.nn.width_multiplier import scaled
from pfray.space import CompressionSpace, Knob, Plan

# Maximum number of widths that a stage can have.
WIDTHS = 16


@dataclass(frozen=True)
class Settings:
    """channels: C_s, the maximum of each stage, multiples of 8; their number is S.

    depth: D, the maximum number of layers of a stage.
    """

    channels: tuple[Annotated[int, Field(ge=16, multiple_of=8)], ...] = (64, 128, 256, 512, 512)
    depth: Annotated[int, Field(ge=1)] = 3

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels is empty. Remedy: one number for each stage, such as [64, 128, 256]")


class Architecture(Algorithm):
    settings: Settings
    settings_type = Settings
    from_scratch = True

    def space(self) -> CompressionSpace:
        """Two knobs per stage, ``depth`` and ``width``, as shares of the maximum.

        Costs: ``macs``, ``params``, and ``size_bytes`` of float32. Raises UnsupportedModel if the inputs cannot be
        halved S times, or the outputs do not fit the task.
        """
        settings, task = self.settings, self.task
        shape, least = task.input_shape, 2 ** len(settings.channels)
        if len(shape) != 3 or min(shape[1:]) < least:
            raise UnsupportedModel(
                f"learner.channels: {len(settings.channels)} stages halve the input as often, and one of shape {shape} "
                f"cannot be. Remedy: fewer stages, or images of {least}x{least} or more"
            )
        knobs = []
        for number, channels in enumerate(settings.channels):
            largest = {"params": float(9 * channels * channels), "outputs": float(channels)}
            if settings.depth > 1:
                depths = tuple((d + 1) / settings.depth for d in range(settings.depth))
                knobs.append(Knob(_name(number, "depth"), depths[0], 1.0, choices=depths, facts=largest, kind="depth"))
            counts = sorted({scaled(channels, (k + 1) / WIDTHS) for k in range(WIDTHS)})
            widths = tuple(count / channels for count in counts)
            knobs.append(Knob(_name(number, "width"), widths[0], 1.0, choices=widths, facts=largest, kind="width"))
        names = [knob.name for knob in knobs]
        smallest = {knob.name: knob.compressed for knob in knobs}
        with torch.random.fork_rng(devices=[]):
            check_output(build_network(smallest, settings, task_arguments(task)), task)
        return CompressionSpace(
            tuple(knobs), partial(_costs, names=names, settings=settings, shape=shape, outputs=required_outputs(task))
        )

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """The network of the plan, with weights drawn from torch's generator."""
        return Compressed(place(build_network(plan, self.settings, task_arguments(self.task)), self.device))


def build_network(plan: Plan, settings: Settings, task_args: Mapping[str, int]) -> nn.Module:
    """The network of a plan, with weights drawn from torch's generator. task_args: arguments given by the task."""
    return VGG(stage_channels(plan, settings), **task_args)


def stage_channels(plan: Plan, settings: Settings) -> list[list[int]]:
    """Channels of each layer, by stage."""
    found = []
    for number, channels in enumerate(settings.channels):
        depth = round(plan.get(_name(number, "depth"), 1.0) * settings.depth)
        found.append([round(plan[_name(number, "width")] * channels)] * depth)
    return found


def _name(number: int, what: str) -> str:
    return f"stage{number + 1}.{what}"


def _costs(
    values: np.ndarray, names: Sequence[str], settings: Settings, shape: tuple[int, ...], outputs: int
) -> dict[str, float]:
    channels, height, width = shape
    params = macs = 0
    for stage in stage_channels(dict(zip(names, values.tolist(), strict=True)), settings):
        for count in stage:
            weights = 9 * channels * count
            params += weights + 2 * count  # a scale and a shift for each channel
            macs += weights * height * width
            channels = count
        height, width = height // 2, width // 2
    params += (channels + 1) * outputs
    macs += channels * outputs
    return {"macs": float(macs), "params": float(params), "size_bytes": stored_bytes(params)}
