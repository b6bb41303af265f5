from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from learners.full_precision import FullPrecision
from learners.weight_sparse import WeightSparse
from pfray.config.schema import Experiment
from pfray.config.sections import Export
from pfray.data import digits
from pfray.data._loaders import streamed
from pfray.errors import ConfigError, InfeasibleTarget
from pfray.measure import interpreter
from pfray.measure.cost import count_params
from pfray.search.allocate import Allocate
from pfray.search.random import Random
from pfray.space import CompressionSpace
from pfray.task import Samples, Split, Task
from pfray.training.settings import Distill
from pfray.workflow.target import (
    check_fits_task,
    check_searcher,
    resolve_limits,
    resolve_objective,
    searched_settings,
)


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


@pytest.fixture(scope="module")
def model(task: Task) -> nn.Module:
    pixels = task.train.inputs[0].numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 50), nn.Linear(50, 10))


@pytest.fixture(scope="module")
def space(model: nn.Module, task: Task) -> CompressionSpace:
    return WeightSparse(model, task).space()


def experiment(target: dict[str, Any] | None = None, **search: Any) -> Experiment:
    return Experiment.model_validate({
        "name": "x", "model": "lenet", "data": "digits", "learner": "weight_sparse",
        "target": target or {"sparsity": 0.7}, "search": search,
    })  # fmt: skip


def limits(model: nn.Module, space: CompressionSpace, **target: Any) -> dict[str, float]:
    return resolve_limits(experiment(target).target, space, model, "the_learner")


def test_limits_are_absolute_numbers_in_the_units_of_the_space(model, space):
    params = sum(p.numel() for p in model.parameters())
    assert limits(model, space, params="0.5x") == {"params": 0.5 * params}
    assert limits(model, space, params="1.5k", sparsity="75%") == {"params": 1_500.0, "sparsity": 0.75}
    assert limits(model, space, params=1234) == {"params": 1234.0}


def test_a_unit_that_the_learner_cannot_change_is_refused(model, task):
    nothing = FullPrecision(model, task).space()
    with pytest.raises(ConfigError, match=r"the_learner cannot change it. Allowed: none. Remedy: another learner$"):
        limits(model, nothing, sparsity=0.5)


def test_the_remedy_for_a_unit_that_is_not_changed_is_one_that_is_or_another_learner(model, space):
    with pytest.raises(ConfigError) as caught:
        limits(model, space, bits=8)
    assert str(caught.value) == (
        "target.bits: the_learner cannot change it. Allowed: sparsity, params. Remedy: a target of these, or another "
        "learner"
    )


def test_allocate_without_error_curves_is_refused_before_anything_runs():
    check_searcher(experiment(), Allocate, WeightSparse)
    check_searcher(experiment(), Random, FullPrecision)
    with pytest.raises(ConfigError, match="allocate needs error curves, which weight_sparse does not give"):
        check_searcher(experiment(), Allocate, FullPrecision)


def test_the_score_is_agreement_where_there_are_soft_labels_and_accuracy_where_there_are_none(task):
    regression = replace(task, loss=F.mse_loss)
    own = replace(task, loss=F.mse_loss, soft_loss=lambda outputs, teacher, temperature: F.mse_loss(outputs, teacher))
    assert resolve_objective(experiment(), task).name == "agreement"
    assert resolve_objective(experiment(), regression).name == "accuracy"
    assert resolve_objective(experiment(), own).name == "agreement"
    assert resolve_objective(experiment(objective="amc"), task).cost == "nonzero_params"
    with pytest.raises(ConfigError, match="agreement with the teacher is not defined"):
        resolve_objective(experiment(objective="agreement"), regression)


def test_times_of_litert_are_refused_where_it_is_not_there(task, monkeypatch):
    timed = experiment(objective="ddc", latency="litert")
    assert resolve_objective(timed, task).name == "ddc"
    monkeypatch.setattr(interpreter, "RUNTIMES", ("no_such_runtime",))
    with pytest.raises(ConfigError, match=r"search.latency: litert cannot be timed here: .*Remedy: search.lat"):
        resolve_objective(timed, task)
    assert resolve_objective(experiment(objective="ddc"), task).name == "ddc"
    assert resolve_objective(experiment(latency="litert"), task).name == "agreement"


@dataclass(frozen=True)
class Shaping:
    """A learner's settings, one of which the space depends on."""

    max_sparsity: float = 0.9
    interval: int = 8
    depthwise: bool = False


def test_a_target_out_of_reach_or_met_already_is_quoted_as_it_was_written(model, space):
    params = count_params(model)[0]
    with pytest.raises(InfeasibleTarget, match=rf"target.params: '0.001x' \({0.001 * params:g}\) is out of reach; "):
        limits(model, space, params="0.001x")
    with pytest.raises(InfeasibleTarget, match=r"target.sparsity: '99.9%' \(0.999\) is out of reach"):
        limits(model, space, sparsity="99.9%")
    with pytest.raises(InfeasibleTarget, match=r"target.params: 3 is out of reach"):
        limits(model, space, params=3)
    with pytest.raises(ConfigError, match=rf"target.params: '2x' \({2 * params:,}\) is met by the model as it is"):
        limits(model, space, params="2x")


def searched(space: CompressionSpace, **ranges: str) -> tuple:
    raw = {key.replace("__", "."): value for key, value in ranges.items()}

    def space_of(settings: Shaping) -> CompressionSpace:
        return replace(space, knobs=tuple(replace(k, compressed=settings.max_sparsity) for k in space.knobs))

    return searched_settings(experiment(space=raw), Shaping(), space_of, 10)


