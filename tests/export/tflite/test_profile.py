"""Where the time of a file goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pfray.export.tflite import convert, profile
from pfray.quantization.pt2e import int8_model


def test_every_operator_is_timed_and_the_largest_share_comes_first(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(9216, 2)).eval()
    inputs = torch.randn(4, 3, 16, 16)
    convert.export(model, inputs, tmp_path / "float.tflite")
    convert.export(int8_model.prepare(model, inputs, [inputs]), inputs, tmp_path / "int8.tflite")
    for name, kind in (("float", "float"), ("int8", "int8")):
        times = profile.operator_times(tmp_path / f"{name}.tflite")
        assert [each[:2] for each in times if each[0] == "CONV_2D"] == [("CONV_2D", kind)] * 2
        assert all(milliseconds > 0 for *_, milliseconds in times)
        found = profile.slow_operators(tmp_path / f"{name}.tflite", most=100)
        assert found[0]["operator"] == f"CONV_2D {kind}"  # 5.3 million multiply-adds of 5.4
        assert found[0]["count"] == 2
        assert sum(each["share"] for each in found) == pytest.approx(1)
        assert [each["share"] for each in found] == sorted((each["share"] for each in found), reverse=True)
    assert len(profile.slow_operators(tmp_path / "float.tflite", most=1)) == 1


def test_a_padding_in_front_of_a_convolution_is_part_of_it(tmp_path):
    """XNNPACK pads in the convolution; by itself the padding would look like the slowest operator."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()).eval()
    convert.export(model, torch.zeros(1, 3, 32, 32), tmp_path / "model.tflite")
    names = [name for name, *_ in profile.operator_times(tmp_path / "model.tflite")]
    assert "CONV_2D" in names
    assert "PAD" not in names
