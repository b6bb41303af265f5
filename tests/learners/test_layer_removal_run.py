"""A whole run of layer removal through Ray: searched by a policy, thinned in a second stage, exported, transferred."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pfray
from pfray.config.schema import load
from pfray.data import digits
from pfray.models.vgg import vgg11
from pfray.run import run
from pfray.training.loop import fit
from pfray.training.settings import Training

CLASSES = [0, 1, 4, 7]


def experiment(storage: Path, name: str, search: dict[str, Any], **sections: Any) -> Path:
    raw: dict[str, Any] = {
        "name": name, "storage": str(storage), "data": {"name": "digits", "classes": CLASSES},
        "model": {"name": "vgg11", "width": 0.125, "weights": str(storage / "teacher.pt")},
        "learner": {"name": "layer_removal", "filters": 0.5, "filter_epochs": 1, "round_to": 1},
        "target": {"params": "0.6x"}, "distill": {"weight": 0.7},
        "search": {"name": "policy_gradient", "students": 2, "objective": "ddc", "finetune_steps": 3,
                   "baselines": [], "validation_images": 60, "rescore": 0, **search},
        "finetune": {"epochs": 2, "lr": 0.02, "batch_size": 32}, "export": {"images": 50, "rounds": 3},
        "resources": {"parallel": 1},
        **sections,
    }  # fmt: skip
    path = storage / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("removal")
    torch.manual_seed(0)
    teacher = vgg11(num_outputs=len(CLASSES), in_channels=1, width=0.125)
    fit(teacher, digits.build(classes=CLASSES), Training(epochs=4, lr=0.05, batch_size=32), seed=0)
    torch.save(teacher.state_dict(), storage / "teacher.pt")
    return run(load(experiment(storage, "layers", {"trials": 6})))


def test_the_student_is_physically_smaller_everywhere(folder):
    summary = json.loads((folder / "summary.json").read_text())
    teacher, student = summary["teacher"], summary["compressed"]
    # At most 0.6 is left by the removal, of which the second stage keeps half the filters, so about a quarter.
    assert student["params"] < 0.3 * teacher["params"]
    assert student["macs"] < teacher["macs"]
    assert set(summary["plan"].values()) == {0.0, 1.0}
    assert (folder / "model.tflite").stat().st_size < 0.4 * (folder / "teacher.tflite").stat().st_size
    model = pfray.load(folder / "model.pt2")
    assert sum(parameter.numel() for parameter in model.parameters()) == student["params"]
    task = digits.build(classes=CLASSES)
    with torch.inference_mode():
        assert model(task.normalize(task.test.inputs[:3])).shape == (3, 4)


def test_the_students_rewards_weigh_speed_and_no_architecture_is_timed_anew(folder):
    records = [json.loads(line) for line in (folder / "search" / "trials.jsonl").read_text().splitlines()]
    assert len(records) == 6
    assert all(record["error"] is None and record["measurement"]["latency_ms"] > 0 for record in records)
    assert all(0 <= record["score"] <= 1 for record in records)


def test_its_policy_starts_another_run(folder):
    settings = {"trials": 3, "policy_from": str(folder)}
    quick = {"learner": "layer_removal", "finetune": {"epochs": 0}, "export": {"tflite": False}}
    again = run(load(experiment(folder.parent, "transferred", settings, **quick)))
    assert (again / "search" / "policy.safetensors").exists()
    assert json.loads((again / "summary.json").read_text())["trials"]["finished"] == 3
