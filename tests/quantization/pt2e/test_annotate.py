"""Which operators compute in integers: those LiteRT has kernels for, where that saves something."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.export.tflite import convert
from pfray.quantization.pt2e import int8_model
from tests.small import difference, file_difference


class Between(nn.Module):
    """An operation on what two convolutions give, and a convolution behind it."""

    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.operation = operation
        with torch.no_grad():
            width = self.middle(torch.zeros(2, 3, 8, 8)).shape[1]
        self.last = nn.Conv2d(width, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.operation(self.one(x), self.other(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(x)).flatten(1)


def attention(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(2), b.flatten(2)
    return ((a @ b.mT).softmax(2) @ b).unflatten(2, (8, 8))


IN_INTEGERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: F.relu(a.add_(b)),
    "difference": lambda a, b: a - b,
    "product": lambda a, b: a * b.mean((2, 3), keepdim=True),
    "numbers": lambda a, b: (1 - 2 * a) / 3 + 1,
    "square": lambda a, b: a**2,
    "cat": lambda a, b: torch.cat([a, b], 1),
    "clipped cat": lambda a, b: F.relu(torch.concat([a, b], 1)),
    "average": lambda a, b: F.avg_pool2d(a, 3, 1, 1),
    "largest": lambda a, b: F.max_pool2d(torch.maximum(a, b), 2),
    "mean": lambda a, b: F.adaptive_avg_pool2d(a, 1),
    "means": lambda a, b: F.adaptive_avg_pool2d(a, 2),
    "nearest": lambda a, b: F.interpolate(a, scale_factor=2),
    "bilinear": lambda a, b: F.interpolate(a, scale_factor=2, mode="bilinear"),
    "sigmoid": lambda a, b: a * torch.sigmoid(b),
    "softmax": lambda a, b: a.softmax(1),
    "tanh": lambda a, b: torch.tanh(a).flatten(2).view(-1, 8, 8, 8),
    "silu": lambda a, b: F.silu(a),
    "hardswish": lambda a, b: F.hardswish(a),
    "hardsigmoid": lambda a, b: a * F.hardsigmoid(b),
    "leaky relu": lambda a, b: F.leaky_relu(a, 0.1),
    "shuffle": lambda a, b: F.channel_shuffle(F.pixel_shuffle(a, 2), 2),
    "order": lambda a, b: a.index_select(1, torch.arange(7, -1, -1)),
    "attention": lambda a, b: attention(a, b).sum(1, keepdim=True),
    "parts": lambda a, b: torch.stack([*a.unbind(2)[3:5], *b.unbind(2)[:2]], 2),
    "split": lambda a, b: torch.cat(a.chunk(2, 1)[::-1], 1)[:, 1:7],
}


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def floats(model: int8_model.Int8Model) -> dict[str, str]:
    return {name: why for name, (kind, why) in model.operators().items() if kind == "float"}


@pytest.mark.parametrize("name", IN_INTEGERS)
def test_between_layers_integers_stay_integers_and_near_the_float_model(name, inputs):
    model = Between(IN_INTEGERS[name]).eval()
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert floats(prepared) == {}
    # Four of the 128 steps to the largest output.
    assert difference(prepared, model, inputs) < 0.03


class Everything(nn.Module):
    """Many of those operators in one network, whose file takes no longer than one operator's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.side = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.wide, self.up = nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.norm, self.slope, self.last = nn.BatchNorm2d(8), nn.PReLU(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.silu(self.stem(x)), self.side(x)
        a = F.relu(self.wide(torch.cat([F.avg_pool2d(a, 3, 1, 1), b], 1)) + b)
        a = a * torch.sigmoid(a.mean((2, 3), keepdim=True))
        a = self.up(F.max_pool2d(a, 2)) - 0.5 * b
        a = torch.stack([attention(a, b).unbind(2)[i] for i in (0, 3, 1, 2, 4, 7, 5, 6)], 2)
        a = self.slope(self.norm(F.interpolate(F.avg_pool2d(a, 2), scale_factor=2, mode="bilinear")))
        return self.last(F.adaptive_avg_pool2d(F.hardswish(a), 1).flatten(1))


