"""Traced graphs of models with inputs of any form, walked batch by batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfray.nn.fx import Untraceable, Walk, traced_nodes
from pfray.nn.inputs import Inputs, call, tensors


class Many(nn.Module):
    """Two tensors, a pair of tensors, a flag, a number, an optional tensor, and other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(
        self,
        one: Tensor,
        two: Tensor,
        pair: Any = None,
        scale: float = 1.0,
        *more: Tensor,
        twice: bool = False,
        mask: Tensor | None = None,
        **unused: Any,
    ) -> dict[str, Any]:
        total = scale * self.one(one) + self.two(two)
        if pair is not None:
            total = total + pair[0] * pair[1]
        if mask is not None:
            total = total * mask
        return {"total": 2 * total if twice else total, "first": [one]}


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 4, generator=generator), torch.randn(count, 5, generator=generator)


one, two = batch()
INPUTS: dict[str, Inputs] = {
    "tuple": (one, two),
    "with a pair": (one, two, (torch.rand(2, 3), torch.rand(2, 3)), 3.0),
    "mapping": {"two": two, "one": one, "mask": torch.rand(2, 3), "twice": True},
    "other order": {"mask": torch.rand(2, 1), "scale": -1.0, "two": two, "pair": None, "one": one},
    "more": (one, two, None, 2.0, torch.rand(1)),
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@torch.no_grad()
def test_a_walk_computes_what_the_model_does_for_every_batch(inputs):
    model = Many()
    nodes = traced_nodes(model, set(), inputs)
    assert {node.target for node in nodes if node.op == "call_module"} == {"one", "two"}
    walk = Walk(nodes, model, [inputs, inputs])
    for found in walk.value(nodes[-1]):
        for own, expected in zip(tensors(found), tensors(call(model, inputs)), strict=True):
            assert torch.allclose(own, expected)


@torch.no_grad()
def test_batches_may_have_other_tensors_than_the_example():
    model = Many()
    nodes = traced_nodes(model, set(), batch(1))
    walk = Walk(nodes, model, [batch(3), batch(4)])
    first, second = walk.value(nodes[-1])
    assert torch.allclose(first["total"], model(*batch(3))["total"])
    assert torch.allclose(second["total"], model(*batch(4))["total"])


@torch.no_grad()
def test_a_walk_holds_what_is_still_to_be_read():
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Flatten(), nn.Linear(6, 2, bias=False))
    nodes = traced_nodes(model, set(), torch.rand(1, 4))
    walk, held = Walk(nodes, model, [torch.rand(10, 4), torch.rand(5, 4)]), []
    for node in nodes:
        walk.value(node)
        held.append(walk.bytes)
        walk.release(node)
    # 15 inputs of 4 values and then of 6 (flattening is a view), and 2 outputs, in float32.
    assert held == [4 * 15 * 4, 4 * 15 * (4 + 6), 4 * 15 * 6, 4 * 15 * (6 + 2), 4 * 15 * 2]


class Lengths(nn.Module):
    """One image a sample, each of a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, samples: list[Tensor]) -> list[Tensor]:
        return [self.layer(sample) for sample in samples]


def test_a_model_that_goes_through_its_samples_is_refused_with_a_reason():
    with pytest.raises(Untraceable, match=r"\w"):
        traced_nodes(Lengths(), set(), [torch.rand(3, 4), torch.rand(2, 4)])


class Misled(nn.Module):
    """torch.fx gives it something that is no tensor, for which its outputs have another shape or type."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 3), other

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if isinstance(x, Tensor) else self.other(self.layer(x))


@pytest.mark.parametrize("other", [lambda x: x.flatten(), lambda x: x.double(), lambda x: x > 0, lambda x: x[None]])
def test_outputs_of_another_shape_or_type_under_the_tracing_are_refused(other):
    with pytest.raises(Untraceable, match="its outputs change when it is traced"):
        traced_nodes(Misled(other), set(), torch.rand(2, 4))
