"""Ranges of what is quantized several times in a step: those of all calls together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pfray.quantization.pt2e import int8_model
from pfray.quantization.pt2e.int8_model import Int8Model


class Pooled(nn.Module):
    """A wide range goes into the pooling, a narrow one comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.last = nn.Conv2d(3, 8, 3), nn.AvgPool2d(6), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.conv(x))).flatten(1)


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prepared(inputs: Tensor) -> Int8Model:
    return int8_model.prepare(Pooled().eval(), inputs, [inputs])


def ends(model: Int8Model) -> tuple[float, float]:
    observer = model.shared[0].quantizer.activation_post_process
    return float(observer.min_val), float(observer.max_val)


def test_what_a_pooling_reads_and_gives_has_the_range_of_what_it_reads(prepared, inputs):
    pool = next(node for node in prepared.graph.graph.nodes if node.name == "avg_pool2d")
    around = {prepared.graph.get_submodule(each.target) for each in (pool.args[0], *pool.users)}
    assert around == {prepared.shared[0].quantizer}
    with torch.no_grad():
        read = Pooled().conv(inputs)
    assert ends(prepared) == pytest.approx((float(read.min()), float(read.max())))
    assert float(prepared.shared[0].quantizer.scale) == pytest.approx(float(read.max() - read.min()) / 255, rel=1e-4)


def test_a_step_moves_the_range_once_by_a_hundredth(prepared, inputs):
    before = ends(prepared)
    with torch.no_grad():
        prepared.train()(0.5 * inputs)
        read = Pooled().conv(0.5 * inputs)
    # Were the pooled values a step of their own, the range would move twice, and towards zero.
    seen = [then + 100 * (now - then) for now, then in zip(ends(prepared), before, strict=True)]
    assert seen == pytest.approx([float(read.min()), float(read.max())], rel=0.03)


def test_in_evaluation_nothing_moves(prepared, inputs):
    before = ends(prepared)
    with torch.no_grad():
        prepared.eval()(10 * inputs)
    assert ends(prepared) == before
    assert prepared.shared[0].seen == []


def test_a_copy_has_ranges_of_its_own(prepared, inputs):
    own, before = copy.deepcopy(prepared), ends(prepared)
    with torch.no_grad():
        own.train()(0.5 * inputs)
    assert ends(prepared) == before
    assert ends(own)[1] < before[1]
