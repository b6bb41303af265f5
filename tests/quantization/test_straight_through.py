"""The straight-through estimator, worked by hand, and a training that is continued from its checkpoint."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learners import non_uniform_quant, uniform_quant
from learners.non_uniform_quant import NonUniformQuant
from learners.uniform_quant import UniformQuant
from pfray.quantization.qparams import QParams, attach
from pfray.quantization.straight_through import StraightThrough
from pfray.training.hooks import StatefulHook
from pfray.training.loop import fit
from pfray.training.settings import Training
from tests.small import chain, equal, make_task, state


def layer(latent: list[float], qparams: QParams) -> tuple[nn.Linear, Tensor]:
    """A linear layer whose weight shows ``latent``, and that."""
    found = nn.Linear(len(latent), 1, bias=False)
    with torch.no_grad():
        found.weight.copy_(torch.tensor([latent]))
    kept = found.weight.detach().clone()
    attach(found, qparams)
    return found, kept


def test_two_steps_of_sgd_with_momentum_by_hand():
    # The levels 0, 1, 2, 3.
    found, latent = layer([0.375, 2.625], QParams(2, torch.tensor([0.0]), torch.tensor([1.0])))
    hook = StraightThrough({"fc": found}, {"fc": latent})
    optimizer = torch.optim.SGD(found.parameters(), lr=0.25, momentum=0.5)
    hook(0)
    assert found.weight.tolist() == [[0.0, 3.0]]
    # m = g = (-2, 1): V moves by -m / 4 = (0.5, -0.25).
    found.weight.grad = torch.tensor([[-2.0, 1.0]])
    optimizer.step()
    hook(1)
    assert latent.tolist() == [[0.875, 2.375]]
    assert found.weight.tolist() == [[1.0, 2.0]]
    # m = m / 2 + (-1, -2) = (-2, -1.5): V moves by (0.5, 0.375), by which W alone would not have left its level.
    found.weight.grad = torch.tensor([[-1.0, -2.0]])
    optimizer.step()
    hook(2)
    assert latent.tolist() == [[1.375, 2.75]]
    assert found.weight.tolist() == [[1.0, 3.0]]


def test_small_steps_add_up_and_what_leaves_the_range_shows_its_end():
    found, latent = layer([0.0, 3.0], QParams(2, torch.tensor([0.0]), torch.tensor([1.0])))
    hook = StraightThrough({"fc": found}, {"fc": latent})
    hook(0)
    seen = []
    for step in range(1, 6):
        with torch.no_grad():
            found.weight += torch.tensor([[0.125, 0.5]])
        hook(step)
        seen.append(found.weight[0].tolist())
    assert seen == [[0, 3], [0, 3], [0, 3], [0, 3], [1, 3]]
    assert latent.tolist() == [[0.625, 5.5]]


def test_its_state_is_the_latent_weights_and_the_levels_and_comes_back():
    found, latent = layer([0.25, 2.75], QParams(2, torch.tensor([0.0]), torch.tensor([1.0])))
    hook = StraightThrough({"fc": found}, {"fc": latent})
    assert isinstance(hook, StatefulHook)
    kept = copy.deepcopy(hook.state_dict())
    with torch.no_grad():
        for tensor in (latent, found.weight, found.weight_step):
            tensor.zero_()
    hook.load_state_dict(kept)
    assert latent.tolist() == [[0.25, 2.75]]
    assert found.weight_step.tolist() == [1.0]
    # The weight shows the latent one again.
    assert found.weight.tolist() == [[0.0, 3.0]]


def test_codewords_that_move_alone_take_the_weights_along():
    # The codewords 0, 1, 3, 7; the float weights stay where they were.
    found, latent = layer([0.25, 2.75], QParams(2, codebook=torch.tensor([[0.0, 1.0, 3.0, 7.0]])))
    settings = non_uniform_quant.Settings(tune="clusters", cluster_rate=0.5)
    hook = non_uniform_quant.MovingCodewords({"fc": found}, {"fc": latent}, settings)
    hook(0)
    with torch.no_grad():
        found.weight += torch.tensor([[2.5, 0.5]])
    hook(1)
    assert found.weight.tolist() == [[1.25, 3.25]]
    assert latent.tolist() == [[0.25, 2.75]]
    hook.load_state_dict(copy.deepcopy(hook.state_dict()))
    assert found.weight.tolist() == [[1.25, 3.25]]


class Stopped(Exception):
    pass


CASES: dict[str, tuple[Any, Any]] = {
    "uniform": (UniformQuant, uniform_quant.Settings(activation_bits=4)),
    "moving ranges": (UniformQuant, uniform_quant.Settings(interval=2, symmetric=True)),
    "folded": (UniformQuant, uniform_quant.Settings(fold=True)),
    **{tune: (NonUniformQuant, non_uniform_quant.Settings(tune=tune)) for tune in ("weights", "clusters", "both")},
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_in_two_halves_through_a_checkpoint_is_the_training_in_one(case):
    learner, settings = CASES[case]
    task = make_task()
    algorithm = learner(chain(), task, settings)
    plan = {name: 2 + index for index, name in enumerate(algorithm.space().names)}
    training = Training(epochs=4, lr=0.05, batch_size=15, warmup_epochs=0)

    def start() -> tuple[nn.Module, Any]:
        begun = algorithm.compress(plan, 16)
        return begun.model, begun.hook

    whole, hook = start()
    fit(whole, task, training, seed=3, hook=hook)

    file = io.BytesIO()
    first, hook = start()

    def save(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            torch.save([first.state_dict(), hook.state_dict(), optimizer.state_dict()], file)
            raise Stopped

    with pytest.raises(Stopped):
        fit(first, task, training, seed=3, hook=hook, on_epoch=save)
    assert not equal(state(first), state(whole))
    file.seek(0)
    weights, latents, optimizer = torch.load(file, weights_only=True)
    second, hook = start()
    second.load_state_dict(weights)
    hook.load_state_dict(latents)
    fit(second, task, training, seed=3, hook=hook, start_epoch=2, optimizer_state=optimizer)
    assert equal(state(second), state(whole))
    # The latent weights are needed for that.
    if case != "clusters":
        third, hook = start()
        third.load_state_dict(weights)
        fit(third, task, training, seed=3, hook=hook, start_epoch=2, optimizer_state=optimizer)
        assert not equal(state(third), state(whole))
