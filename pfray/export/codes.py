"""A quantized weight as its codes: whole numbers of k bits, and the lattice that is stored beside them.

Two forms, of which the smaller one after compression is kept: ``bits``, n k bits without a gap, and ``bytes``, one byte
a code, whose common values zstandard's Huffman coding gives fewer than k bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pfray.lattice import Lattice, lattice_of

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


def restore(raw: np.ndarray, form: str, shape: list[int], lattice: Lattice) -> Tensor:
    """The inverse: the weight."""
    count = int(np.prod(shape))
    if form == "bits":
        bits = np.unpackbits(raw, count=count * lattice.bits).reshape(count, lattice.bits)
        raw = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    return lattice.decode(torch.from_numpy(raw.copy()).view(shape))


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(-1).view(torch.uint8)


def _on_cpu(lattice: Lattice) -> Lattice:
    parts = (lattice.low, lattice.step, lattice.codebook)
    return Lattice(lattice.bits, *(None if part is None else part.detach().cpu() for part in parts))
