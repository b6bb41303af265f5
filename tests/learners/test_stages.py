"""A channel learner's whole run through Ray: ``finish``, the trainings that lead to the plan, resuming between them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

import pfray
from learners.channel_pruned import ChannelPruned, Settings
from pfray.config.schema import load
from pfray.data import digits
from pfray.errors import StorageError
from pfray.learner.context import Context
from pfray.measure.cost import count_params, total_macs
from pfray.nn.modes import place
from pfray.run import main, run
from pfray.task import example_input
from pfray.workflow import retrain

SETTINGS = Settings(images=200, positions=10, round_to=2, group_size=2, group_epochs=2)


def write(storage: Path, teacher_file: Path) -> Path:
    """The experiment: the plan of one trial, reached by way of the first two of LeNet's four groups."""
    raw = {
        "name": "staged", "storage": str(storage), "data": "digits",
        "model": {"name": "lenet", "weights": str(teacher_file)},
        "learner": {"name": "channel_pruned", "images": SETTINGS.images, "positions": SETTINGS.positions,
                    "round_to": SETTINGS.round_to, "group_size": SETTINGS.group_size,
                    "group_epochs": SETTINGS.group_epochs},
        "target": {"macs": "0.5x"}, "search": {"name": "uniform", "trials": 1, "baselines": []},
        "finetune": {"epochs": 3, "lr": 0.02, "batch_size": 64}, "export": {"images": 50, "rounds": 3},
    }  # fmt: skip
    path = storage / "staged.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def staged(ray_cluster: None, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(load(write(tmp_path_factory.mktemp("staged"), teacher_file)))


@pytest.fixture(scope="module")
def teacher(context: Context) -> nn.Module:
    return place(copy.deepcopy(context.teacher), "cpu").eval()


def trained(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / "training" / f"{name}.safetensors")


def epochs(folder: Path, name: str) -> list[int]:
    lines = (folder / "training" / name / "curve.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


@pytest.fixture
def algorithm(teacher: nn.Module) -> ChannelPruned:
    return ChannelPruned(teacher, digits.build(), SETTINGS)


def structured(algorithm: ChannelPruned, plan: dict[str, float]) -> nn.Module:
    return algorithm.rebuild(algorithm.structure(plan))


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_the_shipped_model_has_the_plans_channels_costs_what_was_predicted_and_keeps_its_accuracy(
    staged, teacher, algorithm
):
    summary, task = json.loads((staged / "summary.json").read_text()), digits.build()
    predicted = algorithm.space().costs(summary["plan"])
    found = summary["compressed"]
    assert (found["macs"], found["params"], found["stored_bits"] / 8) == tuple(predicted.values())
    assert summary["teacher"]["macs"] == total_macs(teacher, example_input(task))
    assert predicted["macs"] <= 0.5 * summary["teacher"]["macs"] < 1.3 * predicted["macs"]
    assert summary["compressed"]["accuracy"] > summary["teacher"]["accuracy"] - 0.03 > 0.85
    model = structured(algorithm, summary["plan"])
    assert total_macs(model, example_input(task)) == predicted["macs"]
    assert count_params(model)[0] == predicted["params"] < 0.5 * count_params(teacher)[0]
    model.load_state_dict(pfray.load(staged / "model.packed"))
    inputs = task.normalize(task.test.inputs[:50])
    with torch.no_grad():
        assert torch.allclose(pfray.load(staged / "model.pt2")(inputs), place(model, "cpu")(inputs), atol=1e-4)
    # The .tflite has been run: on the same images it is as accurate, and it is no larger than its weights ask for.
    exported = summary["exported"]
    assert exported["accuracy"] == pytest.approx(exported["torch_accuracy"], abs=0.01)
    assert exported["accuracy"] > 0.8
    assert exported["size_bytes"] < 0.55 * exported["teacher_size_bytes"]


def test_every_stage_is_trained_and_the_later_one_starts_from_the_earlier(staged, algorithm):
    plan = json.loads((staged / "summary.json").read_text())["plan"]
    (milder,) = algorithm.stages(plan)
    assert [name for name, ratio in milder.plan.items() if ratio < 1] == ["conv1", "conv2"]
    assert [name for name, ratio in plan.items() if ratio < 1] == ["conv1", "conv2", "fc1", "fc2"]
    assert (epochs(staged, "compressed-1"), epochs(staged, "compressed")) == ([1, 2], [1, 2, 3])

    first = algorithm.finish(milder.plan).model
    assert close(trained(staged, "compressed-1.start"), first.state_dict())
    assert not close(trained(staged, "compressed-1"), first.state_dict())
    between = structured(algorithm, milder.plan)
    between.load_state_dict(trained(staged, "compressed-1"))
    start = trained(staged, "compressed.start")
    assert close(start, algorithm.finish(plan, place(between, "cpu")).model.state_dict())
    # The result of the training in between is in it.
    assert not close(start, algorithm.finish(plan, first).model.state_dict())
    assert not close(start, algorithm.finish(plan).model.state_dict())
    assert not close(trained(staged, "compressed"), start)


def test_a_run_that_ends_between_two_stages_resumes_with_the_second_and_gives_the_same_weights(
    staged, teacher_file, tmp_path, monkeypatch, capsys
):
    path, folder = write(tmp_path, teacher_file), tmp_path / "staged"
    finished: list[list[str]] = []
    whole = retrain.finish

    def finish(candidate, context, before, *arguments):
        finished.append([name for name, ratio in candidate.plan.items() if ratio < 1])
        if before is not None and len(finished) == 2:
            raise StorageError("the power is gone")
        return whole(candidate, context, before, *arguments)

    monkeypatch.setattr(retrain, "finish", finish)
    assert main([str(path), "export.tflite=false"]) == 1
    assert "the power is gone" in capsys.readouterr().err
    assert not (folder / "summary.json").exists()
    kept = {file: file.read_bytes() for file in sorted((folder / "training").glob("compressed-1*/curve.jsonl"))}
    kept |= {file: file.read_bytes() for file in sorted((folder / "training").glob("*.safetensors"))}
    assert sorted(file.name for file in kept) == [
        "compressed-1.safetensors", "compressed-1.start.safetensors", "curve.jsonl"
    ]  # fmt: skip

    assert main([str(path), "export.tflite=false", "--resume"]) == 0
    groups = ["conv1", "conv2", "fc1", "fc2"]
    assert finished == [groups[:2], groups, groups]
    assert all(file.read_bytes() == content for file, content in kept.items())
    for name in ("compressed-1", "compressed.start", "compressed"):
        own, alone = trained(folder, name), trained(staged, name)
        assert own.keys() == alone.keys()
        assert all(torch.equal(own[key], alone[key]) for key in own), name
