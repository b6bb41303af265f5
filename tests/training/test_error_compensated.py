"""Gradients of a few bits: the quantizer's mean, its bytes, and the error that is fed back, worked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from pfray.training import error_compensated


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_mean_of_many_roundings_is_what_was_rounded(bits):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([-1.7, -0.9, -0.01, 0.0, 0.3, 0.8, 1.2, 2.0])
    draws = 20_000
    codes, scale = error_compensated.quantize(values.repeat(draws, 1), bits, torch.rand(draws, 8, generator=generator))
    rounded = error_compensated.dequantize(codes, scale, bits)
    assert scale[0] == 2.0
    # Rounding to levels `step` apart has a standard deviation of at most half of it.
    step = 2.0 / (2 ** (bits - 1) - 1)
    assert (rounded.mean(0) - values).abs().max() < 5 * step / 2 / draws**0.5
    assert (rounded - values).abs().max() < step
    # Zero and the largest magnitude are levels.
    assert rounded[:, 3].eq(0).all()
    assert rounded[:, 7].eq(2).all()


def test_noise_of_nearly_one_does_not_leave_the_levels_and_zeros_stay_zero():
    noise = torch.full((2, 4), 1 - 2**-24)
    codes, scale = error_compensated.quantize(torch.tensor([[3.0, -3.0, 1.0, 0.0], [0.0] * 4]), 8, noise)
    assert int(codes.max()) == 254
    assert error_compensated.dequantize(codes, scale, 8)[0, 0] == 3.0
    assert error_compensated.dequantize(codes, scale, 8)[1].eq(0).all()


def test_codes_are_packed_into_as_many_bits_as_they_have():
    codes = torch.tensor([[1, 0, 2, 1], [2, 2, 0, 1]], dtype=torch.uint8)
    packed = error_compensated.pack(codes, 2)
    assert packed.tolist() == [0b01_10_00_01, 0b01_00_10_10]
    for bits in (2, 4, 8):
        codes = torch.randint(2**bits - 1, (6, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        assert len(error_compensated.pack(codes, bits)) == 6 * 16 * bits // 8
        assert torch.equal(error_compensated.unpack(error_compensated.pack(codes, bits), bits, 16), codes)


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def bucket(parameter: torch.Tensor, gradient: list[float]) -> SimpleNamespace:
    buffer = torch.tensor(gradient)
    return SimpleNamespace(
        buffer=lambda: buffer, gradients=lambda: [buffer], parameters=lambda: [parameter], is_last=lambda: True
    )


def test_the_error_is_fed_back_and_decays_as_worked_by_hand(alone, monkeypatch):
    parameter = torch.zeros(4)
    exchange = error_compensated.Ecq({"w": parameter}, bits=2, group_size=4, compensation=0.5, decay=0.8, seed=0)
    monkeypatch.setattr(exchange, "noise", lambda index, values: torch.full((1, 4), 0.5))
    # The levels are -1, 0 and 1, and half is rounded up.
    first = exchange.send(bucket(parameter, [1.0, 0.5, -0.25, 0.0])).wait()
    assert first.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert exchange.errors["w"].tolist() == [0.0, -0.5, -0.25, 0.0]
    # g + h / 2 = [1, 0.25, -0.375, 0] is sent as [1, 0, 0, 0], and h' = 0.8 h + g - sent.
    second = exchange.send(bucket(parameter, [1.0, 0.5, -0.25, 0.0])).wait()
    assert second.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert exchange.errors["w"].tolist() == pytest.approx([0.0, 0.1, -0.45, 0.0])
    # A byte of four codes and a scale of four bytes, twice.
    assert exchange.sent_bytes == 10
    assert exchange.step == 2


def test_noise_depends_on_step_and_parameter_alone_and_padding_sends_nothing_else(alone):
    parameters = {"a": torch.zeros(3, 5), "b": torch.zeros(8)}
    exchange = error_compensated.Ecq(parameters, bits=2, group_size=8, compensation=0.2, decay=0.9, seed=3)
    drawn = exchange.noise(0, parameters["a"])
    assert drawn.shape == (2, 8)
    assert torch.equal(drawn, exchange.noise(0, parameters["a"]))
    assert not torch.equal(drawn, exchange.noise(1, parameters["a"]))
    kept = exchange.state_dict()
    exchange.step = 1
    assert not torch.equal(drawn, exchange.noise(0, parameters["a"]))
    exchange.load_state_dict(kept)
    assert torch.equal(drawn, exchange.noise(0, parameters["a"]))
