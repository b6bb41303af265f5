"""Batches and outputs of any form."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pfray.nn import modes
from pfray.nn.inputs import call, count, join, map_tensors, shapes, take, tensors


@dataclass
class Found:
    boxes: Tensor
    note: str = "none"


def trees():
    x = torch.arange(6.0).reshape(3, 2)
    return [x, (x, 2 * x), {"a": x, "b": None}, [x[0], x[1], x[2]], Found(x), ({"a": x}, 7)]


@pytest.mark.parametrize("tree", trees(), ids=lambda tree: type(tree).__name__)
def test_parts_joined_again_are_the_batch(tree):
    parts = [take(tree, slice(0, 2)), take(tree, torch.tensor([2]))]

    assert count(tree) == 3 if not isinstance(tree, Found) else True
    again = join(parts)
    assert type(again) is type(tree)
    assert len(tensors(again)) == len(tensors(tree))
    assert all(torch.equal(own, other) for own, other in zip(tensors(again), tensors(tree), strict=True))


def test_values_that_are_no_tensors_stay():
    changed = map_tensors(lambda x: x + 1, {"a": torch.zeros(2), "flag": True, "none": None})

    assert changed["flag"] is True
    assert changed["none"] is None
    assert changed["a"].tolist() == [1, 1]


class Sum(nn.Module):
    def forward(self, first, second=0):
        return first + second


def test_a_tuple_gives_arguments_and_a_mapping_keywords():
    x = torch.ones(2)

    assert call(Sum(), x).tolist() == [1, 1]
    assert call(Sum(), (x, 2 * x)).tolist() == [3, 3]
    assert call(Sum(), {"second": x, "first": 3 * x}).tolist() == [4, 4]


class Flattens(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

    def forward(self, x):
        y = self.conv(x)
        return self.head(y.view(y.size(0), -1))


def test_a_model_that_flattens_by_view_keeps_contiguous_tensors():
    model, x = Flattens(), torch.randn(2, 3, 8, 8)
    wanted = model(x)

    modes.settle_memory_format(model, x)
    placed = modes.place(model, "cpu")

    assert placed.conv.weight.is_contiguous()
    torch.testing.assert_close(modes.forward(placed, x), wanted)


def test_other_models_run_in_channels_last():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.randn(2, 3, 8, 8)

    modes.settle_memory_format(model, x)
    modes.place(model, "cpu")

    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_three_dimensional_convolutions_can_be_placed():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(54, 2))

    assert modes.forward(modes.place(model, "cpu"), torch.randn(2, 1, 5, 5, 5)).shape == (2, 2)


def test_shapes_are_named_as_the_model_takes_them():
    one, two = torch.rand(1, 5), torch.rand(1, 3, 4, 4)
    assert shapes(two) == "an input of shape (1, 3, 4, 4)"
    assert shapes({"ids": one}) == "an input of shape (1, 5)"
    assert shapes((one, two)) == "inputs of shapes [0] (1, 5), [1] (1, 3, 4, 4)"
    assert shapes({"ids": one, "flag": None, "pair": [two, one]}) == (
        "inputs of shapes ids (1, 5), pair[0] (1, 3, 4, 4), pair[1] (1, 5)"
    )


def test_types_other_than_float32_are_named_beside_their_shapes():
    tokens, mask = torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5)
    assert shapes({"ids": tokens, "mask": mask}) == "inputs of shapes ids int64 (1, 5), mask (1, 5)"
    assert shapes((mask.half(), tokens), "output") == "outputs of shapes [0] float16 (1, 5), [1] int64 (1, 5)"
    assert shapes([mask.bool()], "output") == "an output of shape bool (1, 5)"
