"""Units chosen one after the other by the gradient of a loss."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.dis_chn_pruned import DisChnPruned, Settings, empty_scores
from pfray.errors import UnsupportedModel
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.inside import Axis, Inside
from pfray.pruning.channels.keep_ratios import graph_of
from pfray.pruning.discrimination import greedy_selection
from pfray.pruning.discrimination.auxiliary_losses import Stage, divide, make_heads
from pfray.pruning.discrimination.greedy_selection import (
    Columns,
    Criterion,
    calibration,
    choose,
    columns_of,
    gradient_norms,
    only_trained,
)
from pfray.task import Split, Task
from tests.small import equal, informative, passing_on, state

CPU = torch.device("cpu")
INNER_STEPS, INNER_LR = 2, 0.01


def criterion_of(model: nn.Module, task: Task, name: str, layer: str | None, weight: float = 1.0) -> Criterion:
    group = next(group for group in graph_of(model, task).groups if group.name == name)
    own_head = make_heads(model, [Stage((group,), layer)], {}, task).get(layer)
    return Criterion(copy.deepcopy(model), copy.deepcopy(model), task, group, {}, layer, own_head, weight)


def test_the_gradient_of_the_criterion_equals_one_written_out_for_a_single_reader():
    task, model = informative(), passing_on()
    found = criterion_of(model, task, "0", None, weight=0.0)
    columns = columns_of(found.student, found.group)
    batches = calibration(task, 200, CPU)
    with only_trained(found, columns):
        columns[0].clear(np.arange(8))
        norms = gradient_norms(found, columns, batches)
    # L_M = 1/2 mean (O - b)^2 with all weights 0, so dL/dW_ok = -mean over all entries of (O_o - b_o) X_k.
    inputs = model[:2](task.train.inputs[:200]).transpose(0, 1).flatten(1)
    target = (model[2].weight[:, :, 0, 0] @ inputs).detach()
    expected = (target @ inputs.T / target.numel()).square().sum(0).sqrt()
    assert norms == pytest.approx(expected.detach().numpy(), rel=1e-4)


def test_the_discrimination_loss_is_added_with_its_weight():
    task, model = informative(), passing_on()
    (batch,) = calibration(task, 64, CPU)
    plain = criterion_of(model, task, "0", None, weight=0.0)
    with torch.no_grad():
        assert plain(*batch).item() == 0.0
        final = criterion_of(model, task, "0", None, weight=0.5)
        assert final(*batch).item() == pytest.approx(0.5 * F.cross_entropy(model(batch[0]), batch[1]).item())
        extra = criterion_of(model, task, "0", "2", weight=2.0)
        judged = extra.head(model[2](model[:2](batch[0])).flatten(2))
        assert extra(*batch).item() == pytest.approx(2.0 * F.cross_entropy(judged, batch[1]).item())
        # Outputs that are removed already do not count in L_M.
        plain.student[2].bias[3] += 1.0
        assert plain(*batch).item() == pytest.approx(0.5 / 8)
        stays = np.array([0, 1, 2, 4, 5, 6, 7])
        assert replace(plain, alive={("2", "out"): stays})(*batch).item() == 0.0


@pytest.mark.parametrize(("layer", "per_step"), [("2", 1), ("2", 2), (None, 1)])
def test_the_channels_that_tell_the_classes_are_the_first_to_be_chosen(layer, per_step):
    task, model = informative(), passing_on()
    if layer is None:  # the outputs' own loss: the last layer has to know the classes
        own = make_heads(model, [Stage((), "2")], {}, task)["2"]
        with torch.no_grad():
            scale = (own.norm.running_var + own.norm.eps).rsqrt()
            model[2].weight *= scale[:, None, None, None]
            model[2].bias.copy_((model[2].bias - own.norm.running_mean) * scale)
            model[4][2].weight.copy_(own.theta)
            model[4][2].bias.copy_(own.bias)
    batches = calibration(task, 240, CPU)
    found = criterion_of(model, task, "0", layer, weight=20.0)
    assert choose(found, 2, batches, per_step, INNER_STEPS, INNER_LR).tolist() == [2, 5]
    # Without the extra loss the noise is as good: every channel adds the same to the next layer.
    spread = empty_scores(model, [found.group], task, Settings(losses=0, weight=0.0, images=240))["0"]
    assert spread[[0, 1, 3, 4, 6, 7]].max() > 0.8 * spread[[2, 5]].min()


def test_what_is_not_chosen_is_zero_and_the_rest_is_moved_from_where_it_was():
    task, model = informative(), passing_on()
    batches = calibration(task, 240, CPU)
    still = criterion_of(model, task, "0", "2")
    chosen = choose(still, 5, batches, 4, 0, INNER_LR)
    gone = np.setdiff1d(np.arange(8), chosen)
    assert len(chosen) == 5
    assert torch.equal(still.student[2].weight[:, chosen], model[2].weight[:, chosen])
    assert not still.student[2].weight[:, gone].any()
    # None is chosen twice, even where the others have nothing to offer any more.
    everything = criterion_of(model, task, "0", "2")
    nn.init.zeros_(everything.student[0].weight[4:])
    nn.init.constant_(everything.student[0].bias[4:], -1.0)
    assert choose(everything, 8, batches, 3, INNER_STEPS, INNER_LR).tolist() == list(range(8))
    moved = criterion_of(model, task, "0", "2")
    chosen = choose(moved, 5, batches, 4, 3, INNER_LR)
    gone = np.setdiff1d(np.arange(8), chosen)
    assert not torch.equal(moved.student[2].weight[:, chosen], model[2].weight[:, chosen])
    assert not moved.student[2].weight[:, gone].any()
    assert moved.student[2].bias.ne(model[2].bias).any()
    # Nothing else moves, and what is trained is as it was.
    others = {name: own for name, own in state(moved.student).items() if not name.startswith("2.")}
    assert equal(others, {name: own for name, own in state(model).items() if not name.startswith("2.")})
    assert all(p.requires_grad and p.grad is None for p in moved.student.parameters())


def test_the_choice_by_turns_stops_where_the_loss_changes_no_more(monkeypatch):
    task, model = informative(), passing_on()
    batches = calibration(task, 240, CPU)

    def loss_after(count: int) -> float:
        found = criterion_of(model, task, "0", "2", weight=20.0)
        choose(found, count, batches, 1, INNER_STEPS, INNER_LR)
        with torch.no_grad():
            return sum(found(*batch).item() * len(batch[1]) for batch in batches) / 240

    losses = [loss_after(count) for count in range(6)]
    changes = [abs(one - other) / losses[0] for one, other in itertools.pairwise(losses)]
    # The channels 2 and 5 tell the classes; the third choice is the first that changes little.
    assert max(changes[2:]) < min(changes[:2])
    turns = []

    def counted(criterion: Criterion, columns: list[Columns], batches: object) -> np.ndarray:
        turns.append(int((columns[0].weight != 0).any(0).sum()))
        return gradient_norms(criterion, columns, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(greedy_selection, "gradient_norms", counted)
    for epsilon, expected in (
        (0.0, [0, 1, 2, 3, 4, 5, 6]),
        ((changes[2] + min(changes[:2])) / 2, [0, 1, 2, 3]),
        (max(changes[:2]) * 1.01, [0, 1]),
    ):
        turns.clear()
        found = criterion_of(model, task, "0", "2", weight=20.0)
        chosen = choose(found, 7, batches, 1, INNER_STEPS, INNER_LR, epsilon)
        assert turns == expected
        assert len(chosen) == 7
        assert {2, 5} <= set(chosen.tolist())


def test_the_steps_in_between_lower_the_loss():
    task, model = informative(), passing_on()
    batches = calibration(task, 240, CPU)
    losses = []
    for steps in (0, 20):
        found = criterion_of(model, task, "0", "2")
        choose(found, 3, batches, 4, steps, 0.05)
        with torch.no_grad():
            losses.append(sum(found(*batch).item() for batch in batches))
    assert losses[1] < 0.9 * losses[0]


def test_columns_of_grouped_and_transposed_layers_are_those_that_read_the_unit():
    grouped = nn.Conv2d(4, 2, 1, groups=2)
    # Unit 0 is the first channel of each of two groups.
    columns = Columns(grouped, Cut("x", "in", np.array([[0, 2], [1, 3]]), 4, "CONV"))
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None]
    assert columns.squares(gradient).tolist() == [1 + 9, 4 + 16]
    columns.clear(np.array([1]))
    assert grouped.weight[:, 1].tolist() == [[[0.0]], [[0.0]]]
    assert torch.equal(grouped.weight[:, 0], columns.before[:, 0])
    columns.bring_back(np.array([1]))
    assert torch.equal(grouped.weight, columns.before)
    transposed = nn.ConvTranspose2d(3, 2, 1)
    columns = Columns(transposed, Cut("x", "in", np.array([[0], [1], [2]]), 3, "CONV"))
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[:, :, None, None]
    assert columns.squares(gradient).tolist() == [5, 25, 61]
    assert columns.mask(np.array([1])).flatten().tolist() == [0, 1, 0]
    # A weight (inputs, outputs), as GPT-2's layers have it.
    linear = nn.Module()
    linear.weight = nn.Parameter(torch.ones(3, 2))
    reads = Axis("weight", 0, reads=True)
    columns = Columns(linear, Cut("x", "in", np.array([[0], [1], [2]]), 3, "CONV1D", inside=Inside((reads,))), reads)
    assert columns.squares(gradient[:, :, 0, 0]).tolist() == [5, 25, 61]
    assert columns.mask(np.array([1])).tolist() == [[0], [1], [0]]


class Words(nn.Module):
    """Tokens and a mask in, a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one = nn.Embedding(9, 6), nn.Linear(6, 8)
        self.two, self.last = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.two(F.relu(self.one(self.embed(ids)))) * mask[..., None]
        return {"length": mask.sum(1), "logits": self.last(x.mean(1))}


