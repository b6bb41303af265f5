"""When a file passes for its model: by its outputs, each by its own size, and by the task's score."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pfray.errors import ExportError
from pfray.export.tflite import convert
from pfray.quantization.pt2e import int8_model
from pfray.task import Split, Task
from pfray.workflow import file_check, finalize
from pfray.workflow.file_check import distances


def deep(depth: int = 24) -> nn.Sequential:
    """Layers one after the other, whose roundings add up."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.eval()


def task_of(model: nn.Module, samples: int = 60) -> Task:
    inputs = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        split = Split(inputs, model(inputs).argmax(1))
    return Task("deep", split, split, split, 4)


def test_a_distance_is_a_share_of_the_outputs_spread():
    expected = torch.tensor([[0.0, 4.0], [4.0, 0.0]])  # a standard deviation of 2
    assert distances(expected + 0.5, expected) == [0.25]
    assert distances((expected, expected.long() + 1), (expected, expected.long())) == [0.0, 1.0]
    # The same everywhere: a share of its size.
    assert distances(torch.full((3, 1), 2.02), torch.full((3, 1), 2.0)) == [pytest.approx(1.0, rel=1e-3)]
    assert not distances(torch.full((2, 1), torch.nan), torch.ones(2, 1))[0] <= 1


def test_a_deep_int8_network_is_not_refused_for_one_large_difference(tmp_path, monkeypatch):
    """Outputs of one sample are far off, as after a value on the edge between two steps."""
    model = deep()
    task = task_of(model)
    prepared = int8_model.prepare(model, task.test.inputs, [task.test.inputs])
    found = finalize.write_checked(prepared, task, tmp_path / "model.tflite", None)
    assert 0 < found["distance"] < 0.2
    assert found["rounding"] > 0
    compare = convert.compare

    def changed(amount: float, samples: slice):
        def compared(*arguments):
            result = compare(*arguments)
            file = result.file.clone()
            file[samples] += amount * result.model.std()
            return convert.Compared(file, result.model)

        return compared

    monkeypatch.setattr(convert, "compare", changed(1.0, slice(0, 1)))
    one = finalize.write_checked(prepared, task, tmp_path / "model.tflite", None)
    assert one["max_abs_diff"] > 0.2 * float(model(task.test.inputs).detach().abs().max())
    monkeypatch.setattr(convert, "compare", changed(1.0, slice(None)))
    with pytest.raises(
        ExportError, match=r"differs from the model: is 1(\.\d)? of its spread away on average, at most 0"
    ):
        finalize.write_checked(prepared, task, tmp_path / "model.tflite", None)


def test_a_file_that_scores_otherwise_is_refused_if_chance_does_not_explain_it(tmp_path):
    own = Task("own", *[Split(torch.zeros(400, 1), torch.arange(400) % 2)] * 3, 2)
    model = torch.eye(2)[own.test.targets]

    def scores(wrong: int, right: int, rounds: bool):
        file, torch_outputs = model.clone(), model.clone()
        file[:wrong] = 1 - file[:wrong]
        torch_outputs[wrong : wrong + right] = 1 - torch_outputs[wrong : wrong + right]
        compared = convert.Compared(file, torch_outputs)
        return file_check._check_scores(tmp_path / "x.tflite", own, own.test, compared, rounds)

    assert scores(3, 0, rounds=False) == (0.9925, 1.0)
    with pytest.raises(ExportError, match=r"accuracy 0\.9850, the model 1\.0000 on the same 400"):
        scores(6, 0, rounds=False)
    assert scores(6, 0, rounds=True)[0] == 0.985
    # Twelve to the worse: more than 2 standard errors, 0.017, of such changes. With nine to the better it is chance.
    with pytest.raises(ExportError):
        scores(12, 0, rounds=True)
    assert scores(12, 9, rounds=True) == (0.97, 0.9775)


def test_every_output_has_its_own_tolerance(tmp_path, monkeypatch):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.large, self.small = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 1000 * self.large(x), self.small(x)

    inputs = torch.randn(40, 4)
    split = Split(inputs, torch.zeros(40, dtype=torch.int64))
    task = Task("two", split, split, split, 3, loss=lambda o, t: o[0].sum(), score=lambda o, t: o[1][:, 0])
    model = Two().eval()
    assert finalize.write_checked(model, task, tmp_path / "model.tflite", None)["distance"] < 1e-5
    wrong, converted = copy.deepcopy(model), convert.convert
    nn.init.zeros_(wrong.small.weight)
    monkeypatch.setattr(convert, "convert", lambda _, example: converted(wrong, example))
    with pytest.raises(ExportError, match=r"differs from the model by up to \S+ in output 2 of 2 on 40 test images"):
        finalize.write_checked(model, task, tmp_path / "model.tflite", None)
    monkeypatch.setattr(convert, "convert", converted)
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert finalize.write_checked(prepared, task, tmp_path / "model.tflite", None)["distance"] < 0.02
