"""Files written whole or not at all, even in a power cut, and files that grow line by line."""

from __future__ import annotations

import errno
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pfray.errors import StorageError


def _usual_mode() -> int:
    # Read once at import: asking for the mask means setting it, for the whole process.
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_MODE = _usual_mode()
# The key under which ``write_json`` keeps the checksum of the other entries.
CHECKSUM = "crc32"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds, and is removed when it fails.

    File and folder are synchronized to disk: after a power cut a rename may have lasted, and the file's content not.
    Missing folders are made. Raises StorageError if the folder cannot be written.
    """
    path = Path(path)
    # The suffix stays last because writers choose or check the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        make_folder(path.parent)
        yield temporary
        # Some writers make files that only their owner may read.
        temporary.chmod(_MODE)
        _synchronize(temporary)
        os.replace(temporary, path)
        _synchronize(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: str | Path, error: OSError) -> StorageError:
    """The StorageError for a ``path`` that cannot be written, with a remedy for its cause."""
    remedy = "free space, or choose another folder"
    if error.errno == errno.EISDIR:
        remedy = "remove the folder that is in the file's place"
    return StorageError(f"{path} cannot be written ({error.strerror or error}). Remedy: {remedy}")


def make_folder(folder: Path) -> None:
    """Make the folder and its missing parents, and synchronize each new entry to disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _synchronize(folder.parent)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a whole file through ``replacing``; a text as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and synchronize it to disk. A half line that a kill left stays a line of its own.

    Raises StorageError.
    """
    try:
        is_new = not path.exists()
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = f"\n{line}"
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _synchronize(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its entries, for ``read_json``. Raises StorageError."""
    # The checksum is of the entries as they will be read: a round trip may change numbers and texts.
    plain = json.loads(json.dumps(entries))
    write_atomically(path, json.dumps({**plain, CHECKSUM: _json_checksum(plain)}, indent=1))


def read_json(path: Path) -> dict[str, Any] | None:
    """The entries that ``write_json`` wrote; None if the file is missing, damaged or written by others."""
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entries, dict) or entries.pop(CHECKSUM, None) != _json_checksum(entries):
        return None
    return entries


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(JSON objects of a file with one a line, number of lines without one; a killed run may leave half a line)."""
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records, len(lines) - len(records) + bool(rest)


def _json_checksum(entries: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entries).encode())


def _synchronize(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot synchronize a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)