def test_the_file_computes_all_of_them_in_integers_as_the_graph_does(inputs, tmp_path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    prepared = int8_model.prepare(Everything().eval(), inputs, [inputs])
    assert floats(prepared) == {}
    path = tmp_path / "model.tflite"
    assert file_difference(prepared, inputs, path) < 0.04
    content = convert.convert(prepared, inputs)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    tensors = {each["index"]: each["dtype"].__name__ for each in interpreter.get_tensor_details()}
    names = {each["op_name"] for each in interpreter._get_ops_details()}
    known = "CONCATENATION AVERAGE_POOL_2D LOGISTIC TRANSPOSE_CONV RESIZE_BILINEAR HARD_SWISH SOFTMAX"
    assert names.issuperset(known.split())
    assert "float32" not in tensors.values()


def test_among_operators_in_float_others_stay_float_too(inputs):
    model = Between(lambda a, b: F.group_norm(a + b, 2) + F.group_norm(b, 2)).eval()
    why = floats(int8_model.prepare(model, inputs, [inputs]))
    assert why == {
        "add": "add among operators in float", "group_norm": "no int8 kernel for group_norm",
        "group_norm_1": "no int8 kernel for group_norm", "add_1": "add among operators in float",
    }  # fmt: skip
    # A sum of one value that comes in integers and one that does not is worth it.
    half = Between(lambda a, b: a + F.group_norm(b, 2)).eval()
    assert floats(int8_model.prepare(half, inputs, [inputs])) == {"group_norm": "no int8 kernel for group_norm"}


def test_what_is_in_front_of_the_first_layer_keeps_its_precision(inputs):
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv((x - 0.5) / 0.25)

    why = floats(int8_model.prepare(Normalized().eval(), inputs, [inputs]))
    assert list(why.values()) == ["sub among operators in float", "mul among operators in float"]


@pytest.mark.parametrize(("names", "also"), [
    (["other"], []), (["last"], []), (["one", "other"], ["add among operators in float"]),
])  # fmt: skip
def test_beside_one_layer_that_is_left_out_integers_go_on_and_beside_none_they_do_not(inputs, names, also):
    prepared = int8_model.prepare(Between(lambda a, b: F.relu(a + b)).eval(), inputs, [inputs], names)
    left_out = ["left out by the plan or by learner.skip"] * len(names)
    assert sorted(floats(prepared).values()) == sorted([*also, *left_out])


def test_with_all_layers_left_out_nothing_is_quantized(inputs):
    model = Between(lambda a, b: F.max_pool2d(F.relu(a + b), 2)).eval()
    prepared = int8_model.prepare(model, inputs, [inputs], ["one", "other", "last"])
    assert not [node for node in prepared.graph.graph.nodes if "post_process" in str(node.target)]


def test_what_is_joined_has_one_scale(inputs):
    prepared = int8_model.prepare(Between(lambda a, b: torch.cat([a, 5 * b], 1)).eval(), inputs, [inputs])
    (cat,) = [node for node in prepared.graph.graph.nodes if node.name == "cat"]
    (scale,) = scales(prepared, list(cat.users))
    assert scales(prepared, cat.args[0]) == [scale] * 2


def test_a_sigmoid_has_one_range_which_nothing_else_is_joined_to(inputs, tmp_path):
    prepared = int8_model.prepare(Between(lambda a, b: torch.cat([a, torch.sigmoid(b)], 1)).eval(), inputs, [inputs])
    (sigmoid,) = [node for node in prepared.graph.graph.nodes if node.name == "sigmoid"]
    assert scales(prepared, list(sigmoid.users)) == [1 / 256]
    assert file_difference(prepared, inputs, tmp_path / "model.tflite") < 0.03


def test_a_sigmoid_that_is_read_in_float_too_keeps_its_range(inputs, tmp_path):
    def gated(a: Tensor, b: Tensor) -> Tensor:
        gate = torch.sigmoid(a).transpose(2, 3)
        return b * gate + F.group_norm(gate, 2)

    prepared = int8_model.prepare(Between(gated).eval(), inputs, [inputs])
    assert floats(prepared) == {"group_norm": "no int8 kernel for group_norm"}
    assert file_difference(prepared, inputs, tmp_path / "model.tflite") < 0.03


@pytest.mark.parametrize("operation", [
    lambda a, b: torch.cat([torch.sigmoid(a), torch.tanh(b)], 1),
    lambda a, b: a / 10000 * 10000,
    lambda a, b: F.relu(a + b).float(),
])  # fmt: skip
def test_the_file_of_what_was_wrong_once(operation, inputs, tmp_path):
    model = Between(operation).eval()
    prepared = int8_model.prepare(model, inputs, [inputs])
    path = tmp_path / "model.tflite"
    assert file_difference(prepared, inputs, path) < 0.05
    compared = convert.compare(path, model, inputs)
    assert compared.largest_difference < 0.05 * compared.file.abs().max()


def test_a_batch_norm_in_front_of_the_first_layer_stays_float():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Flatten()).eval()
    norm = model[0]
    norm.running_var.copy_(torch.tensor([1.0, 1e4, 1e-4]))
    inputs = torch.randn(20, 3, 8, 8) * norm.running_var.sqrt().view(3, 1, 1)
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert floats(prepared) == {"0": "conv2d among operators in float"}
    assert difference(prepared, model, inputs) < 0.03
    whole = int8_model.prepare(model, inputs, [inputs], ["1"])
    assert not [node for node in whole.graph.graph.nodes if "post_process" in str(node.target)]


