"""A teacher far from what is expected of it ends a run before anything is made from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pfray
from pfray.config.schema import Experiment
from pfray.errors import ConfigError, TrainingFailed, WeightsError
from pfray.reporting.observers import Observer, Observers
from pfray.task import Split, Task
from pfray.workflow import setup
from pfray.workflow.expected_metric import Expected, check_trained_teacher, expected_of

USERS = """
import torch
from torch import nn
from torch.nn import functional as F
from pfray.task import Split, Task

def data(sign=1.0):
    targets = torch.arange(40) % 4
    split = Split(sign * F.one_hot(targets, 4).float().view(-1, 4, 1, 1), targets)
    return Task("bits", split, split, split, 4)

def numbers():
    inputs = torch.arange(1.0, 41).view(-1, 1, 1, 1)
    split = Split(inputs, inputs.flatten(1))
    return Task("numbers", split, split, split, 1, loss=F.mse_loss, score=lambda o, t: (o - t).abs().flatten(),
                metric_name="mae", higher_is_better=False, is_share=False)

def net(num_outputs, in_channels):
    made = nn.Sequential(nn.Flatten(), nn.Linear(in_channels, num_outputs), nn.Linear(num_outputs, num_outputs))
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made
"""


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "expecting.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("expecting", None)


def weights(order: list[int], **beside: Any) -> str:
    """A file for ``net`` that is right for the classes that ``order`` leaves at their places."""
    first = torch.eye(len(order))[order]
    state = {"1.weight": first, "1.bias": torch.zeros(len(order)), "2.weight": torch.eye(len(order)),
             "2.bias": torch.zeros(len(order))}  # fmt: skip
    torch.save({"state_dict": state, **beside}, "w.pth")
    return "w.pth"


def experiment(file: str | None, data: Any = "expecting:data", **teacher: Any) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": {"name": "expecting:net", "weights": file}, "data": data, "learner": "weight_sparse",
        "target": {"sparsity": 0.5}, "export": {"tflite": False}, "search": {"objective": "accuracy"},
        "teacher": teacher,
    })  # fmt: skip


class Notes(Observer):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def load(*args: Any, **teacher: Any) -> list[str]:
    """Notes of a load."""
    notes = Notes()
    setup.load(experiment(*args, **teacher), Observers([notes]))
    return notes.texts


RIGHT, HALF, WRONG = [0, 1, 2, 3], [0, 1, 3, 2], [1, 2, 3, 0]
QUARTER = [0, 2, 3, 1]


def test_weights_as_good_as_expected_are_noted():
    (*_, note) = load(weights(RIGHT), expect=0.71)
    assert note == "note: model.weights: w.pth has accuracy 100.0 % on 40 validation samples, 71.0 % as " \
                   "teacher.expect states"  # fmt: skip


@pytest.mark.parametrize(("order", "found", "expect"), [
    (WRONG, "0.0", 0.01), (WRONG, "0.0", 0.71), (QUARTER, "25.0", 0.501),
])  # fmt: skip
def test_less_than_half_of_what_is_expected_is_refused_in_one_line(order, found, expect):
    with pytest.raises(WeightsError) as caught:
        load(weights(order), expect=expect)
    text = str(caught.value)
    assert f"w.pth has accuracy {found} % on 40 validation samples, less than half of {100 * expect:.1f} % as" in text
    assert "normalized the inputs in another way" in text
    assert "classes in another order. Remedy: " in text
    assert "\n" not in text


def test_half_of_what_is_expected_is_enough():
    assert "accuracy 50.0 %" in load(weights(HALF), expect=1.0)[-1]


def test_another_normalization_shows():
    # Negative inputs turn the largest output into the smallest.
    with pytest.raises(WeightsError, match=r"has accuracy 0.0 %"):
        load(weights(RIGHT), {"name": "expecting:data", "sign": -1.0}, expect=0.9)


def test_the_accuracy_that_the_file_states_is_expected_unless_the_user_says_otherwise():
    assert load(weights(RIGHT, best_acc1=93.5))[-1].endswith("validation samples, 93.5 % as the file states")
    with pytest.raises(WeightsError, match=r"less than half of 93.5 % as the file states. The usual causes"):
        load(weights(QUARTER, best_acc1=93.5))
    assert load(weights(QUARTER, best_acc1=93.5), expect=0.3)[-1].endswith("30.0 % as teacher.expect states")


def test_without_an_expectation_weights_are_not_judged():
    assert not any("validation samples" in note for note in load(weights(WRONG)))


def test_a_teacher_that_is_taken_as_it_is_and_one_from_python_are_judged_too():
    with pytest.raises(WeightsError, match=r"the model has accuracy 25.0 % .* less than half of 51.0 %"):
        load(None, expect=0.51, epochs=0)
    assert not any("validation samples" in note for note in load(None, expect=0.51, epochs=1))
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
    net.load_state_dict(torch.load(weights(WRONG))["state_dict"])
    inputs = torch.eye(4).repeat(10, 1).view(-1, 4, 1, 1)
    pair = (inputs, torch.arange(40) % 4)
    with pytest.raises(WeightsError, match=r"the model has accuracy 0.0 % on 40 validation samples"):
        pfray.compress(net, pair, pair, target={"sparsity": 0.5}, learner="weight_sparse", teacher={"expect": "71%"})
    assert not Path("runs").exists()


def test_an_expectation_out_of_the_metrics_range_is_refused_before_a_training():
    for file in (weights(RIGHT), None):
        with pytest.raises(ConfigError, match=r"teacher.expect: 71 is not allowed, since accuracy is a share: above 0"):
            load(file, expect=71)


def test_a_metric_that_is_better_lower_may_be_twice_as_large():
    # Outputs of zero have as error the mean of 1 to 40.
    zeros = {"1.weight": (1, 1), "1.bias": (1,), "2.weight": (1, 1), "2.bias": (1,)}
    torch.save({"state_dict": {n: torch.zeros(shape) for n, shape in zeros.items()}, "acc": 0.99}, "w.pth")
    assert load("w.pth", "expecting:numbers", expect=10.25)[-1].endswith(
        "mae 20.5 on 40 validation samples, 10.25 as teacher.expect states"
    )
    with pytest.raises(WeightsError, match=r"mae 20.5 on 40 validation samples, more than twice 10 as teacher.expect"):
        load("w.pth", "expecting:numbers", expect=10)
    # An accuracy of the file is no error.
    assert not any("validation samples" in note for note in load("w.pth", "expecting:numbers"))


def test_a_teacher_that_was_trained_badly_is_another_error():
    split = Split(torch.eye(4).repeat(10, 1), torch.arange(40) % 4)
    task, net = Task("bits", split, split, split, 4), nn.Linear(4, 4)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    notes: list[str] = []
    check_trained_teacher(Expected(0.5, "teacher.expect"), net, task, notes.append)
    assert notes == [
        "the teacher was trained to accuracy 25.0 % on 40 validation samples, 50.0 % as teacher.expect states"
    ]
    with pytest.raises(TrainingFailed, match=r"trained to accuracy 25.0 % on 40 .* Remedy: more teacher.epochs"):
        check_trained_teacher(Expected(0.51, "teacher.expect"), net, task, notes.append)
    assert expected_of(experiment(None), task) is None
