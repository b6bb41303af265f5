"""The cache folder for expensive intermediate results, its keys, and tensors in it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pfray.errors import StorageError
from pfray.utils.files import cannot_write, make_folder, write_atomically

# Metadata of a file of tensors that are no tensor's checksum: what the tensors were made from, and a text with its own.
MADE_FROM, NOTE, NOTE_SUM = "//made from", "//note", "//note's checksum"


def cache_dir() -> Path:
    """The cache folder: ``$PFRAY_CACHE``, else ``$XDG_CACHE_HOME/pfray``, else ``~/.cache/pfray``.

    A missing folder is made. Raises StorageError if that fails or the folder is not writable.
    """
    if own := os.environ.get("PFRAY_CACHE"):
        folder = Path(own).expanduser().absolute()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "pfray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise StorageError(f"{folder}: the cache folder cannot be used ({reason}). Remedy: set PFRAY_CACHE to a folder "
                           "that you may write to")
    return folder


def content_key(*parts: object) -> str:
    """16 hexadecimal digits from the ``repr`` of every part; parts should be plain values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def cache_key(*parts: object) -> str:
    """``content_key`` of the parts and pfray's version, since another version may compute something else."""
    return content_key(version(), *parts)


def version() -> str:
    """The installed version of pfray; ``unknown`` if it is not installed."""
    try:
        return importlib.metadata.version("pfray")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def state_bytes(model: nn.Module) -> bytes:
    """Names, types, shapes and values of the model's state dict as bytes, for ``content_key``."""
    return b"".join(
        repr((name, str(tensor.dtype), tuple(tensor.shape))).encode()
        + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    )


def file_stamp(path: Path) -> tuple[str, int, int]:
    """(name, bytes, modification time in ns), for keys of files that are too expensive to read."""
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns


def save_tensors(path: Path, tensors: Mapping[str, Tensor], made_from: str = "", note: str = "") -> None:
    """Write tensors, such as a state dict, as one safetensors file with a checksum of each. Raises StorageError.

    made_from: what ``load_tensors`` then has to be given too. note: a text, for ``load_noted``.
    """
    # Copied, because safetensors refuses tensors that share memory or lie in another order, such as channels_last.
    plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    sums = {name: str(_checksum(name, tensor)) for name, tensor in plain.items()}
    noted = {NOTE: note, NOTE_SUM: str(zlib.crc32(note.encode()))} if note else {}
    write_atomically(path, safetensors.torch.save(plain, {**sums, **noted, MADE_FROM: made_from}))


def load_tensors(path: Path, made_from: str = "") -> dict[str, Tensor] | None:
    """The tensors that ``save_tensors`` wrote.

    None where the file is missing, damaged or made from something else, so that it has to be made again.
    """
    found = load_noted(path, made_from)
    return None if found is None else found[0]


def made_once(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in the cached file ``path``, made and saved if it is missing. Raises StorageError.

    Processes on one machine that want the same file at the same time wait for the first of them to make it.
    """
    if (kept := load_tensors(path)) is not None:
        return kept
    with _one_at_a_time(path):
        if (kept := load_tensors(path)) is None:
            kept = dict(make())
            if kept:
                save_tensors(path, kept)
    return kept


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Other processes' blocks for the same path wait. One file in the folder is for all paths, a byte for each."""
    make_folder(path.parent)
    try:
        file = open(path.parent / ".lock", "ab")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        # Without locks, as on some network folders, the same is made twice, which does no harm.
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX, 1, zlib.crc32(path.name.encode()))
        yield


def load_noted(path: Path, made_from: str = "") -> tuple[dict[str, Tensor], str] | None:
    """(tensors, note) that ``save_tensors`` wrote; None as of ``load_tensors``."""
    try:
        with safe_open(path, "pt") as file:
            sums = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError):
        return None
    note = sums.pop(NOTE, "")
    if sums.pop(NOTE_SUM, "") != (str(zlib.crc32(note.encode())) if note else ""):
        return None
    if not tensors or sums.pop(MADE_FROM, "") != made_from or sums.keys() != tensors.keys():
        return None
    if any(sums[name] != str(_checksum(name, tensor)) for name, tensor in tensors.items()):
        return None
    return tensors, note


def _checksum(name: str, tensor: Tensor) -> int:
    """CRC-32 of name, type, shape and values, so that exchanged or reinterpreted tensors are found."""
    described = zlib.crc32(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, described)
