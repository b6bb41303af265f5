"""Files that appear whole or not at all, and a reader of those that grow by a line."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
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


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds, and is removed when it fails.

    Missing folders are made. Raises StorageError where the folder cannot be written.
    """
    path = Path(path)
    # The suffix stays last because writers choose or check the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Some writers make files that only their owner may read.
        temporary.chmod(_MODE)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error}). Remedy: free space, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a whole file through ``replacing``; a text as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file of one a line, and how many lines hold none (a killed run may leave half a line)."""
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records, len(lines) - len(records) + bool(rest)
