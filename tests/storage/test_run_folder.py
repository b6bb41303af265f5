from __future__ import annotations

import pytest

from pfray.errors import RunExists
from pfray.storage.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    run = RunFolder.at(str(tmp_path), "exp")
    run.search.mkdir(parents=True)
    return run


def test_seconds_come_back_and_are_none_at_first(folder):
    assert folder.read_seconds() == {}
    folder.write_seconds({"load": 1.5})
    assert folder.read_seconds() == {"load": 1.5}


def test_seconds_that_cannot_be_read_are_none_and_that_is_said(folder, caplog):
    for content in ("", "[]", '{"load": "x"}', '{"load": 1.5}'):
        folder.seconds.write_text(content)
        caplog.clear()
        assert folder.read_seconds() == {}
        assert "seconds.json is damaged" in caplog.text


def test_a_finished_run_knows_its_files_by_their_checksums(folder):
    folder.trials.write_text("x")
    folder.experiment.write_text("name: exp")
    folder.packed().write_bytes(b"weights")
    folder.write_summary({"a": 1})
    assert folder.find_damage() is None
    for name in ("model.packed", "summary.json", "search/trials.jsonl", "experiment.yaml", "checksums.json"):
        content = (folder.path / name).read_bytes()
        for wrong in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            (folder.path / name).write_bytes(wrong)
            assert folder.find_damage() == f"{folder.path / name} is missing or damaged"
        (folder.path / name).write_bytes(content)
    assert folder.find_damage() is None
    folder.packed().unlink()
    assert folder.find_damage() == f"{folder.packed()} is missing or damaged"


def test_a_run_is_in_its_storage_and_known_by_its_path(tmp_path):
    run = RunFolder.at(str(tmp_path), "exp")
    assert run.path == tmp_path / "exp"
    assert (run.name, run.url, run.title) == ("exp", None, str(tmp_path / "exp"))
    assert run.packed() == tmp_path / "exp" / "model.packed"
    assert run.packed("uniform") == tmp_path / "exp" / "uniform.packed"
    assert run.lock == tmp_path / ".exp.lock"


def test_a_run_behind_a_url_works_in_the_cache_and_is_known_by_its_url(tmp_path, monkeypatch):
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path))
    run = RunFolder.at("s3://bucket/runs", "exp")
    assert run.path.is_relative_to(tmp_path)
    assert run.url == run.title == "s3://bucket/runs/exp"
    assert run.path.parent != RunFolder.at("s3://bucket/others", "exp").path.parent


def test_two_processes_cannot_work_in_one_folder(folder):
    other = RunFolder(folder.path)
    with folder.locked(), pytest.raises(RunExists, match=r"exp is in use by another process\. Remedy"), other.locked():
        pass
    with other.locked():
        assert other.lock.exists()


def test_the_soft_labels_of_cached_views_are_removed_with_their_folder(tmp_path):
    run = RunFolder(tmp_path / "exp")
    run.remove_views()
    (run.views / "key").mkdir(parents=True)
    (run.views / "key" / "0-0-0.safetensors").write_bytes(b"labels")
    run.remove_views()
    assert list(run.path.iterdir()) == []
