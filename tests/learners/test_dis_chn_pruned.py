from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional as F

from learners import dis_chn_pruned
from learners.dis_chn_pruned import DisChnPruned, Settings, cached_scores
from pfray.errors import TrainingFailed, UnsupportedModel
from pfray.measure.evaluation import evaluate
from pfray.models.resnet import resnet20
from pfray.nn.modes import place
from pfray.pruning.channels.keep_ratios import graph_of, kept_counts
from pfray.pruning.discrimination.auxiliary_losses import divide, tune
from pfray.task import Split, example_input
from tests.small import chain, channel_costs, equal, informative, make_task, passing_on, state
from tests.zoo import conv, randomize

QUICK = {"round_to": 1, "steps": 2, "batch_size": 16, "images": 40}


@pytest.mark.parametrize("losses", [0, 1, 3])
def test_finish_meets_the_plan_to_the_channel_and_the_teacher_stays_as_it_is(losses):
    task, model = make_task(), place(chain(), "cpu")
    before = state(model)
    settings = Settings(**QUICK, losses=losses)
    algorithm = DisChnPruned(model, task, settings)
    plan = {"0.0": 0.5, "1.0": 1.0, "2.0": 1 / 6, "3.0": 3 / 7}
    finished = algorithm.finish(plan)
    small = finished.model
    assert [small[i][0].out_channels for i in range(4)] == [2, 5, 1, 3]
    assert channel_costs(small, example_input(task)) == algorithm.space().costs(plan)
    algorithm.rebuild(finished.structure).load_state_dict(small.state_dict())
    assert equal(state(model), before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    again = algorithm.finish(plan).model
    assert equal(state(again), state(small))
    # A later stage starts from the model of the earlier one, down to one channel.
    later = algorithm.finish({**plan, "3.0": 1 / 7}, small).model
    assert [later[i][0].out_channels for i in range(4)] == [2, 5, 1, 1]


def test_removed_channels_stay_removed_while_later_stages_are_tuned():
    task, model = make_task(), chain()
    seen = []
    settings = Settings(**{**QUICK, "steps": 3}, losses=3)

    def spy(student: nn.Module, *args: object) -> None:
        tune(student, *args)  # type: ignore[arg-type]
        seen.append(int((student[1][0].weight.abs().sum((0, 2, 3)) == 0).sum()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dis_chn_pruned, "tune", spy)
        DisChnPruned(model, task, settings).finish({"0.0": 0.25, "1.0": 0.6, "2.0": 0.5, "3.0": 1.0})
    assert seen == [0, 3, 3, 3]


def test_a_search_prunes_to_the_units_of_the_largest_gradients_without_a_training():
    task, model = informative(), passing_on()
    settings = Settings(round_to=1, losses=1, weight=20.0, images=240)
    algorithm = DisChnPruned(model, task, settings)
    found = algorithm.ranking.scores
    assert set(np.argsort(-found["0"])[:2]) == {2, 5}
    small = algorithm.compress({"0": 0.25, "2": 1.0}).model
    assert torch.equal(small[0].weight, model[0].weight[[2, 5]])
    assert torch.equal(small[2].weight, model[2].weight[:, [2, 5]])
    # The second time it is read from the cache folder.
    again = cached_scores(model, algorithm.ranking.graph, task, settings)
    assert all(np.array_equal(again[name], found[name]) for name in again)
    curve = algorithm.error_curves()["0"]
    falling = np.sort(found["0"])[::-1]
    assert curve[0] == pytest.approx(1 - falling[0] / falling.sum())
    assert curve[-1] == 0.0


def test_a_regression_is_pruned_with_its_own_loss():
    task = informative()
    targets = torch.nn.functional.one_hot(task.train.targets, 4).float()
    split = Split(task.train.inputs, targets)
    task = replace(task, train=split, validation=split.head(40), test=split.head(40), loss=F.mse_loss,
                   score=lambda outputs, targets: -(outputs - targets).square().mean(1))  # fmt: skip
    model = passing_on()
    settings = Settings(**QUICK, losses=1, weight=20.0)
    small = DisChnPruned(model, task, settings).finish({"0": 0.25, "2": 0.5}).model
    assert (small[0].out_channels, small[2].out_channels) == (2, 4)
    scores = DisChnPruned(model, task, Settings(losses=1, weight=50.0)).ranking.scores["0"]
    assert set(np.argsort(-scores)[:2]) == {2, 5}


def test_a_model_that_no_head_can_stand_in_for_is_refused():
    task = make_task()
    model = nn.Sequential(conv(2, 8), nn.Conv2d(8, 3, 1))
    with pytest.raises(UnsupportedModel, match=r"need a model that gives \(N, K\), and this one gives \(1, 3, 8, 8\)"):
        DisChnPruned(model, task).space()
    assert DisChnPruned(model, task, Settings(losses=0)).space().names == ["0.0"]


def test_values_that_are_not_finite_are_refused():
    task, model = make_task(), chain()
    graph_of(model, task)
    model[3][0].weight.data[0] = torch.nan
    with pytest.raises(UnsupportedModel, match=r"layer 3.0 gives values that are not finite. Remedy: check"):
        DisChnPruned(model, task).compress({"0.0": 0.5})
    with pytest.raises(TrainingFailed, match=r"channel group 0.0: the gradient is not finite. Remedy: a lower"):
        DisChnPruned(model, task, Settings(losses=0)).compress({"0.0": 0.5})
    with pytest.raises(TrainingFailed, match="the loss became nan"):
        DisChnPruned(model, task, Settings(**QUICK)).finish({"0.0": 0.5})
    check = TypeAdapter(Settings).validate_python
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        check({"losses": -1})
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        check({"batch_size": 1})


def test_the_residual_channels_of_a_resnet_are_pruned_in_all_blocks():
    task = make_task((3, 16, 16), 10, 32)
    torch.manual_seed(0)
    model = place(randomize(resnet20()).eval(), "cpu")
    graph = graph_of(model, task)
    stages = divide(model, graph.groups, 3, task)
    assert [stage.layer for stage in stages] == ["layer1.1.conv2", "layer2.1.conv2", "layer3.0.conv2", None]
    plan = {group.name: 0.5 for group in graph.groups}
    settings = Settings(**{**QUICK, "steps": 1, "images": 16}, per_step=32, inner_steps=1)
    small = DisChnPruned(model, task, settings).finish(plan).model
    assert small.conv1.out_channels == kept_counts(graph, plan)["conv1"] == 8
    assert evaluate(small, task, task.validation).loss > 0
