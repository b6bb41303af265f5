"""A .tflite that does something else than its model is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pfray.errors import ExportError, TrainingFailed
from pfray.export.tflite import convert
from pfray.workflow import finalize
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
