"""How a quantized layer says what its weight may be: buffers beside the weight, so that the state dict knows it too.

Notation: a weight in B buckets of k bits. ``weight`` stays a float tensor, of quantized values only, and beside it are

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
class Lattice:
    """The values of a weight: k bits, and of each bucket low and step, or a codebook."""

    bits: int
    low: Tensor | None = None
    step: Tensor | None = None
    codebook: Tensor | None = None

    def quantize(self, weight: Tensor) -> Tensor:
        """The nearest values."""
        return self.decode(self.encode(weight))

    def encode(self, weight: Tensor) -> Tensor:
        """Their codes, of the weight's shape; whole numbers, of whatever dtype."""
        if self.codebook is not None:
            return codebook.encode(weight, self.codebook)
        assert self.low is not None
        assert self.step is not None
        return affine.encode(weight, self.low, self.step, self.bits)

    def decode(self, codes: Tensor) -> Tensor:
        """The values of codes; the same codes always give the same bits."""
        if self.codebook is not None:
            return codebook.decode(codes.long(), self.codebook)
        assert self.low is not None
        assert self.step is not None
        return affine.decode(codes.to(self.low.dtype), self.low, self.step)


def attach(layer: nn.Module, lattice: Lattice) -> None:
    """Quantize a layer's weight, and describe it by the layer's buffers, made or replaced."""
    weight = layer.get_parameter("weight")
    buffers = {"low": lattice.low, "step": lattice.step, "codebook": lattice.codebook}
    # Of the weight's own precision, in which the values have to be found again.
    own = {name: values.to(weight).clone() for name, values in buffers.items() if values is not None}
    layer.register_buffer("weight_bits", torch.tensor(lattice.bits, dtype=torch.uint8, device=weight.device))
    for name, values in own.items():
        layer.register_buffer(f"weight_{name}", values)
    with torch.no_grad():
        weight.copy_(Lattice(lattice.bits, **own).quantize(weight))


def forget(model: nn.Module) -> None:
    """Take the descriptions away, in place, and leave the weights: for converters that have no use for them."""
    for module in model.modules():
        if "weight_bits" in module._buffers:
            for part in PARTS:
                module._buffers.pop(f"weight_{part}", None)


def lattice_of(state: Mapping[str, Tensor], name: str) -> Lattice | None:
    """The lattice of the entry ``name`` (such as ``conv1.weight``) of a state dict, None where it has none."""
    parts = {key: state.get(f"{name}_{key}") for key in PARTS}
    bits = parts.pop("bits")
    if bits is None or (parts["codebook"] is None and (parts["low"] is None or parts["step"] is None)):
        return None
    return Lattice(int(bits), **parts)
