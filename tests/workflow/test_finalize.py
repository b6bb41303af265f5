"""A .tflite that does something else than its model is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pfray.errors import ExportError, TrainingFailed
from pfray.export.tflite import convert, float_islands
from pfray.export.tflite.float_islands import InFloat
from pfray.quantization.pt2e import int8_model
from pfray.task import example_input
from pfray.workflow import finalize
from tests.small import make_task
from tests.userland import Regressor, brightness


def test_the_outputs_of_the_file_are_compared_by_their_own_size(tmp_path, monkeypatch):
    """Outputs of a thousandth: a file that gives nothing but zeros is near them, and wrong."""
    torch.manual_seed(0)
    model, task = Regressor().eval(), brightness()
    with torch.no_grad():
        model.head.weight.mul_(1e-3)
        model.head.bias.mul_(1e-3)
    assert finalize.write_checked(model, task, tmp_path / "right.tflite", 50)["max_abs_diff"] < 1e-5
    silent = copy.deepcopy(model)
    nn.init.zeros_(silent.head.weight)
    nn.init.zeros_(silent.head.bias)
    converted = convert.convert
    monkeypatch.setattr(convert, "convert", lambda _, example: converted(silent, example))
    with pytest.raises(ExportError, match=r"differs from the model by up to 0\.000"):
        finalize.write_checked(model, task, tmp_path / "wrong.tflite", 50)


def test_a_loss_that_is_not_finite_on_the_test_split_is_an_error_and_no_result():
    """As of a model that fails on some inputs only, which no check at load meets."""
    task = brightness()

    class Late(Regressor):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (len(x) < 50)

    with pytest.raises(TrainingFailed, match="the loss on the test split is inf, so no result holds"):
        finalize.measure_test(Late(), task, 0)
    assert finalize.measure_test(Regressor(), task, 7).size_bytes == 7


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x.relu()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.one, self.two = Product(), Product()
        self.steps = nn.Sequential(nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.steps(self.one(self.first(x))))).mean((2, 3))


@pytest.mark.parametrize("slow", [{"BATCH_MATMUL", "HARD_SWISH"}, {"HARD_SWISH"}])
def test_every_operator_that_the_file_computes_in_float_has_a_record_of_its_own(slow, tmp_path, monkeypatch):
    torch.manual_seed(0)
    task = make_task((3, 8, 8))
    model = int8_model.prepare(Mixed().eval(), example_input(task), [task.train.inputs])
    monkeypatch.setattr(float_islands, "SLOW", {getattr(float_islands.CODES, name) for name in slow})
    stored = finalize.write_checked(model, task, tmp_path / "model.tflite", 20)["stored"]
    product = "float" if "BATCH_MATMUL" in slow else "int8"
    assert {name: each["type"] for name, each in stored.items()} == {
        "first": "int8", "one": product, "steps.1": "int8", "two": product, "last": "int8",
        "steps.0": "float", "steps.2": "float",
    }  # fmt: skip
    assert stored["steps.0"]["reason"] == "hard_swish is faster so: its int8 kernel is slow"


def test_products_of_one_module_share_a_record_and_those_of_another_keep_theirs():
    torch.manual_seed(0)
    inputs = torch.randn(20, 3, 8, 8)
    model = int8_model.prepare(Mixed().eval(), inputs[:1], [inputs])
    floats = [InFloat("BATCH_MATMUL", "two"), InFloat("BATCH_MATMUL", "two"), InFloat("SOFTMAX", "two")]
    records = finalize._records(model, {}, floats)
    assert {name: each["type"] for name, each in records.items()} == {
        "first": "int8", "one": "int8", "steps.1": "int8", "two": "float", "last": "int8", "two.softmax": "float",
    }  # fmt: skip
