"""Storage folder at an fsspec URL, such as ``s3://bucket/runs``: lists, reads and writes its files.

Every failure is one StorageError, whose text holds no secret. A store is not trusted to stay in the folder: names that
are no plain relative paths are refused when listed and when used (``safe_paths.py``).
"""

from __future__ import annotations

import contextlib
import posixpath
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pfray.errors import StorageError, first_line, short
from pfray.utils.safe_paths import flaw, inside
from pfray.utils.url import hidden

# Stores with atomic puts. In others a file is put under another name and then renamed.
WHOLE_PUTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2"}
# Timeouts in seconds: a run must not wait for minutes for a store that does not answer.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": 4, "read_timeout": 15, "retries": {"total_max_attempts": 2}},
    }
}
OPTIONS["s3a"] = OPTIONS["s3"]


@dataclass(frozen=True)
class Bucket:
    """The folder at ``url``. Paths are relative to it. Methods raise StorageError if the store fails."""

    url: str
    fs: Any
    root: str

    def names(self, folder: str) -> list[str]:
        """Paths of all finished files below ``folder``, relative to it."""
        top = self._at(folder)
        with self._told("read"):
            self.fs.invalidate_cache()
            found = [str(path) for path in self.fs.find(top)]
        names = []
        for path in found:
            # Some tools keep an empty object "folder/" for each folder of a store.
            bare = path.removesuffix("/")
            if bare == top:
                continue
            name = bare.removeprefix(f"{top}/")
            if reason := "a path elsewhere" if name == bare else flaw(name):
                raise StorageError(
                    f"{self.url}/{folder} holds a file with a name that no run has, '{short(name)}' ({reason}). "
                    "Remedy: remove it there, or another storage=..."
                )
            self._at(f"{folder}/{name}")  # a link may lead elsewhere
            if bare == path:
                names.append(name)
        return sorted(name for name in names if not is_unfinished(name))

    def read(self, path: str) -> bytes | None:
        """Content of a file; None if there is none."""
        source = self._at(path)
        with self._told("read"):
            try:
                self.fs.invalidate_cache()
                return bytes(self.fs.cat_file(source))
            except FileNotFoundError:
                return None

    def get(self, path: str, local: Path) -> None:
        """Fetch a file to ``local``."""
        source = self._at(path)
        with self._told("read"):
            local.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(source, str(local))

    def put(self, local: Path, path: str) -> None:
        """Send a file; a reader never sees half of it."""
        target = self._at(path)
        with self._told("written"):
            if self._puts_whole:
                self.fs.put_file(str(local), target)
                return
            folder, name = posixpath.split(target)
            self.fs.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.part"
            self.fs.put_file(str(local), temporary)
            self.fs.mv(temporary, target)

    def write(self, path: str, content: bytes, *, new: bool = False) -> bool:
        """Write a small file. new: do not overwrite. Returns True if it was written."""
        target = self._at(path)
        with self._told("written"):
            if not self._puts_whole:
                self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
            try:
                self.fs.pipe_file(target, content, **({"mode": "create"} if new else {}))
            except OSError:
                # Stores raise different errors for a refusal to overwrite.
                if new and self.fs.exists(target):
                    return False
                raise
        return True

    def remove(self, path: str) -> None:
        """Remove a file, if there is one."""
        target = self._at(path)
        with self._told("written"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(target)

    @property
    def _kinds(self) -> set[str]:
        kinds = self.fs.protocol
        return {kinds} if isinstance(kinds, str) else set(kinds)

    @property
    def _puts_whole(self) -> bool:
        return bool(WHOLE_PUTS & self._kinds)

    def _at(self, path: str) -> str:
        """Name of ``path`` in the store. Raises StorageError for a path that is not below the root."""
        if "file" in self._kinds:
            inside(Path(self.root), path)  # only local folders have links that are followed
        elif reason := flaw(path):
            raise StorageError(f"{self.url} cannot take a file named '{short(path)}' ({reason}). Remedy: rename it")
        return f"{self.root}/{path}"

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the libraries behind fsspec have their own classes of errors
            raise _failure(self.url, what, error) from None


def open_bucket(url: str) -> Bucket:
    """The store at ``url``, not contacted yet. Raises StorageError if its library is not installed."""
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url, skip_instance_cache=True, **OPTIONS.get(urlsplit(url).scheme, {}))
    except ImportError as error:
        package = "pfray[s3]" if url.startswith("s3") else "the package of that name"
        raise StorageError(f"{url}: {first_line(error)}. Remedy: pip install '{package}'") from error
    except Exception as error:
        raise _failure(url, "reached", error) from None
    if hasattr(fs, "retries"):
        fs.retries = 2
    return Bucket(url, fs, str(root).rstrip("/"))


def is_unfinished(name: str) -> bool:
    """True for the path of a file that is still being written."""
    last = name.rpartition("/")[2]
    return last.startswith(".") and ".part" in last


def _failure(url: str, what: str, error: Exception) -> StorageError:
    kind = type(error).__name__
    text = first_line(error)
    return StorageError(
        f"{url} cannot be {what} ({hidden(text if kind in text else f'{kind}: {text}')}). Remedy: check the address, "
        "the network, and the credentials in the environment"
    )
