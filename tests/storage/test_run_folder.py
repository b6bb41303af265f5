from __future__ import annotations

import pytest
import yaml

from pfray.config.schema import Experiment, load
from pfray.errors import RunExists, StorageError
from pfray.storage import run_folder as module
from pfray.storage.run_folder import damaged, is_finished, open_folder, read_seconds, write_seconds, write_summary


def experiment(tmp_path, **changes: object) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5},
        "storage": str(tmp_path), **changes,
    })  # fmt: skip


def opened(tmp_path, *, resume: bool = False, force: bool = False, identity: dict | None = None, **changes: object):
    return open_folder(experiment(tmp_path, **changes), resume=resume, force=force, identity=identity)


def test_a_new_folder_holds_the_resolved_experiment(tmp_path):
    folder = opened(tmp_path)
    assert folder == tmp_path / "exp"
    assert load(folder / "experiment.yaml") == experiment(tmp_path)
    assert (folder / "search").is_dir()


def test_an_existing_run_is_refused_with_its_state_and_left_alone(tmp_path):
    folder = opened(tmp_path)
    (folder / "search" / "trials.jsonl").write_text("x")
    with pytest.raises(RunExists, match=r"exp holds a run, unfinished. Remedy: --resume .* --force"):
        opened(tmp_path)
    write_summary(folder, {"a": 1})
    with pytest.raises(RunExists, match="holds a run, finished"):
        opened(tmp_path)
    assert (folder / "search" / "trials.jsonl").read_text() == "x"


def test_force_replaces_a_run_with_all_its_files(tmp_path):
    folder = opened(tmp_path)
    (folder / "search" / "trials.jsonl").write_text("x")
    write_summary(folder, {})
    assert opened(tmp_path, force=True, seed=5) == folder
    assert not is_finished(folder)
    assert list((folder / "search").iterdir()) == []
    assert yaml.safe_load((folder / "experiment.yaml").read_text())["seed"] == 5


@pytest.mark.parametrize("option", [{}, {"resume": True}, {"force": True}])
def test_a_folder_of_other_files_is_never_taken_nor_removed(tmp_path, option):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunExists, match="holds files but no run"):
        opened(tmp_path, **option)
    assert (tmp_path / "exp" / "thesis.tex").read_text() == "years of work"


def test_a_folder_whose_run_was_killed_before_its_first_file_is_used(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / ".experiment.0123abcd.part.yaml").write_text("half")
    assert (opened(tmp_path) / "experiment.yaml").exists()


def test_resume_keeps_the_files_and_needs_no_earlier_run(tmp_path):
    folder = opened(tmp_path, resume=True)
    (folder / "search" / "trials.jsonl").write_text("x")
    opened(tmp_path, resume=True)
    assert (folder / "search" / "trials.jsonl").read_text() == "x"


def test_resume_with_another_experiment_names_the_sections_that_differ(tmp_path):
    opened(tmp_path)
    with pytest.raises(RunExists, match=r"these differ: learner, target, seed\. Remedy"):
        opened(tmp_path, resume=True, seed=1, target={"sparsity": 0.6},
               learner={"name": "weight_sparse", "interval": 4})  # fmt: skip


def test_a_run_may_continue_with_other_resources(tmp_path):
    folder = opened(tmp_path)
    opened(tmp_path, resume=True, resources={"workers": 2, "trial": {"cpu": 4}})
    assert load(folder / "experiment.yaml").resources.workers == 2


def test_a_storage_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "runs").write_text("")
    for option in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(StorageError, match=r"cannot be written .*Remedy"):
            opened(tmp_path / "runs", **option)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"\(Permission denied\). Remedy: choose another with storage="):
        opened(tmp_path)


def test_seconds_come_back_and_are_none_at_first(tmp_path):
    folder = opened(tmp_path)
    assert read_seconds(folder) == {}
    write_seconds(folder, {"load": 1.5})
    assert read_seconds(folder) == {"load": 1.5}


IDENTITY = {
    "pfray": "1.0", "architecture": "a", "weights": "w", "outputs": [1.0, 2.0], "train data": "t",
    "validation data": "v", "test data": "x", "classes": [10], "contents": {"train inputs": "c"}, "code": {},
}  # fmt: skip


