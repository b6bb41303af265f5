"""The int8 graph: what it computes, how it learns, and what is made of it."""

from __future__ import annotations

import copy
import re
import runpy
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.export import load, pt2
from pfray.export.packed import file
from pfray.export.tflite import convert
from pfray.measure.cost import stored_bits, total_macs
from pfray.nn.inputs import call, take, tensors
from pfray.nn.modes import forward, settle_memory_format
from pfray.quantization.bn_folding import foldable_norms, folded
from pfray.quantization.pt2e import int8_model
from pfray.quantization.pt2e.int8_model import Int8Model
from pfray.workflow.finalize import pack
from tests.forms import FORMS, form
from tests.small import difference, file_difference


class Small(nn.Module):
    """Names with underscores, a residual addition, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first_conv = nn.Conv2d(3, 8, 3, padding=1)
        self.second_conv = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first_conv(x))
        x = self.relu(self.second_conv(x) + x)
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Small().eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prepared(model: nn.Module, inputs: Tensor) -> Int8Model:
    return int8_model.prepare(model, inputs, inputs.split(10))


def test_eight_bits_are_near_the_float_model_which_stays_as_it_is(model, inputs):
    before = copy.deepcopy(model.state_dict())
    prepared = int8_model.prepare(model, inputs, inputs.split(10))
    with torch.no_grad():
        errors = (prepared(inputs) - model(inputs)).square().mean() / model(inputs).var()
    assert 0 < errors < 0.01
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert prepared.float_layers() == []
    assert total_macs(prepared, inputs[:1]) == total_macs(model, inputs[:1])


def test_a_layer_that_is_left_out_stays_float_whatever_its_name(model, inputs):
    prepared = int8_model.prepare(model, inputs, [inputs], ["second_conv"])
    assert prepared.float_layers() == ["second_conv"]
    state = prepared.converted(folded=True).state_dict()
    assert state["second_conv.weight"].dtype == torch.float32
    assert sorted(tuple(v.shape) for v in state.values() if v.dtype == torch.int8) == [(5, 8), (8, 3, 3, 3)]
    assert prepared.operators() == {
        "first_conv": ("int8", "conv2d in integers"),
        "second_conv": ("float", "left out by the plan or by learner.skip"),
        "linear": ("int8", "linear in integers"),
    }


def test_operators_without_an_int8_kernel_stay_float_and_are_listed_with_the_reason(inputs, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.ConvTranspose2d(8, 8, 2), nn.Flatten(), nn.Linear(392, 5)
    ).eval()
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert prepared.operators() == {
        "0": ("int8", "conv2d in integers"),
        "1": ("float", "no int8 kernel for group_norm"),
        "2": ("float", "sigmoid among operators in float"),
        "2.mul_tensor": ("float", "mul among operators in float"),
        "3": ("int8", "conv_transpose2d in integers"),
        "5": ("int8", "linear in integers"),
    }
    convert.export(prepared, inputs, tmp_path / "model.tflite")
    assert convert.compare(tmp_path / "model.tflite", prepared, inputs).largest_difference < 0.05


def test_the_file_takes_and_gives_int8_as_the_guide_says(inputs, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    prepared = int8_model.prepare(model, inputs, [inputs])
    convert.export(prepared, inputs, tmp_path / "model.tflite")
    page = (Path(__file__).parents[3] / "docs" / "your_data.md").read_text()
    (script,) = re.findall(r"```python\n# int8_file\.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "int8_file.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path("int8_file.py", {"sample": inputs[:1].numpy()})
    assert {found[end]["dtype"] for end in ("taken", "given")} == {np.int8}
    expected = model(inputs[:1]).detach().numpy()
    assert np.abs(found["outputs"] - expected).max() < 0.03 * np.abs(expected).max()


def test_ranges_are_the_means_of_the_batches_extremes(model, inputs):
    batches = [inputs[:10], 2 * inputs[10:20], 3 * inputs[20:30]]
    prepared = int8_model.prepare(model, inputs, batches)
    low, high = (fmean(float(end(batch)) for batch in batches) for end in (torch.min, torch.max))
    read = next(node for node in prepared.graph.graph.nodes if node.op == "placeholder")
    quantizer = next(user for user in read.users if "post_process" in str(user.target))
    assert float(prepared.graph.get_submodule(quantizer.target).scale) == pytest.approx((high - low) / 255, rel=1e-4)


def test_scales_follow_the_inputs_in_training_only(prepared, inputs):
    own = copy.deepcopy(prepared)
    scales = {name: value.clone() for name, value in own.state_dict().items() if name.endswith("scale")}
    with torch.no_grad():
        own(10 * inputs)
        assert all(torch.equal(scales[name], own.state_dict()[name]) for name in scales)
        own.train()
        own(10 * inputs)
    moved = [name for name in scales if not torch.equal(scales[name], own.state_dict()[name])]
    assert moved
    assert not own.eval().training


def test_activations_are_rounded_after_the_delay_and_always_in_evaluation(prepared, inputs):
    own = copy.deepcopy(prepared)
    own.round_after(2)
    read = next(node for node in own.graph.graph.nodes if node.op == "placeholder")
    quantizer = own.graph.get_submodule(next(u.target for u in read.users if "post_process" in str(u.target)))
    weight = next(node for node in own.graph.graph.nodes if node.name.startswith("conv2d")).args[1]
    assert own.graph.get_submodule(weight.target) not in own.activations
    seen = []
    quantizer.register_forward_hook(lambda _, given, output: seen.append(bool(torch.equal(given[0], output))))

    def call(model: Int8Model, *modes: bool) -> None:
        for mode in modes:
            model.train(mode)(2 * inputs)

    highest = float(quantizer.activation_post_process.max_val)
    call(own, True, False)
    assert float(quantizer.activation_post_process.max_val) > highest
    state = copy.deepcopy(own.state_dict())
    call(own, True, True, False)
    assert seen == [True, False, True, False, False]
    # What is continued after the first call waits for one more.
    again = copy.deepcopy(own)
    again.load_state_dict(state)
    seen.clear()
    call(again, True, True)
    assert seen == [True, False]


def test_a_relu_used_twice_is_fused_with_what_is_before_each_call(prepared):
    nodes = {node.name: node for node in prepared.graph.graph.nodes}
    # Fused, nothing lies between a convolution or an addition and its ReLU.
    relus = [node for name, node in nodes.items() if name.startswith("relu")]
    assert [node.args[0].name for node in relus] == ["conv2d", "add"]
    assert all(user.op == "call_module" for node in relus for user in node.users)


def test_gradients_reach_the_weights(prepared, inputs):
    own = copy.deepcopy(prepared).train()
    own(inputs).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.parameters())


def test_the_state_dict_restores_a_model_that_saw_one_batch(model, prepared, inputs):
    other = int8_model.prepare(model, inputs, [3 * inputs[:1]])
    assert difference(other, prepared, inputs) > 0
    other.load_state_dict(prepared.state_dict())
    assert difference(other, prepared, inputs) == 0


def test_the_converted_graph_holds_integers_and_computes_the_same(model, prepared, inputs, tmp_path):
    converted = prepared.converted(folded=True)
    dtypes = {name: value.dtype for name, value in converted.state_dict().items()}
    layers = ("first_conv", "second_conv", "linear")
    assert {name for name, dtype in dtypes.items() if dtype == torch.int8} == {f"{layer}.weight" for layer in layers}
    parts = ("bias", "weight", "weight_scale", "weight_zero_point")
    assert set(dtypes) == {f"{layer}.{part}" for layer in layers for part in parts}
    assert difference(converted, prepared, inputs) < 0.02
    assert pt2.save(prepared, inputs, tmp_path / "model.pt2") > 0
    assert difference(load(tmp_path / "model.pt2"), converted, inputs) < 1e-6
    whole = file.save(tmp_path / "float.packed", model.state_dict())
    # Small as this is, biases, scales and the file's own entries are a part of it.
    assert pack(prepared, tmp_path / "model.packed") < whole


def test_the_file_runs_in_integers_and_is_checked(prepared, inputs, tmp_path: Path):
    path = tmp_path / "model.tflite"
    assert file_difference(prepared, inputs, path) <= 0.02
    from ai_edge_litert.interpreter import Interpreter

    kinds = {detail["name"]: detail["dtype"].__name__ for detail in Interpreter(str(path)).get_tensor_details()}
    assert "int8" in kinds.values()
    assert "int32" in kinds.values()  # the biases, without which the kernels would not be integer ones


def test_a_model_that_cannot_be_exported_is_refused():
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModel, match=r"Branches cannot be exported for 8 bits.*Remedy"):
        int8_model.prepare(Branches(), torch.ones(1, 3), [])


@pytest.mark.parametrize("name", FORMS)
def test_inputs_and_outputs_of_any_form_stay_what_they_are(name):
    model, inputs, *_ = form(name)
    prepared = int8_model.prepare(model, take(inputs, slice(0, 1)), [inputs])
    with torch.no_grad():
        expected, outputs = call(model, inputs), call(prepared, inputs)
        with prepared.unrounded() as changed:
            exact = call(prepared, inputs)
    assert changed
    assert type(outputs) is type(expected)
    for own, unrounded, other in zip(tensors(outputs), tensors(exact), tensors(expected), strict=True):
        assert 0 < (own - other).abs().max() < 0.05 * other.abs().max()
        assert (unrounded - other).abs().max() < 1e-5
    assert "no int8 kernel" not in str([why for name, (_, why) in prepared.operators().items() if "embed" not in name])


def test_bits_of_the_parameters_are_those_that_the_files_hold(model, inputs):
    prepared = int8_model.prepare(model, inputs, [inputs], ["second_conv"])
    first, second, linear = (
        model.get_submodule(name).weight.numel() for name in ("first_conv", "second_conv", "linear")
    )
    assert stored_bits(prepared) == 8 * (first + linear) + 32 * (second + 8 + 8 + 5)
    assert stored_bits(copy.deepcopy(prepared)) == stored_bits(prepared)


def test_what_is_frozen_stays_as_it_is_in_training(inputs):
    """Layer, batch norm and the norm in front, which becomes a convolution of its own."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(body.requires_grad_(False), nn.Flatten(), nn.Linear(144, 3))
    model(inputs)
    whole = folded(model.eval(), foldable_norms(model, inputs[:1]))
    prepared = int8_model.prepare(whole, inputs, [inputs]).train()
    assert {name for name, each in prepared.named_parameters() if each.requires_grad} == {
        "graph.2.weight", "graph.2.bias"
    }  # fmt: skip


def test_a_model_that_needs_contiguous_tensors_is_calibrated_with_them(inputs):
    class Flattened(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).view(len(x), -1))

    torch.manual_seed(0)
    model = Flattened(nn.Conv2d(3, 4, 3), nn.Linear(144, 3)).eval()
    settle_memory_format(model, inputs[:1])
    prepared = int8_model.prepare(model, inputs[:1], [inputs])
    assert (forward(prepared, inputs) - model(inputs)).abs().max() < 0.05
