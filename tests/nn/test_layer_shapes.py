"""The shapes of layers that knobs know: by hand, in a pipeline, and where a knob is no layer."""

from __future__ import annotations

import torch
from torch import nn

from pfray.nn.layer_shapes import layer_shapes, with_layer_shapes
from pfray.space import SHAPE, CompressionSpace, Knob


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(8, 16, (3, 1)), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def test_outputs_inputs_height_width_stride_and_kernel_by_hand():
    found = layer_shapes(network(), torch.zeros(1, 3, 12, 16))
    assert {name: tuple(shape[key] for key in SHAPE) for name, shape in found.items()} == {
        "0": (8, 3, 12, 16, 2, 5), "2": (16, 8, 6, 8, 1, 3), "5": (10, 16, 1, 1, 0, 1),
    }  # fmt: skip
    assert layer_shapes(nn.Sequential(nn.Conv1d(2, 4, 3)), torch.zeros(1, 2, 9))["0"]["w"] == 9


def test_knobs_named_after_a_layer_know_its_shape_beside_what_they_knew():
    knobs = (Knob("0", 0.0, 1.0, facts={"params": 600}), Knob("bits:5", 0.0, 1.0), Knob("width", 0.0, 1.0))
    space = CompressionSpace(knobs, lambda values: {"params": float(values.sum())})
    found = with_layer_shapes(space, network(), torch.zeros(1, 3, 12, 16)).knobs
    assert found[0].facts == {"params": 600, "n": 8, "c": 3, "h": 12, "w": 16, "s": 2, "k": 5}
    assert found[1].facts["n"] == 10
    assert found[2].facts == {}
