from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pfray.errors import StorageError
from pfray.files import read_records, replacing, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_with_missing_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "text.txt", "größer")
    assert (tmp_path / "a" / "b" / "text.txt").read_bytes() == "größer".encode()
    assert names(tmp_path / "a" / "b") == ["text.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            assert temporary.suffix == ".pt"
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.pt"]


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"model.pt cannot be written \(No space left on device\). Remedy"):
        write_atomically(tmp_path / "model.pt", b"x" * 1000)
    assert names(tmp_path) == []


def test_an_error_of_the_writer_itself_is_a_storage_error_too(tmp_path):
    with pytest.raises(StorageError, match="quota"), replacing(tmp_path / "x"):
        raise OSError("over the quota")


def test_a_file_in_the_place_of_a_folder_is_a_storage_error(tmp_path):
    (tmp_path / "runs").write_text("")
    for path in ("runs/x.json", "runs/deeper/x.json"):
        with pytest.raises(StorageError, match="cannot be written"):
            write_atomically(tmp_path / path, "{}")
    assert names(tmp_path) == ["runs"]


def test_files_get_the_permissions_of_any_other_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "ours") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_lines_that_hold_no_object_are_counted_and_left_out_and_the_file_stays_as_it_is(tmp_path):
    path = tmp_path / "lines.jsonl"
    content = b'{"trial": 1, "score": 0.5}\n{"trial": \xff\n[2]\n{"trial": 0}\n{"trial": 3, "sc'
    path.write_bytes(content)
    assert read_records(path) == ([{"trial": 1, "score": 0.5}, {"trial": 0}], 3)
    assert path.read_bytes() == content
    path.write_bytes(b"")
    assert read_records(path) == ([], 0)
