"""A quantized weight as its codes: whole numbers of k bits, and the lattice that is stored beside them.

Two forms, of which the smaller one after compression is kept: ``bits``, n k bits without a gap, and ``bytes``, one byte
a code, whose common values zstandard's Huffman coding gives fewer than k bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pfray.quantization.affine import MAX_BITS, MIN_BITS
from pfray.quantization.qparams import Lattice, lattice_of

FORMS = ("bits", "bytes")


def streams(state_dict: Mapping[str, Tensor], name: str) -> dict[str, bytes]:
    """The codes of the weight ``name`` in both forms; none where it is not just what its lattice makes of them."""
    weight, lattice = state_dict[name].detach().cpu(), lattice_of(state_dict, name)
    if lattice is None or not weight.numel() or not weight.isfinite().all():
        return {}
    lattice = _on_cpu(lattice)
    codes = lattice.encode(weight)
    again = lattice.decode(codes)
    if again.dtype != weight.dtype or not torch.equal(_bytes(again), _bytes(weight)):
        return {}
    flat = codes.flatten().to(torch.uint8).numpy()
    bits = np.unpackbits(flat[:, None], axis=1, count=lattice.bits, bitorder="little")
    return {"bits": np.packbits(bits).tobytes(), "bytes": flat.tobytes()}


def frame_size(form: str, count: int, lattice: Lattice) -> int:
    """Bytes of ``count`` codes. Raises ValueError for a lattice that is none of so many weights."""
    _check(lattice, count)
    return (count * lattice.bits + 7) // 8 if form == "bits" else count


def restore(raw: np.ndarray, form: str, shape: Sequence[int], lattice: Lattice) -> Tensor:
    """The inverse: the weight. Raises ValueError for codes that the lattice has not."""
    count = math.prod(shape)
    if form == "bits":
        bits = np.unpackbits(raw, count=count * lattice.bits).reshape(count, lattice.bits)
        raw = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    if raw.max(initial=0) >= 2**lattice.bits:
        raise ValueError(f"codes of more than {lattice.bits} bits")
    return lattice.decode(torch.from_numpy(raw.copy()).view(*shape))


def _check(lattice: Lattice, count: int) -> None:
    if not MIN_BITS <= lattice.bits <= MAX_BITS:
        raise ValueError(f"a lattice of {lattice.bits} bits")
    if lattice.codebook is not None:
        fits = lattice.codebook.dim() == 2 and lattice.codebook.shape[1] == 2**lattice.bits
        buckets, parts = len(lattice.codebook) if fits else 0, [lattice.codebook]
    else:
        assert lattice.low is not None
        assert lattice.step is not None
        fits = lattice.low.dim() == 1 and lattice.low.shape == lattice.step.shape
        buckets, parts = len(lattice.low) if fits else 0, [lattice.low, lattice.step]
    if not fits or not 1 <= buckets <= count or not all(part.is_floating_point() for part in parts):
        raise ValueError(f"a lattice of the shapes {[tuple(part.shape) for part in parts]} for {count} weights")


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(-1).view(torch.uint8)


def _on_cpu(lattice: Lattice) -> Lattice:
    parts = (lattice.low, lattice.step, lattice.codebook)
    return Lattice(lattice.bits, *(None if part is None else part.detach().cpu() for part in parts))