def test_blocks_without_autocast_are_taken(inputs):
    def careful(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return a.sqrt() if a.dim() == 3 else a * b

    model = Between(careful).eval()
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert difference(prepared, model, inputs) < 0.03


def test_a_change_of_a_part_in_place_is_refused(inputs):
    def halved(a: Tensor, b: Tensor) -> Tensor:
        a[:, 0].div_(2)
        return a + b

    with pytest.raises(UnsupportedModel, match=r"gives other outputs when it is prepared for 8 bits. Remedy"):
        int8_model.prepare(Between(halved).eval(), inputs, [inputs])


def test_a_transposed_convolution_that_is_left_out_is_listed(inputs):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 4, 1), nn.Flatten()).eval()
    prepared = int8_model.prepare(model, inputs, [inputs], ["1"])
    assert floats(prepared) == {"1": "left out by the plan or by learner.skip"}


def test_whole_numbers_have_no_scale(inputs):
    def odd(a: Tensor, b: Tensor) -> Tensor:
        places = torch.arange(a.shape[3]) * 2 + 1
        return (a * (places % 4 == 1) + b)[..., (places // 2).flatten()]

    model = Between(odd).eval()
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert difference(prepared, model, inputs) < 0.03


def scales(prepared: int8_model.Int8Model, nodes: Iterable[torch.fx.Node]) -> list[float]:
    """Of fake quantizations."""
    modules: list[Any] = [prepared.graph.get_submodule(str(node.target)) for node in nodes]
    return [float(module.scale) for module in modules]


def test_the_parts_of_an_output_have_scales_of_their_own(inputs, tmp_path):
    """Boxes up to 256 and probabilities: in one scale the probabilities would be 0 or 1."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.boxes, self.classes = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.body(x))
            return torch.cat([128 + 128 * torch.tanh(self.boxes(x)), self.classes(x).sigmoid()], 1).flatten(2)

    model = Head().eval()
    prepared = int8_model.prepare(model, inputs, [inputs])
    found = floats(prepared)
    assert found["cat"] == "cat among operators in float"
    assert not {"body", "boxes", "classes"} & set(found)
    convert.export(prepared, inputs, tmp_path / "model.tflite")
    compared = convert.compare(tmp_path / "model.tflite", prepared, inputs)
    with torch.no_grad():
        expected = model(inputs)[:, 4:]
    for outputs in (compared.model, compared.file):
        assert (outputs[:, 4:] - expected).abs().max() < 0.02
        assert len(outputs[:, 4:].unique()) > 50
