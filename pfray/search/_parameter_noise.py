"""Exploration by adaptive noise on an actor's parameters (Plappert et al. 2018, arXiv 1706.01905)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn


class ParameterNoise:
    """scale: standard deviation of the noise on each parameter outside layer norms.

    It is multiplied by ``RATE`` while perturbed actions are closer to the clean ones than desired, and divided by it
    while they are further (equation 3, with PocketFlow's rate and its mean absolute difference as the distance).
    """

    RATE = 1.03

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def perturbed(self, actor: nn.Module, rng: np.random.Generator) -> nn.Module:
        """A copy of the actor with parameter noise from ``rng``."""
        noisy = copy.deepcopy(actor)
        with torch.no_grad():
            for module in noisy.modules():
                if not isinstance(module, nn.LayerNorm):
                    for parameter in module.parameters(recurse=False):
                        draws = rng.standard_normal(parameter.shape, dtype=np.float32)
                        parameter.add_(self.scale * torch.from_numpy(draws))
        return noisy

    def adapt(self, distance: float, wanted: float) -> None:
        """Adapt the scale. distance: mean absolute difference over states between clean and perturbed actions."""
        self.scale *= self.RATE if distance <= wanted else 1 / self.RATE
