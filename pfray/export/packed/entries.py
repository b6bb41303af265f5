"""The table of a packed file, and its frames: how large each may be is known before anything is unpacked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard

from pfray.errors import short

ENCODINGS = ("dense", "sparse", "signed", "bits", "bytes", "same")
# Most bytes of all tensors together: FREE, and RATIO times the file. The file of a network that keeps one weight in a
# thousand stays below; zstandard alone makes 30,000 zeros of one byte.
FREE, RATIO = 2**26, 1000


@dataclass(frozen=True)
class Entry:
    """One tensor: its type, shape and encoding, and its frame's bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    encoding: str
    size: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def least(self) -> int:
        """Fewest bytes of the unpacked frame, for encodings that do not depend on another entry."""
        return self.count * self.dtype.itemsize if self.encoding == "dense" else _bytes(self.count)

    @property
    def most(self) -> int:
        """Most bytes of the unpacked frame: the values, and two masks in the longest form."""
        return self.count * self.dtype.itemsize + (0 if self.encoding == "dense" else 2 * _bytes(self.count))


def read_table(text: str, size: int) -> dict[str, Entry]:
    """The entries by name. size: bytes of all frames together.

    Raises ValueError for a table that ``save`` never writes.
    """
    raw = json.loads(text, object_pairs_hook=_without_twins)
    if not isinstance(raw, dict):
        raise ValueError("its table is none")
    entries = {name: _entry(name, fields) for name, fields in raw.items()}
    if sum(entry.size for entry in entries.values()) != size:
        raise ValueError("its table and its frames do not go together")
    check_total(sum(e.count * e.dtype.itemsize for e in entries.values() if e.encoding != "same"), size)
    return entries


def check_total(total: int, size: int) -> None:
    """Raise ValueError if tensors of ``total`` bytes from frames of ``size`` bytes can only be an attack."""
    if total > FREE + RATIO * size:
        raise ValueError(f"{size} bytes would become {total}, more than {RATIO} times as many")


def unpack(frame: bytes, least: int, most: int) -> np.ndarray:
    """The content ``(n,)`` uint8 of a zstandard frame, least <= n <= most. Raises ValueError, ZstdError."""
    found = zstandard.frame_content_size(frame)
    if not least <= found <= most:
        raise ValueError(f"a frame has {found} bytes, not {least}" + (f" to {most}" if most > least else ""))
    content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=found, allow_extra_data=False)
    if len(content) != found:
        raise ValueError(f"a frame has {len(content)} bytes, not {found}")
    return np.frombuffer(content, np.uint8)


def _entry(name: str, fields: Any) -> Entry:
    match fields:
        case [str(dtype), list(shape), str(encoding), int(size)] if encoding in ENCODINGS:
            known = getattr(torch, dtype, None)
            whole = all(type(number) is int and 0 <= number < 2**63 for number in (*shape, size))
            # An empty tensor's other sizes count as well, because torch multiplies them.
            if isinstance(known, torch.dtype) and whole and math.prod(max(n, 1) for n in shape) < 2**59:
                return Entry(known, tuple(shape), encoding, size)
    raise ValueError(f"the entry {short(str(name))} is {short(str(fields))}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two entries have one name")
    return found


def _bytes(bits: int) -> int:
    return (bits + 7) // 8
