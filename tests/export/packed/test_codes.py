"""Quantized weights are stored as codes of their width, and come back bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pfray.errors import WeightsError
from pfray.export.packed import codes, file
from pfray.quantization import affine, codebook
from pfray.quantization.qparams import QParams, attach

SIZE = 64 * 32 * 9


def layer(bits: int, buckets: int, kind: str = "uniform") -> nn.Module:
    torch.manual_seed(0)
    found = nn.Conv2d(32, 64, 3, bias=False)
    weight = found.weight.detach()
    if kind == "uniform":
        qparams = QParams(bits, *affine.fit(weight, bits, buckets))
    else:
        qparams = QParams(bits, codebook=codebook.fit(weight, bits, buckets))
    attach(found, qparams)
    return found


def size(state: dict[str, Tensor], path: Path) -> int:
    found = file.save(path, state)
    loaded = file.load(path)
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert torch.equal(loaded[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
    return found


@pytest.mark.parametrize("kind", ["uniform", "codebook"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_weight_of_k_bits_takes_at_most_k_bits_and_its_qparams(kind, bits, tmp_path):
    state = layer(bits, 64 if kind == "uniform" else 1, kind).state_dict()
    qparams = 2 * 64 * 4 if kind == "uniform" else 4 * 2**bits
    assert size(state, tmp_path / "w.packed") <= SIZE * bits / 8 * 1.01 + qparams + 700


@pytest.mark.parametrize("buckets", [1, 64, 37, 1000])
@pytest.mark.parametrize("kind", ["uniform", "codebook"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_whatever_the_buckets_and_the_memory_format_every_bit_comes_back(kind, buckets, format, tmp_path):
    model = layer(3, buckets, kind).to(memory_format=format)
    assert size(model.state_dict(), tmp_path / "w.packed") < SIZE * 4
    assert set(codes.streams(model.state_dict(), "weight")) == {"bits", "bytes"}


def test_codes_that_are_not_alike_often_are_entropy_coded_below_their_width(tmp_path):
    model = nn.Linear(100, 100, bias=False)
    with torch.no_grad():
        # One weight of 50 is not zero: 0.14 bits of entropy, and 4 bits wide.
        model.weight.copy_(torch.where(torch.arange(10_000).view(100, 100) % 50 == 0, 1.0, 0.0))
    attach(model, QParams(4, *affine.fit(model.weight, 4)))
    assert size(model.state_dict(), tmp_path / "w.packed") < 1_500 < 10_000 * 4 / 8


def test_three_bits_by_hand(tmp_path):
    state = {
        "weight": torch.tensor([0.5, 1.0, 4.0, 2.5]),
        "weight_bits": torch.tensor(3, dtype=torch.uint8),
        "weight_low": torch.tensor([0.5]),
        "weight_step": torch.tensor([0.5]),
    }
    # Codes 0, 1, 7, 4, little end first: 000 100 111 001, filled up with zeros.
    assert codes.streams(state, "weight") == {"bits": bytes([0b00010011, 0b10010000]), "bytes": bytes([0, 1, 7, 4])}
    size(state, tmp_path / "w.packed")


@pytest.mark.parametrize("change", ["off the levels", "nan", "minus zero", "low is lost"])
def test_a_weight_that_is_not_what_its_codes_say_is_stored_as_floats(change, tmp_path):
    state = copy.deepcopy(layer(2, 1).state_dict())
    if change == "off the levels":
        state["weight"].view(-1)[7] += 1e-6
    if change == "nan":
        state["weight"].view(-1)[7] = torch.nan
    if change == "minus zero":
        state["weight"].zero_()
        state["weight_low"].zero_()
        state["weight"].view(-1)[7] = -0.0
    if change == "low is lost":
        del state["weight_low"]
    assert codes.streams(state, "weight") == {}
    size(state, tmp_path / "w.packed")


def test_constant_and_all_zero_weights_come_back(tmp_path):
    for value in (0.0, -0.25):
        model = nn.Linear(8, 8, bias=False)
        with torch.no_grad():
            model.weight.fill_(value)
        attach(model, QParams(1, *affine.fit(model.weight, 1, 8)))
        assert (model.weight == value).all()
        size(model.state_dict(), tmp_path / "w.packed")


def test_a_file_without_the_qparams_of_its_codes_is_refused(tmp_path):
    state = layer(2, 1).state_dict()
    file.save(tmp_path / "w.packed", state)
    raw = (tmp_path / "w.packed").read_bytes().replace(b"weight_low", b"weight_lox")
    (tmp_path / "w.packed").write_bytes(raw)
    with pytest.raises(WeightsError, match="the quantization parameters of weight are missing"):
        file.load(tmp_path / "w.packed")


def test_four_bits_are_an_eighth_of_the_dense_file(tmp_path):
    state = layer(4, 64).state_dict()
    save_file({"weight": state["weight"].contiguous()}, tmp_path / "dense.safetensors")
    assert size(state, tmp_path / "w.packed") < 0.16 * (tmp_path / "dense.safetensors").stat().st_size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["uniform", "codebook"])
def test_half_precision_weights_have_their_width_too(kind, dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(64, 64, bias=False).to(dtype)
    weight = model.weight.detach().float()
    even, words = QParams(3, *affine.fit(weight, 3)), QParams(3, codebook=codebook.fit(weight, 3))
    attach(model, even if kind == "uniform" else words)
    assert size(model.state_dict(), tmp_path / "w.packed") < 64 * 64 * 3 / 8 + 800
