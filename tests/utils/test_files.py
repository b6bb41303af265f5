from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pfray.errors import StorageError
from pfray.utils.files import append_line, read_json, read_records, replacing, write_atomically, write_json


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


@pytest.fixture
def steps(monkeypatch) -> list[tuple[str, str]]:
    """What is synchronized and renamed, in order, by the names of files and folders; temporary files are ``part``."""
    done: list[tuple[str, str]] = []
    synchronize, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        done.append(("fsync", "part" if ".part" in name else name))
        synchronize(handle)

    def replace(source: Path, target: Path) -> None:
        done.append(("rename", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return done


def test_a_file_is_on_disk_before_its_name_is_and_the_name_before_the_writer_goes_on(tmp_path, steps):
    write_atomically(tmp_path / "model.pt", b"x")
    assert steps == [("fsync", "part"), ("rename", "model.pt"), ("fsync", tmp_path.name)]


def test_a_new_folder_is_on_disk_too(tmp_path, steps):
    write_atomically(tmp_path / "a" / "b" / "model.pt", b"x")
    assert steps == [
        ("fsync", tmp_path.name), ("fsync", "a"), ("fsync", "part"), ("rename", "model.pt"), ("fsync", "b"),
    ]  # fmt: skip


def test_a_line_is_on_disk_when_it_is_added_and_a_half_one_before_it_takes_nothing_with_it(tmp_path, steps):
    path = tmp_path / "lines.jsonl"
    append_line(path, '{"a": 1}')
    append_line(path, '{"a": 2}')
    assert steps == [("fsync", "lines.jsonl"), ("fsync", tmp_path.name), ("fsync", "lines.jsonl")]
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    path.write_text('{"a": 1}\n{"a"')
    append_line(path, '{"a": 3}')
    assert read_records(path) == ([{"a": 1}, {"a": 3}], 1)


def test_a_folder_in_the_place_of_a_file_is_a_storage_error_with_its_own_remedy(tmp_path):
    (tmp_path / "x.json").mkdir()
    for write in (write_atomically, append_line):
        with pytest.raises(StorageError, match=r"x.json cannot be written .* Remedy: remove the folder"):
            write(tmp_path / "x.json", "{}")
    assert names(tmp_path) == ["x.json"]


def test_json_comes_back_as_it_was_and_any_other_content_is_none(tmp_path):
    path = tmp_path / "x.json"
    entries = {"a": 1.1, "b": [1, "ü"], "c": {"d": None, "1": True}}
    write_json(path, entries)
    assert read_json(path) == entries
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert read_json(path) in (None, entries)
    for damaged in (b"", data[: len(data) // 2], b"[]", b"{}", b'"text"', b'{"a": 1.1}', b"[" * 100_000):
        path.write_bytes(damaged)
        assert read_json(path) is None
    assert read_json(tmp_path / "nowhere") is None
    assert read_json(tmp_path) is None
