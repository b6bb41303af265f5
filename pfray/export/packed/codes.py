"""Codes of a quantized weight: integers of k bits, decoded by the quantization parameters in the same state dict.

Of two forms the one that compresses better is kept: ``bits``, n k bits without a gap, and ``bytes``, one byte a code,
whose common values zstandard's Huffman coding gives fewer than k bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pfray.quantization.affine import MAX_BITS, MIN_BITS
from pfray.quantization.qparams import QParams, qparams_of

FORMS = ("bits", "bytes")


def streams(state_dict: Mapping[str, Tensor], name: str) -> dict[str, bytes]:
    """The codes of the weight ``name`` in both forms; empty if decoding them does not give the same bits."""
    weight, qparams = state_dict[name].detach().cpu(), qparams_of(state_dict, name)
    if qparams is None or not weight.numel() or not weight.isfinite().all():
        return {}
    qparams = _on_cpu(qparams)
    codes = qparams.encode(weight)
    again = qparams.decode(codes)
    if again.dtype != weight.dtype or not torch.equal(_bytes(again), _bytes(weight)):
        return {}
    flat = codes.flatten().to(torch.uint8).numpy()
    bits = np.unpackbits(flat[:, None], axis=1, count=qparams.bits, bitorder="little")
    return {"bits": np.packbits(bits).tobytes(), "bytes": flat.tobytes()}


def frame_size(form: str, count: int, qparams: QParams) -> int:
    """Bytes of ``count`` codes. Raises ValueError for parameters that do not fit so many weights."""
    _check(qparams, count)
    return (count * qparams.bits + 7) // 8 if form == "bits" else count


def restore(raw: np.ndarray, form: str, shape: Sequence[int], qparams: QParams) -> Tensor:
    """The weight of the codes, the inverse of ``streams``. Raises ValueError for codes of more than k bits."""
    count = math.prod(shape)
    if form == "bits":
        bits = np.unpackbits(raw, count=count * qparams.bits).reshape(count, qparams.bits)
        raw = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    if raw.max(initial=0) >= 2**qparams.bits:
        raise ValueError(f"codes of more than {qparams.bits} bits")
    return qparams.decode(torch.from_numpy(raw.copy()).view(*shape))


def _check(qparams: QParams, count: int) -> None:
    if not MIN_BITS <= qparams.bits <= MAX_BITS:
        raise ValueError(f"quantization parameters of {qparams.bits} bits")
    if qparams.codebook is not None:
        fits = qparams.codebook.dim() == 2 and qparams.codebook.shape[1] == 2**qparams.bits
        buckets, parts = len(qparams.codebook) if fits else 0, [qparams.codebook]
    else:
        assert qparams.low is not None
        assert qparams.step is not None
        fits = qparams.low.dim() == 1 and qparams.low.shape == qparams.step.shape
        buckets, parts = len(qparams.low) if fits else 0, [qparams.low, qparams.step]
    if not fits or not 1 <= buckets <= count or not all(part.is_floating_point() for part in parts):
        shapes = [tuple(part.shape) for part in parts]
        raise ValueError(f"quantization parameters of the shapes {shapes} for {count} weights")


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(-1).view(torch.uint8)


def _on_cpu(qparams: QParams) -> QParams:
    parts = (qparams.low, qparams.step, qparams.codebook)
    return QParams(qparams.bits, *(None if part is None else part.detach().cpu() for part in parts))