def test_tokens_and_outputs_of_any_form_are_pruned_by_their_discrimination():
    torch.manual_seed(0)
    inputs = {"ids": torch.randint(9, (40, 7)), "mask": torch.ones(40, 7)}
    split = Split(inputs, torch.arange(40) % 3)
    task = Task("words", split, split, split, 3, output="logits")
    model = Words().eval()
    settings = Settings(round_to=1, losses=2, steps=2, images=40, batch_size=20)
    algorithm = DisChnPruned(model, task, settings)
    stages = divide(model, graph_of(model, task).groups, settings.losses, task)
    assert [([group.name for group in stage.groups], stage.layer) for stage in stages] == [
        (["embed"], "one"), (["one"], "two"), (["two"], None)
    ]  # fmt: skip
    scores = empty_scores(model, graph_of(model, task).groups, task, settings)
    assert {name: (own > 0).all() for name, own in scores.items()} == {"embed": True, "one": True, "two": True}
    pruned = algorithm.finish({"embed": 0.5, "one": 0.5, "two": 0.6}).model
    assert (pruned.embed.embedding_dim, pruned.one.out_features, pruned.two.out_features) == (3, 4, 3)
    assert pruned(**inputs)["logits"].isfinite().all()


class Sequences(nn.Module):
    """Tokens whose embeddings only a recurrent layer reads, and its features only an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(9, 6), nn.GRU(6, 4, bidirectional=True, batch_first=True)
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.rnn(self.embed(ids))[0]
        return self.last(self.attention(x, x, x)[0].mean(1))


def sequences() -> tuple[Task, nn.Module]:
    torch.manual_seed(0)
    ids = torch.randint(9, (40, 7))
    split = Split(ids, torch.arange(40) % 3)
    return Task("sequences", split, split, split, 3), Sequences().eval()


def test_without_the_task_s_loss_what_recurrent_layers_and_attentions_give_is_the_criterion():
    task, model = sequences()
    groups = {group.name: group for group in graph_of(model, task).groups}
    units = {"embed": 6, "rnn": 4, "attention": 2, "attention.out_proj": 8}
    assert {name: group.units for name, group in groups.items()} == units
    settings = Settings(losses=0, weight=0.0, images=40)
    with torch.no_grad():
        model.rnn.weight_ih_l0[:, [1, 4]] = 0.0
        model.rnn.weight_ih_l0_reverse[:, [1, 4]] = 0.0
        model.embed.weight[:, [1, 4]] = 0.0
    scores = empty_scores(model, list(groups.values()), task, settings)
    assert np.flatnonzero(scores["embed"] == 0).tolist() == [1, 4]
    assert (scores["rnn"] > 0).all()
    assert (scores["attention"] > 0).all()
    # L_M by hand: half the mean squared difference of the layer's outputs.
    found = criterion_of(model, task, "embed", None, weight=0.0)
    columns_of(found.student, found.group)[0].clear(np.arange(6))
    (batch,) = calibration(task, 40, CPU)
    with torch.no_grad():
        wanted, own = (net.rnn(net.embed(batch[0]))[0] for net in (model, found.student))
        assert found(*batch).item() == pytest.approx(0.5 * F.mse_loss(own, wanted).item())
        # Features that are removed already do not count, in both directions.
        stays = [0, 1, 3]
        left = F.mse_loss(own[..., [0, 1, 3, 4, 5, 7]], wanted[..., [0, 1, 3, 4, 5, 7]])
        alive = {("rnn", "out"): np.array(stays)}
        assert replace(found, alive=alive)(*batch).item() == pytest.approx(0.5 * left.item())


def test_an_attention_whose_heads_are_pruned_already_still_counts_with_all_its_outputs():
    task, model = sequences()
    found = criterion_of(model, task, "rnn", None, weight=0.0)
    (batch,) = calibration(task, 40, CPU)
    for own in columns_of(found.student, found.group):
        own.clear(np.arange(4))
    alive = {("attention", "out"): np.array([1])}
    with torch.no_grad():
        assert replace(found, alive=alive)(*batch).item() == found(*batch).item() > 0


def test_a_group_that_no_layer_that_runs_reads_needs_the_task_s_loss():
    task, model = informative(), passing_on()
    found = criterion_of(model, task, "0", None, weight=0.0)
    cuts = tuple(cut for cut in found.group.cuts if cut.side == "out")
    with pytest.raises(UnsupportedModel, match=r"channel group 0: .* Remedy: learner.weight above 0"):
        replace(found, group=replace(found.group, cuts=cuts))(*calibration(task, 40, CPU)[0])
