"""Inputs of few bits: levels by hand, ranges, gradients, and that copies, checkpoints and exports keep them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from pfray.errors import UnsupportedModel
from pfray.quantization import activations
from pfray.task import Split, Task
from tests.small import make_task


def ranges(model: nn.Module, names: list[str], task: Task, bits: int = 8, **how: Any) -> activations.Ranges:
    given = {"images": 60, "method": "min_max", "percentile": 99.9, **how}
    return activations.input_ranges(model, names, task, bits=bits, **given)


def identity() -> nn.Linear:
    """Shows what it reads."""
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3))
    return layer


def test_two_bits_by_hand_and_the_gradient_is_that_of_the_clipping():
    layer = identity()
    activations.attach(layer, "", torch.tensor([-1.0]), torch.tensor([1.0]), 2)
    inputs = torch.tensor([[-3.0, 0.4, 0.6], [1.4, 1.6, 9.0]], requires_grad=True)
    found = layer(inputs)
    assert found.tolist() == [[-1, 0, 1], [1, 2, 2]]
    found.sum().backward()
    assert inputs.grad.tolist() == [[0, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_range_is_that_of_all_training_inputs_and_zero_is_kept_where_relu_ends(bits):
    task = make_task()
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))
    (low, step), largest = ranges(model, ["1"], task, bits)["1"], task.train.inputs.max()
    assert low.tolist() == [0.0]
    assert step.item() == pytest.approx(largest.item() / (2**bits - 1))


def test_only_the_first_images_are_looked_at_and_the_model_is_left_as_it_was():
    task = make_task()
    task.train.inputs[30:] *= 10
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).train()
    before = copy.deepcopy(model.state_dict())
    low, step = ranges(model, ["0"], task, images=30)["0"]
    head = task.train.inputs[:30]
    assert low.item() == pytest.approx(head.min().item())
    assert low.item() + 255 * step.item() == pytest.approx(head.max().item(), abs=1e-5)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_pre_hooks


def test_the_least_squared_error_leaves_out_what_is_rare():
    task = make_task()
    task.train.inputs[0, 0, 0, 0] = 1000.0
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    steps = {how: ranges(model, ["0"], task, 4, method=how)["0"][1].item() for how in ("min_max", "percentile")}
    assert steps["percentile"] < 0.05 * steps["min_max"]


def test_a_layer_that_does_not_run_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    model.unused = nn.Linear(2, 2)
    model.forward = lambda inputs: model[0](inputs)
    with pytest.raises(UnsupportedModel, match=r"unused does not run on the training inputs.*learner\.skip=\[unused\]"):
        ranges(model, ["0", "unused"], make_task())


def test_inputs_that_are_all_alike_are_exact():
    task = make_task()
    split = Split(torch.full_like(task.train.inputs, 0.7), task.train.targets)
    constant = Task("constant", split, split, split, 3)
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    expected = model(split.inputs[:1])
    activations.attach(model, "0", *ranges(model, ["0"], constant)["0"], 8)
    assert torch.allclose(model(split.inputs[:1]), expected, atol=1e-6)


def test_copies_pickles_and_programs_take_it_along_and_the_state_dict_has_it():
    layer = identity()
    activations.attach(layer, "", torch.tensor([-1.0]), torch.tensor([0.5]), 3)
    inputs = torch.tensor([[-2.0, 0.3, 9.0]])
    expected = [[-1.0, 0.5, 2.5]]
    assert layer(inputs).tolist() == expected
    assert copy.deepcopy(layer)(inputs).tolist() == expected
    assert pickle.loads(pickle.dumps(layer))(inputs).tolist() == expected
    assert torch.export.export(layer, (inputs,)).module()(inputs).tolist() == expected
    assert {"input_quantizer.low", "input_quantizer.step"} <= set(layer.state_dict())
    other = identity()
    activations.attach(other, "", torch.tensor([0.0]), torch.tensor([9.0]), 3)
    other.load_state_dict(layer.state_dict())
    assert other(inputs).tolist() == expected


def test_a_layer_that_is_called_by_keyword_reads_few_bits_too():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(input=x)

    model = Named()
    low, step = ranges(model, ["layer"], make_task(shape=(3,)), bits=2)["layer"]
    activations.attach(model, "layer", low, step, 2)
    found = model(torch.tensor([[-9.0, 0.0, 9.0]]))[0]
    assert found[[0, 2]].tolist() == pytest.approx([low.item(), (low + 3 * step).item()])


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse"])
def test_inputs_that_are_no_numbers_have_no_range(method):
    task = make_task()
    task.train.inputs[3, 0, 0, 0] = torch.nan
    with pytest.raises(UnsupportedModel, match="0 reads values that are NaN or infinite on the first 60 training"):
        ranges(nn.Sequential(nn.Conv2d(2, 2, 1)), ["0"], task, method=method)


class Text(nn.Module):
    """Two of torch's encoder layers; 0 stands behind the end of a text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0)[:, 0])


def test_an_encoder_with_padded_texts_is_quantized_too():
    """In evaluation mode torch's encoder packs padded texts, and its layers' hooks would get the packed tensors."""
    tokens = torch.randint(1, 20, (60, 7), generator=torch.Generator().manual_seed(0))
    tokens[::2, 5:] = 0
    split = Split(tokens, torch.zeros(60, dtype=torch.int64))
    model = Text().eval()
    names = [f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    found = ranges(model, names, Task("texts", split, split, split, 3))
    # The second layer of the feed-forward part reads what ReLU gives.
    assert [found[name][0].item() for name in names[1::2]] == [0.0, 0.0]
    assert model.encoder.use_nested_tensor
    quantized = copy.deepcopy(model)
    for name in names:
        activations.attach(quantized, name, *found[name], 8)
    with torch.inference_mode():
        one, other = quantized(tokens), model(tokens)
    assert 1e-5 < (one - other).abs().max() < 0.02 * other.abs().max()
