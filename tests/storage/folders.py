"""Folders that are sent to a store whose steps are written down."""

from __future__ import annotations

from pathlib import Path

from pfray.errors import StorageError
from pfray.storage.remote import Bucket


class Held:
    """A lease that is held unless a test says otherwise."""

    lost, was_ours, gaps, holds = False, False, 0, True

    def held(self) -> bool:
        return self.holds and not self.lost

    def wait(self) -> None:
        pass


class Watched(Bucket):
    """log: what was done. last: after so many steps it fails."""

    log: list[str]
    last: int

    def put(self, local: Path, path: str) -> None:
        self._step(f"put {path}")
        super().put(local, path)

    def remove(self, path: str) -> None:
        self._step(f"remove {path}")
        super().remove(path)

    def _step(self, what: str) -> None:
        if len(self.log) >= self.last:
            raise StorageError("the line went dead")
        self.log.append(what)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json").replace("_yaml", ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
