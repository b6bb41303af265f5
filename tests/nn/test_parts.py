"""Modules that are written out: the same outputs, with splits and shuffles that can lose any channels."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.nn.parts import Shuffle, Split, take_channels, write_out
from pfray.utils.random_state import generators

X = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))


class Module(nn.Module):
    """A forward pass with an attribute and a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.layer, self.number = function, nn.Conv2d(6, 6, 1), 7

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.function(self.layer(x)) * scale


def by_view(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def by_permute(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.reshape((n, 2, c // 2, h, w)).permute(0, 2, 1, 3, 4).reshape(n, -1, h, w)


def halves(x: Tensor) -> Tensor:
    a, b = x.split([2, 4], 1)
    return torch.cat([b, a], 1)


def both(x: Tensor) -> Tensor:
    a, b = torch.chunk(x, 2, dim=1)
    return F.channel_shuffle(torch.cat([b, a.relu()], 1), 2)


FORMS = {by_view: ["Shuffle"], by_permute: ["Shuffle"], halves: ["Split"], both: ["Split", "Shuffle"]}


@pytest.mark.parametrize("function", FORMS)
def test_a_module_that_is_written_out_is_the_same_but_for_its_splits_and_shuffles(function):
    module = Module(function)
    expected = module(X, 2.0)
    names = [name for name, _ in module.named_modules()]
    assert write_out(module)
    assert [type(child).__name__ for child in module.children()][1:] == FORMS[function]
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same(X, scale=2.0), expected)
        assert (type(same), same.number) == (Module, 7)
        assert [name for name, _ in same.named_modules()][: len(names)] == names
        assert same.forward.module is same
    assert list(module.state_dict()) == ["layer.weight", "layer.bias"]
    assert not write_out(module)


class Long(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        for _ in range(600):
            x = x + 1
        return by_view(self.layer(x)) * scale


def test_a_long_forward_pass_is_pickled_and_copied():
    module = Long(by_view)
    assert write_out(module)
    for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same(X, scale=2.0), module(X, 2.0))


def test_channels_that_go_leave_the_others_in_their_order():
    """Of 6 channels in three groups, 0 2 4 1 3 5 after the shuffle, those at 1 and 5 go: the inputs 2 and 5."""
    module = Module(by_view)
    before = module.layer(X)
    take_channels(module, "shuffle", 6, np.array([1, 5]))
    assert module.shuffle.order.tolist() == [0, 3, 1, 2]
    assert torch.equal(module.shuffle(before[:, [0, 1, 3, 4]]), before[:, [0, 4, 1, 3]])
    take_channels(module, "shuffle", 4, np.array([0]))
    assert module.shuffle.order.tolist() == [2, 0, 1]
    assert (module.shuffle.channels, list(module.state_dict())[2:]) == (3, ["shuffle.order"])


def test_parts_lose_any_numbers_of_channels():
    assert Split(2, 1).of(7, np.array([0, 1, 6])).sizes == (2, 2)
    assert Split(2, 1, (2, 4)).of(6, np.array([0, 1])).sizes == (0, 4)
    assert [len(part[0]) for part in Split(2, 1).of(6, np.array([5]))(X[:, :5])] == [3, 2]
    assert [Split(2, 1).channels, Shuffle(2).channels, Split(2, 1, (1, 2)).channels] == [None, None, 3]


class Dropping(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return by_view(F.dropout(x, 0.5, self.training))


def test_what_happens_in_training_only_still_does():
    module = Dropping(by_view)
    assert write_out(module)
    take_channels(module, "shuffle", 6, np.array([0]))
    assert torch.equal(module.eval()(X[:, 1:]), by_view(X)[:, 1:])
    dropped = module.train()(X[:, 1:])
    assert 0.3 < float((dropped == 0).float().mean()) < 0.7
    assert torch.equal(dropped[dropped != 0], 2 * by_view(X)[:, 1:][dropped != 0])


class InTraining(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return by_view(x) if self.training else x


class Counting(Module):
    """Decides by the number of its channels."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return by_view(x) if x.shape[1] > 4 else x


class WithATensor(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return by_view(x) + torch.ones(1)


class Remembering(Module):
    """Keeps its features in attributes that it has already."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(function)
        self.features: Tensor | None = None
        self.seen: list[Tensor] = []
        self.register_buffer("calls", torch.zeros(()))


class OfItself(Remembering):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.features = x
        return by_view(x)


class InAList(Remembering):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.seen.append(x)
        return by_view(x)


class InABuffer(Remembering):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return by_view(x)


class ByPythonsChance(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return by_view(x * 0 if self.training and random.random() < 0.5 else x)


class ByTorchsChance(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return by_view(x * 0 if self.training and torch.rand(()) < 0.5 else x)


class WithoutGradients(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        with torch.no_grad():
            y = x * 2
        return by_view(x + y)


class InFloat32(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        with torch.autocast("cuda", enabled=False):
            return by_view(self.layer(x))


OTHERS = [
    InTraining, Counting, WithATensor, OfItself, InAList, InABuffer, ByPythonsChance, ByTorchsChance, WithoutGradients,
    InFloat32,
]  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_a_module_that_is_not_one_list_of_operations_stays(kind):
    module = kind(by_view)
    before, drawn = state_of(module), generators()
    assert not write_out(module)
    assert (state_of(module), generators()) == (before, drawn)
    assert not torch.is_autocast_enabled("cpu")


def state_of(module: nn.Module) -> dict[str, Any]:
    own = {key: copy.copy(value) for key, value in vars(module).items() if not isinstance(value, dict)}
    return own | {key: value.tolist() for key, value in module.state_dict().items()}


class Averaging(Remembering):
    """Changes a buffer in place."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if self.training:
            self.calls.mul_(0.5).add_(x.detach().mean())
        return by_view(x)


def test_a_buffer_that_changes_in_place_still_does():
    module = Averaging(by_view).train()
    assert write_out(module)
    assert float(module.calls) == 0
    module(X + 1)
    module(X)
    assert float(module.calls) == pytest.approx(float(1.5 * X.mean() + 0.5), abs=1e-6)
    module.eval()(X)
    assert float(module.calls) == pytest.approx(float(1.5 * X.mean() + 0.5), abs=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),  # equal parts alone, which can go as they are
        lambda x: x.view(2, 6, 16).transpose(1, 2).reshape(2, 6, 4, 4),
        lambda x: torch.cat(x.split(3, 1), 1),
        F.relu,
    ],
)
def test_other_modules_stay(function):
    assert not write_out(Module(function))
