"""A learner that gives a network pruned by something else, so that a run trains it as it trains its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pfray.learner.base import Algorithm, Compressed
from pfray.measure.cost import count_params, stored_bytes, total_macs
from pfray.space import CompressionSpace, Plan
from pfray.task import example_input


@dataclass(frozen=True)
class Settings:
    """file: state dict of the pruned network, whose layers have the names of the whole one's."""

    file: Path


class PrunedElsewhere(Algorithm):
    settings: Settings
    settings_type = Settings

    def space(self) -> CompressionSpace:
        """No knobs; costs ``macs``, ``params``, and ``size_bytes`` of float32."""
        model = self.compress({}).model
        params = float(count_params(model)[0])
        macs = float(total_macs(model.cpu(), example_input(self.task)))
        costs = {"macs": macs, "params": params, "size_bytes": stored_bytes(params)}
        return CompressionSpace((), partial(_costs, costs))

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """The network of the file."""
        model = copy.deepcopy(self.model)
        take_weights(model, torch.load(self.settings.file, weights_only=True))
        return Compressed(model.to(self.device))


def _costs(costs: Mapping[str, float], values: np.ndarray) -> dict[str, float]:
    return dict(costs)


def take_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put weights of smaller sizes into a network's convolutions, linear layers and batch norms, in place."""
    for name, layer in model.named_modules():
        prefix = f"{name}." if name else ""
        for own, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, own, nn.Parameter(state[prefix + own].clone(), requires_grad=parameter.requires_grad))
        for own, _ in list(layer.named_buffers(recurse=False)):
            setattr(layer, own, state[prefix + own].clone())
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = len(layer.weight)
