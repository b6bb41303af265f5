"""Packed weights: a state dict whose bytes on disk shrink with its zeros, restored bit for bit.

Notation: a tensor has n elements of k bytes, m of them not zero. Each becomes one zstandard frame over these streams:

    dense     the values, n * k bytes
    sparse    n bits, 1 where an element is not zero; the values that are not, m * k bytes
    signed    as sparse, with n - m bits between the two, 1 where a zero is -0.0
    same      the name of another entry, whose memory it shares

A quantized weight (``pfray/quantization/qparams.py``) is stored as its codes instead (``codes.py``), in the form bits
or bytes; its quantization parameters are tensors like any other.

Values are stored by byte plane (all first bytes, then all second bytes, ...), because the exponents of trained weights
resemble each other and their mantissas do not. The frames lie back to back in the one uint8 tensor of a safetensors
file (no pickle); its metadata lists name, dtype, shape, encoding and bytes of each. A pruned weight is often -0.0
(a mask times a negative number), so its sign is kept apart instead of counting it as a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from pfray.errors import ExportError, WeightsError, first_line, short
from pfray.export.packed import codes
from pfray.export.packed.entries import Entry, check_total, read_table, unpack
from pfray.quantization.qparams import qparams_of
from pfray.utils.files import replacing

FORMAT = "pfray-packed-1"


def save(path: str | Path, state_dict: Mapping[str, Tensor], level: int = 19) -> int:
    """Write ``state_dict`` and return the file's bytes. ``level``: zstandard's, 1 (fast) to 22 (small).

    Raises ExportError for an entry that is no plain dense tensor and for tensors of nearly nothing but zeros, which
    ``load`` would take for an attack; StorageError where the file cannot be written.
    """
    frames, entries, total = [], {}, 0
    whole = _whole(state_dict)
    for name, tensor in state_dict.items():
        elements = _element_bytes(name, tensor)
        streams = {"same": whole[name].encode()}
        if whole[name] == name:
            total += elements.size
            streams = {**_encodings(elements, tensor.is_floating_point()), **codes.streams(state_dict, name)}
        encoding, frame = _smallest(streams, level)
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries[name] = [dtype, list(tensor.shape), encoding, len(frame)]
        frames.append(frame)
    data = np.frombuffer(b"".join(frames), np.uint8)
    try:
        check_total(total, len(data))
    except ValueError as error:
        raise ExportError(f"{path} cannot be packed: {error}. Remedy: leave out tensors of zeros") from error
    metadata = {"format": FORMAT, "entries": json.dumps(entries, separators=(",", ":"))}
    with replacing(path) as temporary:
        try:
            save_file({"frames": data}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return Path(path).stat().st_size


def load(path: str | Path) -> dict[str, Tensor]:
    """The state dict that was saved, on the CPU, every bit and the order of names the same.

    The file holds data and no code, and may come from anywhere: all sizes are checked before anything is unpacked.
    Raises WeightsError where the file is missing, damaged or of another format.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such file. Remedy: give the path of a .packed file")
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise WeightsError(
                    f"{path} is not of the format {FORMAT}. Remedy: write it with pfray.export.packed.file"
                )
            frames = file.get_tensor("frames")
            if list(file.keys()) != ["frames"] or frames.dtype != np.uint8 or frames.ndim != 1:
                raise ValueError("it holds other tensors than its frames")
        return _decode(frames.tobytes(), read_table(metadata["entries"], frames.size))
    except WeightsError:
        raise
    except Exception as error:  # damage shows itself in any of the libraries, each with kinds of its own
        raise WeightsError(
            f"{path} is damaged ({short(first_line(error), 200)}). Remedy: copy it again or repeat the export"
        ) from error


