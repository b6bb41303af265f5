"""Noise on an actor's parameters: which it moves, by how much, and how its scale adapts."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from pfray.search._parameter_noise import ParameterNoise


def test_all_parameters_but_the_layer_norms_move_by_the_scale():
    actor = nn.Sequential(nn.Linear(50, 200), nn.LayerNorm(200), nn.ReLU(), nn.Linear(200, 1))
    before = {name: parameter.clone() for name, parameter in actor.named_parameters()}
    noisy = ParameterNoise(0.25).perturbed(actor, np.random.default_rng(0))
    moved = {name: (parameter - before[name]).detach() for name, parameter in noisy.named_parameters()}
    assert moved["0.weight"].std().item() == pytest.approx(0.25, rel=0.03)
    assert moved["0.bias"].std().item() == pytest.approx(0.25, rel=0.2)
    assert moved["1.weight"].abs().max() == moved["1.bias"].abs().max() == 0
    assert all((parameter == before[name]).all() for name, parameter in actor.named_parameters())


def test_the_scale_grows_while_actions_move_too_little_and_shrinks_while_too_far_by_hand():
    noise, scales = ParameterNoise(1.0), []
    for distance in (0.1, 0.2, 0.3, 0.3):
        noise.adapt(distance, wanted=0.2)
        scales.append(noise.scale)
    assert scales == pytest.approx([1.03, 1.0609, 1.03, 1.0])
