"""Layers as matrix products: rows times weights are the layer's own outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.nn.dense import MAX_WIDTH, can_shift, is_dense, norms_behind, shift_output
from pfray.nn.im2col import draw_positions, input_rows, output_rows, rows_of_channels, weight_rows

LAYERS = {
    "plain": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 9, 8)),
    "pointwise, strided": (lambda: nn.Conv2d(3, 5, 1, 2), (2, 3, 9, 8)),
    "strided, padded": (lambda: nn.Conv2d(3, 5, 3, 2, 1), (2, 3, 9, 8)),
    "rectangular": (lambda: nn.Conv2d(3, 5, (1, 4), (3, 2), (2, 1)), (2, 3, 9, 11)),
    "dilated": (lambda: nn.Conv2d(2, 4, (3, 2), dilation=(2, 3), padding=(1, 2)), (2, 2, 10, 9)),
    "same": (lambda: nn.Conv2d(3, 5, (4, 3), padding="same"), (2, 3, 7, 6)),
    "same, dilated": (lambda: nn.Conv2d(3, 5, 2, padding="same", dilation=3), (2, 3, 9, 9)),
    "reflected": (lambda: nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 6, 7)),
    "circular": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular", bias=False), (2, 3, 6, 7)),
    "1d": (lambda: nn.Conv1d(3, 5, 4, 2, 1, dilation=2), (3, 3, 15)),
    "3d": (lambda: nn.Conv3d(2, 4, (2, 3, 1), (1, 2, 1), (1, 0, 2)), (2, 2, 4, 7, 3)),
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear over tokens": (lambda: nn.Linear(6, 4, bias=False), (3, 7, 6)),
    "linear over two axes": (lambda: nn.Linear(6, 4), (3, 2, 5, 6)),
}


@pytest.mark.parametrize("count", [5, 10_000])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weights_are_the_layers_outputs(name, count):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, inputs = make(), torch.randn(shape)
    with torch.no_grad():
        outputs = layer(inputs)
        positions = draw_positions(layer, outputs, count, torch.Generator().manual_seed(1))
        rows = input_rows(layer, inputs, positions)
        found = rows.double() @ weight_rows(layer) + (0 if layer.bias is None else layer.bias)
    assert rows.shape == (positions.numel(), layer.weight[0].numel())
    assert torch.allclose(found, output_rows(layer, outputs, positions).double(), atol=1e-5)


def test_the_memory_format_changes_no_row():
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(4, 5, 3, padding=1), torch.randn(2, 4, 6, 6)
    positions = torch.tensor([[0, 7, 35], [1, 2, 3]])
    last = inputs.contiguous(memory_format=torch.channels_last)
    assert torch.equal(input_rows(layer, last, positions), input_rows(layer, inputs, positions))
    outputs = layer(inputs)
    again = outputs.contiguous(memory_format=torch.channels_last)
    assert torch.equal(output_rows(layer, again, positions), output_rows(layer, outputs, positions))


def test_few_positions_are_all_taken_once_and_many_are_drawn_for_each_sample():
    layer, generator = nn.Conv2d(1, 1, 1), torch.Generator().manual_seed(0)
    assert draw_positions(layer, torch.zeros(2, 9, 2, 3), 6, generator).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    drawn = draw_positions(layer, torch.zeros(200, 9, 20, 30), 50, generator)
    assert drawn.shape == (200, 50)
    assert (drawn.min(), drawn.max()) == (0, 599)
    assert not torch.equal(drawn[0], drawn[1])
    tokens = draw_positions(nn.Linear(1, 1), torch.zeros(3, 4, 9), 10, generator)
    assert tokens.tolist() == [[0, 1, 2, 3]] * 3
    assert draw_positions(nn.Linear(1, 1), torch.zeros(3, 9), 10, generator).tolist() == [[0]] * 3


def test_a_channels_rows_are_those_of_its_kernel_positions():
    layer = nn.Conv2d(4, 3, (1, 3))
    assert rows_of_channels(layer, np.array([0, 2])).tolist() == [0, 1, 2, 6, 7, 8]
    assert torch.equal(
        weight_rows(layer)[rows_of_channels(layer, np.array([1, 3]))],
        layer.weight[:, [1, 3]].flatten(1).T.double(),
    )
    assert rows_of_channels(nn.Linear(5, 2), np.array([4, 1])).tolist() == [4, 1]


def test_dense_are_layers_of_one_matrix_product_that_is_not_too_wide():
    dense = [nn.Conv1d(4, 4, 3), nn.Conv3d(2, 2, 1), nn.Linear(3, 4), nn.Linear(MAX_WIDTH, 1)]
    other = [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 2), nn.BatchNorm2d(4), nn.Linear(MAX_WIDTH + 1, 1)]
    assert [is_dense(layer) for layer in (*dense, *other)] == [True] * 4 + [False] * 4


class Wiring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("direct", "relu", "inplace", "shared", "two", "first", "second", "depthwise"):
            self.add_module(name, nn.Conv2d(4, 4, 1, groups=4 if name == "depthwise" else 1, bias=False))
        for name in ("direct_norm", "relu_norm", "inplace_norm", "shared_norm", "left", "right", "common", "unkept"):
            self.add_module(name, nn.BatchNorm2d(4, track_running_stats=name != "unkept"))
        self.tokens, self.token_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.flat, self.flat_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.direct_norm(self.direct(x))
        x = self.relu_norm(F.relu(self.relu(x)))
        x = self.inplace_norm(F.relu(self.inplace(x), inplace=True))
        x = self.shared_norm(self.shared(self.shared(x)))
        y = self.two(x)
        x = self.left(y) + self.right(y)
        x = self.common(self.second(self.common(self.first(x))))
        x = self.depthwise(x)
        x = self.token_norm(self.tokens(x.mean(3)))
        return self.flat_norm(self.flat(x[:, 0]))


def test_only_a_norm_that_reads_one_layer_directly_and_nothing_else_is_behind_it():
    torch.manual_seed(0)
    model = Wiring()
    model.left.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    norms = norms_behind(model, torch.randn(1, 4, 4, 4))
    assert norms == {"direct": "direct_norm", "flat": "flat_norm"}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_constant_goes_into_the_bias_or_the_norm_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1))
    model[3].bias = None
    norms, x, shift = {"0": "1"}, torch.randn(2, 3, 5, 5), torch.tensor([1.0, -2.0, 0.5, 0.0])
    model.eval()
    model[1].running_var.fill_(4.0)
    with torch.no_grad():
        normed, biased = model[:2](x), model[2](torch.ones(1, 4, 1, 1))
        shift_output(model, "0", norms, shift.double())
        shift_output(model, "2", norms, shift[:2].double())
        scale = 1 / (4 + model[1].eps) ** 0.5
        assert torch.allclose(model[:2](x) - normed, (shift * scale)[:, None, None].expand_as(normed), atol=1e-6)
        assert torch.allclose((model[2](torch.ones(1, 4, 1, 1)) - biased).flatten(), shift[:2])
    assert [can_shift(model, name, norms) for name in "023"] == [True, True, False]
