"""Runs that may begin or go on in a folder, and runs that may not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pfray.config.schema import Experiment, load, plain
from pfray.errors import RunExists, StorageError
from pfray.search._trial_log import read_trials
from pfray.storage import open_run as module
from pfray.storage.open_run import check_trials, open_folder
from pfray.storage.run_folder import RunFolder
from tests.search.toy import SPACE, drive, make

TRIALS = 6


def experiment(tmp_path, **changes: object) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5},
        "storage": str(tmp_path), **changes,
    })  # fmt: skip


def opened(
    tmp_path: Path, *, resume: bool = False, force: bool = False, identity: dict | None = None, **changes: object
) -> RunFolder:
    found = experiment(tmp_path, **changes)
    run = RunFolder.at(found.storage, found.name)
    open_folder(run, plain(found), resume=resume, force=force, identity=identity)
    return run


def test_a_new_folder_holds_the_resolved_experiment(tmp_path):
    folder = opened(tmp_path)
    assert folder.path == tmp_path / "exp"
    assert load(folder.experiment) == experiment(tmp_path)
    assert folder.search.is_dir()


def test_an_existing_run_is_refused_with_its_state_and_left_alone(tmp_path):
    folder = opened(tmp_path)
    folder.trials.write_text("x")
    with pytest.raises(RunExists, match=r"exp holds a run, unfinished. Remedy: --resume .* --force"):
        opened(tmp_path)
    folder.write_summary({"a": 1})
    with pytest.raises(RunExists, match="holds a run, finished"):
        opened(tmp_path)
    assert folder.trials.read_text() == "x"


def test_force_replaces_a_run_with_all_its_files(tmp_path):
    folder = opened(tmp_path)
    folder.trials.write_text("x")
    folder.write_summary({})
    assert opened(tmp_path, force=True, seed=5) == folder
    assert not folder.is_finished
    assert list(folder.search.iterdir()) == []
    assert yaml.safe_load(folder.experiment.read_text())["seed"] == 5


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
    assert opened(tmp_path).experiment.exists()


def test_resume_keeps_the_files_and_needs_no_earlier_run(tmp_path):
    folder = opened(tmp_path, resume=True)
    folder.trials.write_text("x")
    opened(tmp_path, resume=True)
    assert folder.trials.read_text() == "x"


def test_resume_with_another_experiment_names_every_setting_that_differs(tmp_path):
    opened(tmp_path, learner={"name": "weight_sparse", "interval": 2})
    with pytest.raises(RunExists) as caught:
        opened(tmp_path, resume=True, seed=1, target={"sparsity": 0.6}, finetune={"lr": 0.5, "epochs": 10},
               learner={"name": "weight_sparse", "interval": 4}, resources={"precision": "bf16"})  # fmt: skip
    assert (
        "these differ: learner.interval (4 instead of 2), target.sparsity (0.6 instead of 0.5), "
        "finetune.lr (0.5 instead of 0.02), seed (1 instead of 0), resources.precision ('bf16' instead of 'auto'). "
        "Remedy"
    ) in str(caught.value)


def test_another_component_is_named_without_its_settings_and_a_pipelines_step_by_its_place(tmp_path):
    opened(tmp_path, learner=["channel_pruned", {"name": "litert_quant", "images": 50}])
    with pytest.raises(RunExists, match=r"these differ: learner.1.images \(60 instead of 50\). Remedy"):
        opened(tmp_path, resume=True, learner=["channel_pruned", {"name": "litert_quant", "images": 60}])
    with pytest.raises(RunExists, match=r"these differ: learner \(\{'name': 'weight_sparse'\} instead of \["):
        opened(tmp_path, resume=True)
    with pytest.raises(RunExists, match=r"these differ: learner.1.name \('uniform_quant' instead of 'litert_quant'\)"):
        opened(tmp_path, resume=True, learner=["channel_pruned", {"name": "uniform_quant", "bits": 4}])


def test_a_run_may_continue_with_other_resources_and_expectations(tmp_path):
    folder = opened(tmp_path)
    opened(tmp_path, resume=True, resources={"workers": 2, "trial": {"cpu": 4}})
    assert load(folder.experiment).resources.workers == 2
    opened(tmp_path, resume=True, teacher={"expect": 0.5})
    assert load(folder.experiment).teacher.expect == 0.5


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


IDENTITY = {
    "pfray": "1.0", "architecture": "a", "weights": "w", "outputs": [1.0, 2.0], "train data": "t",
    "validation data": "v", "test data": "x", "classes": [10], "contents": {"train inputs": "c"}, "code": {},
    "task": {}, "functions": {},
}  # fmt: skip


def begun(tmp_path, trials: str = "x"):
    folder = opened(tmp_path, identity=IDENTITY)
    folder.trials.write_text(trials)
    return folder


def test_a_run_is_continued_with_what_it_began_with_and_refused_with_anything_else(tmp_path):
    folder = begun(tmp_path)
    opened(tmp_path, resume=True, identity=IDENTITY)
    other = {**IDENTITY, "weights": "other", "contents": {"train inputs": "other"}}
    with pytest.raises(RunExists, match=r"weights; the data.s values\. Remedy: .*--force") as caught:
        opened(tmp_path, resume=True, identity=other)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    assert folder.trials.read_text() == "x"
    opened(tmp_path, force=True, identity=other)
    opened(tmp_path, resume=True, identity=other)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"pfray": "1.0"}'])
def test_a_run_that_does_not_say_what_it_began_with_is_refused_once_it_has_results(tmp_path, content):
    folder = begun(tmp_path)
    folder.identity.unlink()
    if content is not None:
        folder.identity.write_bytes(content)
    with pytest.raises(RunExists, match=r"of an earlier version of pfray, or its identity.json is missing or damaged"):
        opened(tmp_path, resume=True, identity=IDENTITY)
    folder.trials.unlink()
    opened(tmp_path, resume=True, identity=IDENTITY)


@pytest.mark.parametrize("content", ["", "[]", "a: [b\n\tc: '", "name: exp\n", "- " * 2000])
def test_a_damaged_experiment_file_is_written_again_where_the_run_is_known_to_be_the_same(tmp_path, content, caplog):
    folder = begun(tmp_path)
    saved = folder.experiment.read_text()
    folder.experiment.write_text(content)
    opened(tmp_path, resume=True, identity=IDENTITY)
    assert folder.experiment.read_text() == saved
    assert caplog.text.count("experiment.yaml is damaged; it is written again") == 1
    folder.experiment.write_text(content)
    with pytest.raises(RunExists, match=r"experiment.yaml is damaged, so that what it was of cannot be told. Remedy"):
        opened(tmp_path, resume=True, identity=IDENTITY, seed=1)


@pytest.mark.parametrize("text", ["2026-11-28", "=", "2026-11-28 10:00:00", "1e3", "no"])
def test_texts_that_yaml_might_take_for_something_else_are_the_same_after_a_resume(tmp_path, text):
    folder = opened(tmp_path, model={"name": "lenet", "weights": text})
    assert load(folder.experiment).model.weights == text
    opened(tmp_path, resume=True, model={"name": "lenet", "weights": text})
    with pytest.raises(RunExists, match=r"these differ: model.weights \('other' instead of"):
        opened(tmp_path, resume=True, model={"name": "lenet", "weights": "other"})



@pytest.fixture
def path(tmp_path) -> Path:
    """Of a search whose six trials are finished."""
    drive(make("random", tmp_path / "search", trials=TRIALS))
    return tmp_path / "search" / "trials.jsonl"


def lost(folder: Path, message: str) -> None:
    with pytest.raises(StorageError, match=message) as error:
        check_trials(RunFolder(folder), SPACE, TRIALS)
    assert "\n" not in str(error.value)
    assert "Remedy: put the file back, or --force to begin anew" in str(error.value)


def test_trials_that_the_search_had_finished_and_nobody_has_are_missed_before_anything_is_done(path, tmp_path):
    check_trials(RunFolder(tmp_path), SPACE, TRIALS)
    content = path.read_bytes()
    path.write_bytes(b"")
    lost(tmp_path, r"search/trials.jsonl holds no trial, and the search had finished 6\.")
    path.unlink()
    lost(tmp_path, r"search/trials.jsonl is missing, and the search had finished 6\.")
    path.write_bytes(content[:-20])
    check_trials(RunFolder(tmp_path), SPACE, TRIALS)  # the last trial is run again
    assert len(read_trials(path)) == TRIALS - 1
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "compressed.safetensors").touch()
    lost(tmp_path, r"holds 5 trials; the search had finished 6, and .*compressed.safetensors was made of them\.")


def test_trials_that_were_built_upon_are_missed_without_a_state_too(path, tmp_path):
    (path.parent / "state.json").unlink()
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "compressed").mkdir()
    check_trials(RunFolder(tmp_path), SPACE, TRIALS)
    path.unlink()
    lost(tmp_path, "trials.jsonl is missing, and .*training/compressed was made of some")


def test_the_rescorings_file_is_looked_at_too(path, tmp_path):
    again = tmp_path / "rescore" / "trials.jsonl"
    drive(make("uniform", again.parent))
    check_trials(RunFolder(tmp_path), SPACE, TRIALS)
    content = again.read_text()
    again.write_text("x\n" + content)
    with pytest.raises(StorageError, match=r"rescore/trials.jsonl, line 1: 'x' is no record of a trial"):
        check_trials(RunFolder(tmp_path), SPACE, TRIALS)
    again.write_text(content)
    (path.parent / "timed_plans.json").write_text("{}")
    check_trials(RunFolder(tmp_path), SPACE, TRIALS)
    again.write_text("")
    lost(tmp_path, "rescore/trials.jsonl is missing or empty, and .*timed_plans.json was made of its best plan")
    path.unlink()
    lost(tmp_path, "search/trials.jsonl is missing")
