"""The whole job, from an experiment file to the files that are shipped."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import pfray
from learners.weight_sparse import zero_count
from pfray.config.schema import load
from pfray.data import digits
from pfray.measure import interpreter
from pfray.models.lenet import lenet
from pfray.nn.layers import weight_layers
from pfray.run import main, run
from pfray.search._trial_log import read_trials
from pfray.workflow import finalize
from tests.whole_runs import summary_of, write

KEYS = {
    "experiment", "learner", "searcher", "seed", "target", "limits", "teacher", "uniform", "allocate", "compressed",
    "exported", "metric", "costs", "shared", "plan", "uniform_plan", "objective", "choice", "trials", "seconds",
    "own_seconds", "measured_on",
}  # fmt: skip
MEASURED = {"accuracy", "loss", "params", "nonzero_params", "macs", "size_bytes"}


@pytest.fixture(scope="session")
def finished(ray_cluster, tmp_path_factory) -> Path:
    """One whole run, looked at by many tests."""
    folder = tmp_path_factory.mktemp("whole")
    raw = {
        "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": "75%"},
        "teacher": {"epochs": 12, "batch_size": 64}, "finetune": {"epochs": 5, "lr": 0.02, "batch_size": 64},
        "distill": {"weight": 0.5},
        "search": {"name": "tpe", "trials": 8, "startup": 4, "validation_images": 150, "rescore": 2},
        "export": {"images": 100, "rounds": 5}, "storage": str(folder / "runs"),
    }  # fmt: skip
    return run(load(write(folder, raw)))


def test_the_summary_has_its_keys_and_the_target_is_met_exactly(finished):
    summary = summary_of(finished)
    assert set(summary) == KEYS
    assert summary["limits"] == {"sparsity": 0.75}
    for name in ("teacher", "uniform", "allocate", "compressed"):
        assert set(summary[name]) >= MEASURED
    assert summary["trials"] == {"finished": 8, "failed": 0, "best": summary["trials"]["best"]}
    assert summary["teacher"]["accuracy"] > 0.93
    assert summary["compressed"]["accuracy"] >= summary["teacher"]["accuracy"] - 0.02
    state = pfray.load(finished / "model.packed")
    layers = weight_layers(lenet(in_channels=1))
    pruned = {name: int((state[f"{name}.weight"] == 0).sum()) for name in layers}
    for name, value in summary["plan"].items():
        assert abs(pruned[name] - zero_count(value, layers[name].weight.numel())) <= 1, name
    assert abs(sum(pruned.values()) - 0.75 * sum(m.weight.numel() for m in layers.values())) <= len(layers)
    assert len(set(summary["uniform_plan"].values())) == 1


def test_the_packed_file_is_smaller_and_holds_the_shipped_weights(finished):
    summary = summary_of(finished)
    assert summary["compressed"]["size_bytes"] == (finished / "model.packed").stat().st_size
    assert summary["compressed"]["size_bytes"] <= 0.35 * summary["teacher"]["size_bytes"]
    # Where a baseline's plan was the best, its training is the shipped model's, and there is no other.
    origin = summary["choice"]["origin"]
    name = origin if origin in ("uniform", "allocate") else "compressed"
    trained = load_file(finished / "training" / f"{name}.safetensors")
    packed = pfray.load(finished / "model.packed")
    assert all(torch.equal(packed[name], trained[name]) for name in trained)


def test_the_program_the_packed_weights_and_the_tflite_agree(finished):
    summary, task = summary_of(finished), digits.build()
    inputs = task.normalize(task.test.inputs[:100])
    model = lenet(in_channels=1)
    model.load_state_dict(pfray.load(finished / "model.packed"))
    expected = model.eval()(inputs).detach()
    assert torch.allclose(pfray.load(finished / "model.pt2")(inputs), expected, atol=1e-4)
    (outputs,) = interpreter.predict(summary["exported"]["path"], inputs.numpy())
    assert np.abs(outputs - expected.numpy()).max() == pytest.approx(summary["exported"]["max_abs_diff"], abs=1e-4)
    accuracy = (outputs.argmax(1) == task.test.targets[:100].numpy()).mean()
    assert summary["exported"]["accuracy"] == pytest.approx(accuracy)
    assert summary["exported"]["size_bytes"] == (finished / "model.tflite").stat().st_size
    assert summary["exported"]["size_bytes"] < 0.5 * (finished / "teacher.tflite").stat().st_size
    assert summary["exported"]["latency_ms"] > 0


def test_every_trial_meets_the_target_and_the_baselines_come_first(finished):
    records = sorted(read_trials(finished / "search" / "trials.jsonl"), key=lambda r: r["trial"])
    assert [record["origin"] for record in records[:3]] == ["allocate", "uniform", "heuristic"]
    assert {"tpe, random start", "tpe"} <= {record["origin"] for record in records}
    assert all(0.75 <= record["cost"]["sparsity"] < 0.7502 for record in records)
    assert all(record["measurement"]["agreement"] == record["score"] for record in records)
    for record in records:
        assert 0 < record["standard_error"] == pytest.approx(record["measurement"]["agreement_error"])


def test_the_best_trials_are_measured_again_on_all_validation_images_and_the_best_of_them_is_chosen(finished):
    summary = summary_of(finished)
    records = {r["trial"]: r for r in read_trials(finished / "search" / "trials.jsonl")}
    again = read_trials(finished / "rescore" / "trials.jsonl")
    ranking = sorted(records.values(), key=lambda r: -r["score"])
    rivals = {r["trial"] for r in ranking[:2]} | {0}
    assert {r["trial"] for r in summary["choice"]["rescored"]} == rivals
    assert min(again, key=lambda r: r["trial"])["plan"] == ranking[0]["plan"]
    best = max(again, key=lambda r: r["score"])
    assert summary["plan"] == best["plan"] == records[summary["choice"]["trial"]]["plan"]
    assert summary["choice"]["score"] == best["score"]
    assert all(r["score"] != records[r["trial"]]["score"] for r in summary["choice"]["rescored"])
    assert (summary["objective"], summary["trials"]["best"]) == ("agreement", summary["choice"]["trial"])
    assert "Chosen among the best" in (finished / "report.html").read_text()


def test_the_folder_holds_events_a_report_and_the_resolved_experiment(finished):
    assert list((finished / "events").glob("events.*"))
    assert "tpe" in (finished / "experiment.yaml").read_text()
    assert "exp: 75 % sparsity" in (finished / "report.html").read_text()
    assert not list(finished.rglob("*.part*"))


def test_a_finished_run_is_neither_overwritten_nor_done_twice(finished, capsys):
    again = str(finished / "experiment.yaml")
    before = (finished / "summary.json").read_bytes()
    assert main([again]) == 2
    assert "holds a run, finished. Remedy: --resume to continue it, --force to replace it" in capsys.readouterr().err
    assert main([again, "--resume"]) == 0
    assert main([again, "--resume", "seed=5"]) == 2
    assert "these differ: seed" in capsys.readouterr().err
    assert (finished / "summary.json").read_bytes() == before


def test_a_model_and_data_of_the_users_own_that_are_no_classification(ray_cluster, tmp_path, quick):
    raw = {
        **quick, "model": {"factory": "tests.userland:Regressor", "hidden": 16},
        "data": {"factory": "tests.userland:brightness"}, "target": {"params": "0.5x"},
        "search": {"name": "random", "trials": 3, "baselines": []},
        "teacher": {"epochs": 20, "lr": 0.05, "batch_size": 16},
    }  # fmt: skip
    summary = summary_of(run(load(write(tmp_path, raw))))
    assert summary["compressed"]["nonzero_params"] <= 0.5 * summary["teacher"]["params"]
    assert summary["compressed"]["params"] == 16 * 9 + 16 + 16 + 1
    assert summary["teacher"]["accuracy"] > 0.5


def test_a_warm_start_tries_the_best_plan_of_the_other_run_and_learns_from_all(finished, tmp_path, quick, capsys):
    raw = {
        **quick, "model": "lenet", "target": {"sparsity": "75%"}, "teacher": {"epochs": 12, "batch_size": 64},
        "finetune": {"epochs": 0}, "export": {"tflite": False},
        "search": {"name": "critic", "trials": 6, "warmup": 3, "validation_images": 150},
    }  # fmt: skip
    path = write(tmp_path, raw)
    # As if a searched plan had been the best: of those that need no search, this run would have its own.
    other = shutil.copytree(finished, tmp_path / "other")
    trials = read_trials(other / "search" / "trials.jsonl")
    best = next(record for record in trials if record["origin"] == "tpe")
    best["score"] = best["measurement"]["agreement"] = 0.0
    (other / "search" / "trials.jsonl").write_text("".join(json.dumps(record) + "\n" for record in trials))
    assert main([str(path), "--warm-start", str(other)]) == 0
    records = sorted(read_trials(tmp_path / "runs" / "exp" / "search" / "trials.jsonl"), key=lambda r: r["trial"])
    assert [r["origin"] for r in records] == ["allocate", "uniform", "heuristic", "warm start", "critic", "critic"]
    assert records[3]["plan"] == pytest.approx(best["plan"], abs=1e-9)
    assert main([str(path), "name=other", "target.sparsity=90%", "--warm-start", str(other)]) == 2
    assert "none of the 8 trials" in capsys.readouterr().err


def test_an_edited_plan_of_a_summary_is_retrained_as_it_is(finished, tmp_path, quick, capsys):
    raw = {
        **quick, "model": "lenet", "target": {"sparsity": "60%"}, "teacher": {"epochs": 12, "batch_size": 64},
        "finetune": {"epochs": 0}, "export": {"tflite": False}, "search": {"baselines": []},
    }  # fmt: skip
    path, other = write(tmp_path, raw), tmp_path / "plan.json"
    name, value = next(iter(summary_of(finished)["plan"].items()))
    plan = {**summary_of(finished)["plan"], name: value / 2}
    other.write_text(json.dumps({**summary_of(finished), "plan": plan}))
    given = ["search.name=given", f"search.plan={other}"]
    assert main([str(path), *given, "target.sparsity=90%"]) == 2
    assert "the plan misses target.sparsity: it has 0.7" in capsys.readouterr().err
    assert main([str(path), *given]) == 0
    folder = tmp_path / "runs" / "exp"
    assert [record["plan"] for record in read_trials(folder / "search" / "trials.jsonl")] == [plan]
    summary = summary_of(folder)
    assert (summary["plan"], summary["choice"]["origin"]) == (plan, "given")
    state = pfray.load(folder / "model.packed")
    assert (state[f"{name}.weight"] == 0).float().mean().item() == pytest.approx(value / 2, abs=0.01)


def test_trials_that_are_gone_or_foreign_are_said_at_the_beginning_of_a_resumed_run(finished, tmp_path, capsys):
    shutil.copytree(finished.parent, tmp_path / "runs")
    folder = tmp_path / "runs" / finished.name
    (folder / "summary.json").unlink()
    arguments = [str(finished / "experiment.yaml"), f"storage={tmp_path / 'runs'}", "--resume"]
    trials = folder / "search" / "trials.jsonl"
    content = trials.read_text()
    trials.write_text(content.replace('"score": -', '"score": "-', 1))
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {trials}, line 1: ")
    trials.unlink()
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert f"error: {trials} is missing, and the search had finished 8. Remedy" in printed.err
    assert "[search]" not in printed.out
    assert "plans without search" not in printed.out


def test_a_missed_max_drop_completes_the_files_and_ends_with_exit_code_1(ray_cluster, tmp_path, quick, capsys):
    raw = {
        **quick, "target": {"sparsity": 0.97, "max_drop": "1%"}, "search": {"name": "uniform"},
        "export": {"tflite": False}, "finetune": {"epochs": 0},
    }  # fmt: skip
    path = write(tmp_path, raw)
    assert main([str(path)]) == 1
    assert "target.max_drop allows 1.00" in capsys.readouterr().err
    assert (Path(raw["storage"]) / "exp" / "report.html").exists()
    assert main([str(path), "--resume"]) == 1


def test_a_teacher_far_from_what_is_expected_ends_the_run(ray_cluster, tmp_path, quick, capsys):
    teacher = {"epochs": 1, "lr": 1e-9, "expect": "90%"}
    path = write(tmp_path, {**quick, "model": "lenet", "teacher": teacher, "finetune": {"epochs": 0}})
    assert main([str(path)]) == 1
    text = capsys.readouterr().err
    assert "error: the teacher was trained to accuracy" in text
    assert "less than half of 90.0 % as teacher.expect states. Remedy: more teacher.epochs" in text
    assert not (tmp_path / "runs/exp/search/trials.jsonl").exists()
    assert main([str(path), "--resume", "teacher.expect=null"]) == 0


def test_a_model_that_gives_nan_in_training_fails_the_run_with_one_line(ray_cluster, tmp_path, quick, capsys):
    assert main([str(write(tmp_path, {**quick, "model": {"factory": "tests.userland:Diverging"}}))]) == 1
    assert "the loss became nan" in capsys.readouterr().err


def test_a_full_disk_is_a_clear_error_and_the_run_resumes(ray_cluster, tmp_path, quick, capsys, monkeypatch):
    raw = {**quick, "search": {"name": "uniform"}, "finetune": {"epochs": 0}, "export": {"tflite": False}}
    path = write(tmp_path, raw)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.packed")

    with monkeypatch.context() as patch:
        patch.setattr(finalize, "pack", full)
        assert main([str(path)]) == 1
    errors = capsys.readouterr().err
    assert "model.packed cannot be written (No space left on device)" in errors
    assert "--resume" in errors
    assert main([str(path), "--resume"]) == 0


def test_the_resolved_experiment_can_be_shown_without_a_run(tmp_path, quick, capsys):
    options = ["--show", "search.trials=9", "--address", "head:6379", "--warm-start", "runs/[1]"]
    assert main([str(write(tmp_path, quick)), *options]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["search"]["trials"] == 9
    assert shown["search"]["warm_start"] == "runs/[1]"
    assert shown["resources"]["address"] == "head:6379"
