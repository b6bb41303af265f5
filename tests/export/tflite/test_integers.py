"""Weights as integers: which levels they hold exactly, and how near they come to the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfray.export.tflite.integers import exact_int4, nearest_int8, packed_int4
from pfray.quantization import affine


def on_levels(bits: int, symmetric: bool, channels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """(values ``(O, n)``, steps ``(O,)``)"""
    weight = torch.randn(channels, 40, generator=torch.Generator().manual_seed(bits))
    low, step = affine.fit(weight, bits, channels, symmetric=symmetric)
    return affine.quantize(weight, low, step, bits).double().numpy(), step.double().numpy()


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_with_a_zero_among_them_are_exact(bits):
    values, step = on_levels(bits, symmetric=True)
    found = nearest_int8(values, step, bits)
    assert found.exact
    again = found.scale[:, None] * (found.codes.astype(int) - found.zero[:, None])
    assert np.abs(again - values).max() <= 1e-6 * np.abs(values).max()
    four = exact_int4(values, step, bits) if bits <= 4 else None
    if four:
        assert np.abs(four.scale[:, None] * four.codes - values).max() <= 1e-6 * np.abs(values).max()
        assert four.codes.min() >= -8
        assert four.codes.max() <= 7
    assert (four is not None) == (bits <= 4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_other_levels_are_as_near_as_255_integers_allow(bits):
    values, step = on_levels(bits, symmetric=False)
    found = nearest_int8(values, step, bits)
    assert not found.exact
    assert found.error < 1.1 / 255
    if bits <= 4:
        assert exact_int4(values, step, bits) is None


def test_the_errors_of_a_channel_cancel():
    """An offset as large as the rounding would add up over inputs of one sign."""
    values, step = on_levels(8, symmetric=False, channels=64)
    found = nearest_int8(values, step, 8)
    errors = found.scale[:, None] * (found.codes - found.zero[:, None].astype(float)) - values
    assert np.abs(errors.sum(1)).mean() < 0.25 * np.sqrt(values.shape[1]) * found.scale.mean()


def test_channels_of_zeros_and_constant_channels_are_exact():
    values = np.array([[0.0, 0.0], [-0.3, -0.3], [2.0, 2.0]])
    step = np.zeros(3)
    for found in (nearest_int8(values, step, 3), exact_int4(values, step, 3)):
        assert found is not None
        assert found.exact
        assert (found.scale > 0).all()
        assert (found.codes[0] - found.zero[0] == 0).all()


def test_a_channel_turned_around_has_a_negative_scale_or_no_int4():
    values = np.array([[-7.0, 8.0, 1.0], [-8.0, 7.0, 1.0]]) / 10
    step = np.full(2, 0.1)
    assert exact_int4(values, step, 4) is None
    found = exact_int4(values, step, 4, negative=True)
    assert found is not None
    assert np.sign(found.scale).tolist() == [-1, 1]
    assert found.codes.tolist() == [[7, -8, -1], [-8, 7, 1]]


def test_two_codes_share_a_byte_and_the_first_is_the_lower_half():
    assert packed_int4(np.array([[1, -1], [7, -8], [3, 0]], np.int8)).tolist() == [0xF1, 0x87, 0x03]
    assert packed_int4(np.array([[-2]], np.int8)).tolist() == [0x0E]