def test_objectives_that_weigh_costs_need_a_share_of_right_answers(task):
    errors = replace(task, metric_name="mse", higher_is_better=False, is_share=False)
    for name in ("accuracy_and_cost", "amc", "ddc", "n2n"):
        with pytest.raises(ConfigError, match=f"search.objective: {name} weighs costs .* and mse is none"):
            resolve_objective(experiment(objective=name), errors)


def test_settings_that_the_task_gives_no_sense_are_refused(task):
    own = replace(task, loss=lambda outputs, targets: outputs.mean())
    taught = experiment().model_copy(update={"distill": Distill(weight=0.5)})
    check_fits_task(taught, task)
    with pytest.raises(ConfigError, match=r"distill.weight: .* has a loss of its own and no soft_loss"):
        check_fits_task(taught, own)
    dropping = experiment({"sparsity": 0.5, "max_drop": 2.0})
    check_fits_task(dropping, replace(task, is_share=False))
    with pytest.raises(ConfigError, match=r"target.max_drop: 2 is not allowed, since accuracy is a share"):
        check_fits_task(dropping, task)


def exporting(**settings: Any) -> Experiment:
    return experiment().model_copy(update={"export": Export(**settings)})


def test_a_file_of_one_shape_needs_batches_of_one_shape():
    def text(test_length: int) -> Task:
        lengths = {"train": 4, "validation": 4, "test": test_length}
        splits = {name: streamed(name, [(torch.ones(2, length), 0)] * 4, tuple, 0, default_collate)
                  for name, length in lengths.items()}  # fmt: skip
        return Task("text", **splits, num_outputs=2)

    check_fits_task(exporting(), text(4))
    with pytest.raises(ConfigError, match=r"sample is an input of shape \(1, 2, 4\), .* of shape \(1, 2, 6\)\. Remedy"):
        check_fits_task(exporting(), text(6))
    check_fits_task(exporting(tflite=False), text(6))


def in_lists(samples: list[tuple[Tensor, int]]) -> tuple[list[Tensor], Tensor]:
    return [image for image, _ in samples], torch.tensor([label for _, label in samples])


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_file_of_one_shape_needs_samples_of_one_shape_in_a_list(is_streamed):
    """Those of the test data that the file is checked on, and the training sample that it is converted for."""

    def split(*sizes: int) -> Samples:
        samples = [(torch.zeros(3, 8, size), 0) for size in sizes]
        return streamed("any", samples, tuple, 0, in_lists) if is_streamed else Split(*in_lists(samples))

    def task(first: int, test: list[int]) -> Task:
        return Task("list", split(first), split(8), split(*test), 2)

    check_fits_task(exporting(images=None), task(8, [8] * 70))
    check_fits_task(exporting(images=1), task(8, [8] if is_streamed else [8, 9]))
    with pytest.raises(ConfigError, match=r"sample is an input of shape \(3, 8, 8\), .* of shape \(3, 8, 9\)\. Remedy"):
        check_fits_task(exporting(), task(8, [8] * 70 + [9]))
    with pytest.raises(ConfigError, match=r"sample is an input of shape \(3, 8, 7\), .* of shape \(3, 8, 8\)\. Remedy"):
        check_fits_task(exporting(images=1), task(7, [8]))
    check_fits_task(exporting(tflite=False), task(7, [8, 9]))


def test_searched_settings_become_free_knobs_around_their_own_values(space):
    knobs = searched(
        space, finetune__lr="loguniform(1e-4, 1e-1)", distill__temperature="uniform(1, 8)",
        learner__interval="integers(2, 16)", learner__depthwise="integers(0, 1)",
    )  # fmt: skip
    assert [(knob.name, knob.default, knob.free) for knob in knobs] == [
        ("finetune.lr", 0.02, True),
        ("distill.temperature", 4.0, True),
        ("learner.interval", 8.0, True),
        ("learner.depthwise", 0.0, True),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("finetune__lrr", "uniform(0, 1)", "'finetune.lrr' cannot be searched. Did you mean 'finetune.lr'?"),
        ("finetune__epochs", "integers(1, 9)", "'finetune.epochs' cannot be searched."),
        ("finetune__lr", "uniform(0, 1)", "finetune.lr: uniform(0, 1) holds values that are not allowed: input should "
                                          "be greater than 0"),
        ("learner__interval", "uniform(2, 16)", "learner.interval: uniform(2, 16) holds values that are not"),
        ("finetune__batch_size", "integers(16, 64)", "'finetune.batch_size' cannot be searched."),
        ("learner__max_sparsity", "uniform(0.5, 0.8)", "learner.max_sparsity shapes the search space itself"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_searched_is_refused(space, name, text, words):
    with pytest.raises(ConfigError) as caught:
        searched(space, **{name: text})
    assert words in str(caught.value)


def test_settings_of_a_training_that_trials_do_not_do_are_refused(space):
    raw = {"finetune.lr": "loguniform(1e-4, 1e-1)", "distill.weight": "uniform(0, 1)"}
    with pytest.raises(ConfigError) as caught:
        searched_settings(experiment(space=raw), Shaping(), lambda settings: space, 0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "finetune.lr changes nothing in trials without fine-tuning. Remedy: search.finetune_steps=30" in lines[0]
