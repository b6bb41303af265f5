"""Requests that are refused before anything runs: one line each, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pfray.models.lenet import lenet
from pfray.run import main


def write(folder: Path, raw: dict) -> Path:
    path = folder / "exp.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(("change", "words"), [
    ({"target": {"sparsity": 0.995}}, "target.sparsity: 0.995 is out of reach; this model and learner reach 0 to 0.97"),
    ({"target": {"params": 10}}, "target.params: 10 is out of reach"),
    ({"target": {"params": "800k"}}, "target.params: '800k' (800,000) is met by the model as it is"),
    ({"data": {"factory": "tests.userland:missing_file"}}, "data: FileNotFoundError: "),
    ({"data": {"factory": "tests.userland:mean_score"}, "model": {"factory": "tests.userland:Regressor"}},
     "not a tensor of one number a sample"),
    ({"data": {"factory": "tests.userland:empty"}}, "the validation split is empty"),
    ({"model": {"name": "lenet", "num_outputs": -1}}, "model: RuntimeError: "),
    ({"learner": "pfray.learner.base:Algorithm"}, "with a settings_type"),
    ({"learner": "pfray.learner.trainable:Learner"}, "is not a subclass of pfray.learner.base.Algorithm"),
    ({"finetune": {"batch_size": 3}, "resources": {"workers": 2}}, "finetune.batch_size is 3, which 2 workers"),
    ({"finetune": {"rungs": 2, "epochs": 3}}, "finetune.rungs: 2 is not allowed: rungs share half of the epochs"),
    ({"finetune": {"average": "half"}}, "finetune.average: 'half' is not allowed: none, ema, or the last share"),
    ({"search": {"space": {"finetune.average": "uniform(0.1, 1)"}}}, "'finetune.average' cannot be searched"),
    ({"data": {"name": "cifar10", "path": "no/such/folder"}}, "no/such/folder"),
    ({"search": {"space": {"finetune.lr": "uniform(1, 0)"}}}, "search.space.finetune.lr: 'uniform(1, 0)': the lower"),
    ({"search": {"space": {"finetune.lr": "uniform(0.1, 1)"}}}, "changes nothing in trials without fine-tuning"),
    ({"search": {"name": "critic", "env": "Pendulum-v1"}}, "search.env: 'Pendulum-v1' is no environment to search in"),
    ({"search": {"name": "ddpg", "env": "envs:pfray/None-v0"}}, "search.env: 'envs:pfray/None-v0' is no environment"),
    ({"search": {"warm_start": "no/such/run"}}, "search.warm_start: no/such/run holds no run that can be read"),
    ({"search": {"objective": "accurate"}}, "search.objective: 'accurate' is not allowed"),
    ({"data": {"factory": "tests.userland:brightness"}, "model": {"factory": "tests.userland:Regressor"},
      "target": {"params": "0.5x"}, "search": {"objective": "agreement"}}, "agreement with the teacher is not defined"),
    ({"data": {"factory": "tests.userland:broken"}}, "returned a str. Remedy: return a pfray.task.Task"),
    ({"data": "cifar10_missing"}, "Did you mean 'cifar10'?"),
    ({"model": {"name": "lenet", "in_channels": 3}}, "fails on an input of shape (1, 1, 32, 32)"),
    ({"model": {"name": "lenet", "num_outputs": 5}}, "a model with 10 outputs"),
    ({"model": {"name": "lenet", "weights": "no/such.pt"}}, "model.weights: no file no/such.pt"),
    ({"model": {"name": "mobilenet_v1", "width": -1}}, "width is -1"),
    ({"learner": {"name": "weight_sparse", "skip": ["conv9"]}}, "no layer 'conv9'"),
])  # fmt: skip
def test_a_wrong_request_is_one_line_and_nothing_is_written(tmp_path, quick, capsys, change, words):
    assert main([str(write(tmp_path, {**quick, **change}))]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert not Path(quick["storage"]).exists()


def test_weights_of_another_architecture_name_the_keys(tmp_path, quick, capsys):
    torch.save(lenet(in_channels=3).state_dict() | {"extra": torch.zeros(1)}, tmp_path / "w.pt")
    assert main([str(write(tmp_path, {**quick, "model": {"name": "lenet", "weights": str(tmp_path / "w.pt")}}))]) == 2
    errors = capsys.readouterr().err
    assert "unknown: extra; of another shape: conv1.weight (6, 3, 5, 5) instead of (6, 1, 5, 5)" in errors


def test_truncated_weights_are_refused(tmp_path, quick, capsys):
    torch.save(lenet(in_channels=1).state_dict(), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    assert main([str(write(tmp_path, {**quick, "model": {"name": "lenet", "weights": str(tmp_path / "w.pt")}}))]) == 2
    assert "is not a readable state-dict file" in capsys.readouterr().err


def test_a_storage_folder_that_cannot_be_made_is_a_clear_error(tmp_path, quick, capsys):
    (tmp_path / "runs").write_text("a file, not a folder")
    assert main([str(write(tmp_path, quick))]) == 1
    errors = capsys.readouterr().err
    assert "cannot be written" in errors
    assert "storage=" in errors


def test_an_address_without_a_cluster_is_a_wrong_request(tmp_path, quick, capsys, monkeypatch):
    import ray

    def refuse(**_: object) -> None:
        raise ConnectionError("nothing listens there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    assert main([str(write(tmp_path, quick)), "resources.address=127.0.0.1:1"]) == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in capsys.readouterr().err
    assert not (Path(quick["storage"]) / "exp").exists()


def test_a_ray_that_does_not_start_is_one_line_with_a_remedy(tmp_path, quick, capsys, monkeypatch):
    import ray

    def give_up(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because the GCS is overloaded")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", give_up)
    assert main([str(write(tmp_path, quick))]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Ray did not start (The current node timed out during startup.")
    assert "Remedy: try again when the machine has less to do" in line
    assert not (Path(quick["storage"]) / "exp").exists()


@pytest.mark.parametrize(("resources", "words"), [
    ({"workers": 4}, "resources.workers: 4 is not allowed, the cluster has 2"),
    ({"trial": {"cpu": 16}}, "resources.trial.cpu: 16 is not allowed"),
    ({"trial": {"gpu": 64}}, "resources.trial.gpu: 64 is not allowed"),
])  # fmt: skip
def test_more_than_the_cluster_has_is_refused_instead_of_waited_for(
    ray_cluster, tmp_path, quick, capsys, resources, words
):
    assert main([str(write(tmp_path, {**quick, "resources": resources}))]) == 2
    assert words in capsys.readouterr().err
    assert not (Path(quick["storage"]) / "exp").exists()