def begun(tmp_path, trials: str = "x"):
    folder = opened(tmp_path, identity=IDENTITY)
    (folder / "search" / "trials.jsonl").write_text(trials)
    return folder


def test_a_run_is_continued_with_what_it_began_with_and_refused_with_anything_else(tmp_path):
    folder = begun(tmp_path)
    opened(tmp_path, resume=True, identity=IDENTITY)
    other = {**IDENTITY, "weights": "other", "contents": {"train inputs": "other"}}
    with pytest.raises(RunExists, match=r"weights; the data.s values\. Remedy: .*--force") as caught:
        opened(tmp_path, resume=True, identity=other)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    assert (folder / "search" / "trials.jsonl").read_text() == "x"
    opened(tmp_path, force=True, identity=other)
    opened(tmp_path, resume=True, identity=other)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"pfray": "1.0"}'])
def test_a_run_that_does_not_say_what_it_began_with_is_refused_once_it_has_results(tmp_path, content):
    folder = begun(tmp_path)
    (folder / "identity.json").unlink()
    if content is not None:
        (folder / "identity.json").write_bytes(content)
    with pytest.raises(RunExists, match=r"of an earlier version of pfray, or its identity.json is missing or damaged"):
        opened(tmp_path, resume=True, identity=IDENTITY)
    (folder / "search" / "trials.jsonl").unlink()
    opened(tmp_path, resume=True, identity=IDENTITY)


@pytest.mark.parametrize("content", ["", "[]", "a: [b\n\tc: '", "name: exp\n", "- " * 2000])
def test_a_damaged_experiment_file_is_written_again_where_the_run_is_known_to_be_the_same(tmp_path, content, caplog):
    folder = begun(tmp_path)
    saved = (folder / "experiment.yaml").read_text()
    (folder / "experiment.yaml").write_text(content)
    opened(tmp_path, resume=True, identity=IDENTITY)
    assert (folder / "experiment.yaml").read_text() == saved
    assert caplog.text.count("experiment.yaml is damaged; it is written again") == 1
    (folder / "experiment.yaml").write_text(content)
    with pytest.raises(RunExists, match=r"experiment.yaml is damaged, so that what it was of cannot be told. Remedy"):
        opened(tmp_path, resume=True, identity=IDENTITY, seed=1)


def test_seconds_that_cannot_be_read_are_none_and_that_is_said(tmp_path, caplog):
    folder = opened(tmp_path)
    for content in ("", "[]", '{"load": "x"}', '{"load": 1.5}'):
        (folder / "seconds.json").write_text(content)
        caplog.clear()
        assert read_seconds(folder) == {}
        assert "seconds.json is damaged" in caplog.text


def test_a_finished_run_knows_its_files_by_their_checksums(tmp_path):
    folder = begun(tmp_path)
    (folder / "model.packed").write_bytes(b"weights")
    write_summary(folder, {"a": 1})
    assert damaged(folder) is None
    for name in ("model.packed", "summary.json", "search/trials.jsonl", "experiment.yaml", "checksums.json"):
        content = (folder / name).read_bytes()
        for wrong in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            (folder / name).write_bytes(wrong)
            assert damaged(folder) == f"{folder / name} is missing or damaged"
        (folder / name).write_bytes(content)
    assert damaged(folder) is None
    (folder / "model.packed").unlink()
    assert damaged(folder) == f"{folder / 'model.packed'} is missing or damaged"


@pytest.mark.parametrize("text", ["2026-11-28", "=", "2026-11-28 10:00:00", "1e3", "no"])
def test_texts_that_yaml_might_take_for_something_else_are_the_same_after_a_resume(tmp_path, text):
    folder = opened(tmp_path, model={"name": "lenet", "weights": text})
    assert load(folder / "experiment.yaml").model.weights == text
    opened(tmp_path, resume=True, model={"name": "lenet", "weights": text})
    with pytest.raises(RunExists, match="these differ: model"):
        opened(tmp_path, resume=True, model={"name": "lenet", "weights": "other"})
