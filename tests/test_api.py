"""pfray from Python, as a user's own script calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pfray
from pfray import api
from pfray.errors import ConfigError, DataError, RunExists

SCRIPT = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pfray


class Waves(Dataset):
    """Two sines; changes at every reading."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (count,), generator=generator)
        self.phases = torch.rand(count, generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        label = int(self.labels[index])
        wave = torch.sin((1 + label) * torch.linspace(0, 12, 64) + self.phases[index])
        return wave[None] + 0.05 * torch.randn(1, 64), label


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv1d(1, 16, 5), nn.Conv1d(16, 16, 5), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(2))


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def right(outputs, targets):
    return (outputs.argmax(1) == targets).float()


torch.manual_seed(0)
result = pfray.compress(
    Net(), train=DataLoader(Waves(256, 0), batch_size=32, shuffle=True), validation=Waves(64, 1), test=Waves(64, 2),
    loss=loss, metric=right, target={"macs": "0.5x"}, search={"name": "uniform", "baselines": []},
    teacher={"epochs": 4, "lr": 0.1}, finetune={"epochs": 2, "lr": 0.05}, export={"rounds": 3, "images": 32},
    storage=STORAGE, name="waves",
)
assert result.summary["compressed"]["macs"] <= 0.5 * result.summary["teacher"]["macs"]
assert sum(p.numel() for p in result.model.parameters()) == result.summary["compressed"]["params"]
assert result.model(torch.zeros(3, 1, 64)).shape == (3, 2)
assert result.report.is_file() and result.tflite.is_file() and result.program.is_file()
assert pfray.load(result.program)(torch.zeros(2, 1, 64)).shape == (2, 2)
print(result)
'''


def test_a_script_with_everything_defined_in_it(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.replace("STORAGE", repr(str(tmp_path / "runs"))))
    root = str(Path(__file__).resolve().parents[1])
    environment = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at most 0.5x MACs" in done.stdout
    assert "batch_size: 32" in (tmp_path / "runs/waves/experiment.yaml").read_text()


def test_every_mistake_of_the_request_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        pfray.compress(
            torch.nn.Linear(2, 2), (torch.zeros(4, 2), torch.zeros(4)), target={"mac": "0.5x"}, learner="chanel_pruned",
            finetune={"epochs": -1},
        )  # fmt: skip
    lines = str(caught.value).splitlines()
    assert any(line.startswith("target.mac: unknown key") for line in lines)
    assert any("finetune.epochs: -1 is not allowed" in line for line in lines)
    assert any("chanel_pruned" in line and "Did you mean 'channel_pruned'" in line for line in lines)


def test_a_mistake_of_the_data_is_one_line():
    with pytest.raises(DataError, match="train: a str"):
        pfray.compress(torch.nn.Linear(2, 2), "images/", target={"macs": "0.5x"})


def test_the_remedies_are_arguments():
    with pytest.raises(RunExists, match="resume=True to continue it, force=True to replace it"), api._in_python_words():
        raise RunExists("a run. Remedy: --resume to continue it, --force to replace it")


def test_a_name_is_made_of_the_model_and_the_learners():
    model = torch.nn.Linear(2, 2)
    assert api._run_name(model, "weight_sparse") == "linear-weight_sparse"
    assert api._run_name(model, [{"name": "channel_pruned"}, "mine:Mine"]) == "linear-channel_pruned-Mine"


class Mine:
    pass


def test_a_learners_class_is_its_import_path():
    class Inner:
        pass

    assert api._named(Mine) == f"{__name__}:Mine"
    assert api._plain([Mine, {"name": "x", "skip": ("a",)}]) == [f"{__name__}:Mine", {"name": "x", "skip": ["a"]}]
    with pytest.raises(ConfigError, match="made inside a function"):
        api._named(Inner)


def test_the_batch_size_is_the_loaders_unless_another_is_asked_for():
    raw = {"teacher": {"batch_size": 7}}
    api._add_batch_size(raw, torch.utils.data.DataLoader([1, 2], batch_size=2))
    assert raw == {"teacher": {"batch_size": 7}, "finetune": {"batch_size": 2}}


def test_a_result_shows_itself(tmp_path):
    result = pfray.Result(
        torch.nn.Linear(2, 2), tmp_path, {}, tmp_path / "report.html", None, tmp_path / "model.pt2", "half & half",
        ("max_drop: missed",),
    )  # fmt: skip
    assert repr(result).splitlines() == ["half & half", "missed: max_drop: missed", f"report: {tmp_path}/report.html"]
    shown = result._repr_html_()
    assert "half &amp; half" in shown
    assert "model.pt2" in shown