def _element_bytes(name: str, tensor: Tensor) -> np.ndarray:
    """``(n, k)`` uint8: the bytes of each element, little end first."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ExportError(f"{name}: only plain dense tensors can be packed. Remedy: leave this entry out")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().reshape(flat.numel(), tensor.element_size())


def _whole(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """The entry that is stored, by the name of each that shares its memory: the first, or the quantized one."""
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in state_dict.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel()
        found[name] = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if plain else name
        holder = first.setdefault(found[name], name)
        if qparams_of(state_dict, holder) is None and qparams_of(state_dict, name) is not None:
            first[found[name]] = name
    return {name: first[key] for name, key in found.items()}


def _encodings(elements: np.ndarray, signed: bool) -> dict[str, bytes]:
    """The streams of ``(n, k)`` element bytes, by encoding."""
    streams = {"dense": _planes(elements)}
    minus = _minus_zeros(elements) if signed else np.zeros(len(elements), bool)
    nonzero = elements.any(axis=1) & ~minus
    if not nonzero.all():
        mask, values = np.packbits(nonzero).tobytes(), _planes(elements[nonzero])
        signs = np.packbits(minus[~nonzero]).tobytes() if minus.any() else b""
        streams["signed" if signs else "sparse"] = mask + signs + values
    return streams


def _smallest(streams: dict[str, bytes], level: int) -> tuple[str, bytes]:
    """(encoding, frame) of the smallest stream."""
    # The quick level ranks the streams as the slow one does, which then runs once.
    quick = zstandard.ZstdCompressor(level=min(level, 3)).compress
    encoding = min(streams, key=lambda name: len(quick(streams[name])))
    return encoding, zstandard.ZstdCompressor(level=level, write_checksum=True).compress(streams[encoding])


def _decode(data: bytes, entries: dict[str, Entry]) -> dict[str, Tensor]:
    state_dict: dict[str, Tensor] = {}
    later: dict[str, bytes] = {}
    start = 0
    for name, entry in entries.items():
        frame = data[start : start + entry.size]
        start += entry.size
        state_dict[name] = torch.empty(0)  # keeps its place in the order
        if entry.encoding in ("same", *codes.FORMS):
            later[name] = frame
            continue
        raw = unpack(frame, entry.least, entry.most)
        elements = _elements(raw, entry.encoding, entry.count, entry.dtype.itemsize)
        if entry.dtype == torch.bool and (elements > 1).any():
            raise ValueError(f"{name} holds more than true and false")
        state_dict[name] = torch.from_numpy(elements.reshape(-1)).view(entry.dtype).reshape(entry.shape)
    plain = {name: tensor for name, tensor in state_dict.items() if name not in later}
    # Quantization parameters follow their weight, and an entry that shares a weight's memory may precede it.
    for name in sorted(later, key=lambda name: entries[name].encoding == "same"):
        entry = entries[name]
        if entry.encoding == "same":
            other = unpack(later[name], 0, max(len(each.encode()) for each in entries)).tobytes().decode()
            same = other in entries and entries[other].encoding != "same"
            if not same or (entry.dtype, entry.shape) != (entries[other].dtype, entries[other].shape):
                raise ValueError(f"{name} is not as {other}, with which it shares its memory")
            state_dict[name] = state_dict[other]
            continue
        qparams = qparams_of(plain, name)
        if qparams is None:
            raise ValueError(f"the quantization parameters of {name} are missing")
        size = codes.frame_size(entry.encoding, entry.count, qparams)
        state_dict[name] = codes.restore(unpack(later[name], size, size), entry.encoding, entry.shape, qparams)
        if state_dict[name].dtype != entry.dtype:
            raise ValueError(f"{name} is not of the type of its quantization parameters")
    return state_dict


def _elements(raw: np.ndarray, encoding: str, count: int, width: int) -> np.ndarray:
    """The inverse of ``_encodings``: ``(count, width)`` uint8."""
    if encoding == "dense":
        return _from_planes(raw, count, width)
    nonzero, raw = _take_bits(raw, count)
    zeros = np.zeros((count, width), np.uint8)
    if encoding == "signed":
        minus, raw = _take_bits(raw, count - int(nonzero.sum()))
        zeros[~nonzero, -1] = np.where(minus, 0x80, 0)
    elif encoding != "sparse":
        raise ValueError(f"unknown encoding {encoding!r}")
    zeros[nonzero] = _from_planes(raw, int(nonzero.sum()), width)
    return zeros


def _take_bits(raw: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` bits as bool, and the bytes after them."""
    size = (count + 7) // 8
    if len(raw) < size:
        raise ValueError("a frame is too short")
    return np.unpackbits(raw[:size], count=count).astype(bool), raw[size:]


def _minus_zeros(elements: np.ndarray) -> np.ndarray:
    """``(n,)`` bool: elements that are the floating-point -0.0, a sign bit alone."""
    return (elements[:, -1] == 0x80) & ~elements[:, :-1].any(axis=1)


def _planes(elements: np.ndarray) -> bytes:
    return elements.T.tobytes()


def _from_planes(raw: np.ndarray, count: int, width: int) -> np.ndarray:
    if raw.size != count * width:
        raise ValueError(f"a frame has {raw.size} bytes of values, not {count * width}")
    # Always a copy: the frame's own bytes are read-only, and a tensor must not be.
    return np.array(raw.reshape(width, count).T, order="C")
