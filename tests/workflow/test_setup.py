from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pfray.config.schema import Experiment
from pfray.errors import ConfigError, DataError, UnsupportedModel
from pfray.workflow.components import resolve
from pfray.workflow.setup import build_model, build_task

USERS = """
import torch
from torch import nn
from pfray.task import Split, Task
from pfray.errors import DataError

given = {}

def data(count=20, classes=4, channels=2, size=6):
    torch.manual_seed(0)
    split = Split(torch.rand(count, channels, size, size), torch.arange(count) % min(classes, 4))
    return Task("mine", split, split, split, classes)

def missing_data():
    raise DataError("data: nothing there. Remedy: put it there")

def no_task():
    return [1, 2]

def picky_data(count):
    raise ValueError("count is odd\\nsecond line")

def net(**settings):
    given.clear()
    given.update(settings)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, settings["num_outputs"]))

def plain(hidden=8):
    given.clear()
    given.update(hidden=hidden)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 4))

def outputs_only(num_outputs):
    given.clear()
    given.update(num_outputs=num_outputs)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, num_outputs))

def too_few():
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 3))

def four_channels():
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 4))

def no_module():
    return "a model"

def noisy(num_outputs):
    return nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, num_outputs))

def feature_map():
    return nn.Sequential(nn.Conv2d(2, 4, 3))

def bare():
    return nn.Conv2d(2, 4, 6)
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A user's module ``mine`` with models and data; what its models were last given is in ``given``."""
    (tmp_path / "mine.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    import mine  # type: ignore[import-not-found]

    yield mine
    sys.modules.pop("mine", None)


def experiment(**changes: object) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": "mine:net", "data": "mine:data", "learner": "weight_sparse",
        "target": {"sparsity": 0.5}, **changes,
    })  # fmt: skip


def build(**changes: object) -> nn.Module:
    wanted = experiment(**changes)
    parts = resolve(wanted)
    return build_model(wanted, parts, build_task(wanted, parts))


def test_a_users_model_and_data_come_by_import_path_with_their_settings(users):
    wanted = experiment(data={"factory": "mine:data", "count": 12}, model={"name": "mine:plain", "hidden": 5})
    parts = resolve(wanted)
    task = build_task(wanted, parts)
    assert (task.name, len(task.train), task.input_shape) == ("mine", 12, (2, 6, 6))
    build_model(wanted, parts, task)
    assert users.given == {"hidden": 5}


def test_a_model_is_given_the_tasks_outputs_and_channels_as_far_as_it_takes_them(users):
    build(model="mine:net")
    assert users.given == {"num_outputs": 4, "in_channels": 2}
    build(model="mine:outputs_only")
    assert users.given == {"num_outputs": 4}
    build(model="mine:plain")
    assert users.given == {"hidden": 8}


def test_what_the_experiment_sets_wins_over_what_the_task_knows(users):
    build(model={"name": "mine:net", "num_outputs": 7, "in_channels": 9})
    assert users.given == {"num_outputs": 7, "in_channels": 9}


def test_the_initial_weights_depend_on_the_seed_alone(users):
    torch.manual_seed(123)
    first = build(seed=5)
    torch.manual_seed(321)
    again, other = build(seed=5), build(seed=6)
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"data": "mine:no_task"}, ConfigError, "data: 'mine:no_task' returned a list. Remedy: return a pfray.task.Task"),
    ({"data": "mine:missing_data"}, DataError, "data: nothing there. Remedy: put it there"),
    ({"data": {"name": "mine:picky_data", "count": 3}}, ConfigError, "data: count is odd ("),
    ({"data": "mine:picky_data"}, ConfigError, "missing 1 required positional argument: 'count'"),
    ({"model": "mine:no_module"}, ConfigError, "model: 'mine:no_module' returned 'a model', not a torch.nn.Module"),
    ({"model": {"name": "mobilenet_v1", "width": 9}}, ConfigError, "model: width is 9; allowed are numbers above 0"),
    ({"model": "lenet"}, UnsupportedModel, "the model LeNet fails on an input of shape (1, 2, 6, 6)"),
    ({"model": "mine:four_channels"}, UnsupportedModel, "Sequential fails on an input of shape (1, 2, 6, 6)"),
    ({"model": "mine:too_few"}, UnsupportedModel, "outputs, float32 (2, 3), do not fit the task mine: 3"),
    ({"model": "mine:bare"}, UnsupportedModel, "the model is a single Conv2d, which has no name. Remedy: nn.Seq"),
    ({"model": "mine:feature_map"}, UnsupportedModel, "loss=cross_entropy fails on outputs float32 (2, 4, 4, 4) and"),
])  # fmt: skip
def test_what_does_not_fit_together_is_one_line_with_a_remedy(users, changes, error, words):
    with pytest.raises(error) as caught:
        build(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Remedy: " in str(caught.value)


def test_too_few_outputs_are_found_even_where_the_first_targets_are_small(users):
    # The first two targets are 0 and 1, which a model of 4 outputs could answer.
    with pytest.raises(UnsupportedModel, match=r"4 outputs are too few. Remedy: a model with 9 outputs"):
        build(model="mine:plain", data={"name": "mine:data", "classes": 9})


def test_weights_of_the_experiment_are_loaded(users, tmp_path):
    made = nn.Sequential(nn.Flatten(), nn.Linear(72, 4))
    torch.save(made.state_dict(), tmp_path / "w.pt")
    loaded = build(model={"name": "mine:net", "weights": str(tmp_path / "w.pt")})
    assert torch.equal(loaded[1].weight, made[1].weight)
