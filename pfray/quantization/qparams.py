"""Quantization parameters of a layer's weight, kept as buffers of the layer and so in its state dict.

Notation: a weight in B buckets of k bits. ``weight`` stays a float tensor, of quantized values only. The buffers are

    weight_bits        k, a uint8 scalar
    weight_low         (B,) and
    weight_step        (B,): code c = 0 .. 2^k - 1 is the value c step + low (``affine.py``), or
    weight_codebook    (B, 2^k): code c is the c-th value of its bucket (``codebook.py``)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pfray.quantization import affine, codebook

PARTS = ("low", "step", "codebook", "bits")


@dataclass(frozen=True)
class QParams:
    """k bits and, for each bucket, low and step of its even levels, or a codebook."""

    bits: int
    low: Tensor | None = None
    step: Tensor | None = None
    codebook: Tensor | None = None

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight with every value replaced by the nearest level."""
        return self.decode(self.encode(weight))

    def encode(self, weight: Tensor) -> Tensor:
        """Codes of the nearest levels, in the weight's shape: integers in any dtype."""
        if self.codebook is not None:
            return codebook.encode(weight, self.codebook)
        assert self.low is not None
        assert self.step is not None
        return affine.encode(weight, self.low, self.step, self.bits)

    def decode(self, codes: Tensor) -> Tensor:
        """The levels of the codes; the same codes always give the same bits."""
        if self.codebook is not None:
            return codebook.decode(codes.long(), self.codebook)
        assert self.low is not None
        assert self.step is not None
        return affine.decode(codes.to(self.low.dtype), self.low, self.step)


def attach(layer: nn.Module, qparams: QParams) -> None:
    """Quantize a layer's weight in place and set the layer's buffers."""
    weight = layer.get_parameter("weight")
    buffers = {"low": qparams.low, "step": qparams.step, "codebook": qparams.codebook}
    # In the weight's own precision, in which its values have to decode to the same bits.
    own = {name: values.to(weight).clone() for name, values in buffers.items() if values is not None}
    layer.register_buffer("weight_bits", torch.tensor(qparams.bits, dtype=torch.uint8, device=weight.device))
    for name, values in own.items():
        layer.register_buffer(f"weight_{name}", values)
    with torch.no_grad():
        weight.copy_(QParams(qparams.bits, **own).quantize(weight))


def forget(model: nn.Module) -> None:
    """Remove the buffers, in place, and leave the weights: converters refuse buffers that nothing reads."""
    for module in model.modules():
        if "weight_bits" in module._buffers:
            for part in PARTS:
                module._buffers.pop(f"weight_{part}", None)


def qparams_of(state: Mapping[str, Tensor], name: str) -> QParams | None:
    """Quantization parameters of a state dict's entry ``name`` (such as ``conv1.weight``); None without any."""
    parts = {key: state.get(f"{name}_{key}") for key in PARTS}
    bits = parts.pop("bits")
    if bits is None or (parts["codebook"] is None and (parts["low"] is None or parts["step"] is None)):
        return None
    return QParams(int(bits), **parts)
