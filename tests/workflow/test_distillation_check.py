from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from torch import nn

from pfray.config.schema import Experiment, validated
from pfray.errors import ConfigError, UnsupportedModel
from pfray.task import Task
from pfray.training.settings import Training
from pfray.workflow import distillation_check
from tests.training.toy import net, toy_task

FLAT = nn.Sequential(nn.Flatten(), nn.Linear(64, 40))


def check_distillation(of: Experiment, model: nn.Module, task: Task, *more: Training) -> list[str]:
    """The check of an experiment with one training, and more for the further learners of a pipeline."""
    return distillation_check.check_distillation(of, [of.finetune, *more], model, task)


def experiment(storage: object = "runs", space: dict[str, str] | None = None, **distill: float) -> Experiment:
    return validated({
        "name": "exp", "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5},
        "distill": distill, "storage": str(storage), "finetune": {"epochs": 3}, "search": {"space": space or {}},
    })  # fmt: skip


def test_the_size_of_cached_views_is_said_beforehand(tmp_path):
    # 40 samples with 40 logits of two bytes, for each of two views, and of three epochs at most.
    wanted = [experiment(tmp_path, weight=0.9, cached_views=count) for count in (2, 9)]
    notes = [check_distillation(each, net(), toy_task()) for each in wanted]
    assert [note[0] for note in notes] == [
        f"distill.cached_views keeps {size} of soft labels in the run folder until the training ends"
        for size in ("6.4 kB", "9.6 kB")
    ]
    assert check_distillation(experiment(weight=0.9, features=1), net(), toy_task()) == []
    # A further learner trains for longer, by batches of another size: 9 views of either.
    more = check_distillation(wanted[1], net(), toy_task(), Training(epochs=9, batch_size=7))
    assert "keeps 57.6 kB" in more[0]


def test_cached_views_without_room_for_them_are_refused(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=6000))
    wanted = experiment(tmp_path / "not" / "yet", weight=0.9, cached_views=2)
    words = r"cached_views: the soft labels of 2 views of 40 samples take 6.4 kB, and 6.0 kB are free .* Remedy: fewer"
    with pytest.raises(ConfigError, match=words) as refused:
        check_distillation(wanted, net(), toy_task())
    assert "\n" not in str(refused.value)
    assert asked == [tmp_path]


def test_cached_views_of_labels_that_nothing_reads_are_refused():
    with pytest.raises(ConfigError, match=r"cached_views: 2 views .* distill.weight is 0. Remedy: distill.weight=0.9"):
        check_distillation(experiment(cached_views=2), net(), toy_task())
    searched = experiment(cached_views=2, space={"distill.weight": "uniform(0, 1)"})
    assert len(check_distillation(searched, net(), toy_task())) == 1


def test_features_of_a_model_without_stages_are_refused():
    assert check_distillation(experiment(weight=0.5), FLAT, toy_task()) == []
    for wanted in (experiment(features=1), experiment(space={"distill.features": "uniform(0, 2)"})):
        with pytest.raises(UnsupportedModel, match=r"distill.features: Sequential has no stage, .* distill.features=0"):
            check_distillation(wanted, FLAT, toy_task())
