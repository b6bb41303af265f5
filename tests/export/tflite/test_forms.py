"""Files of models whose inputs and outputs have other forms than one tensor: converted, executed, timed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pfray import bench, load
from pfray.export import pt2
from pfray.export.tflite import convert
from pfray.measure import interpreter
from pfray.measure.interpreter import BenchError
from pfray.nn.flat import plain
from pfray.nn.inputs import call, take, tensors
from pfray.quantization.pt2e import int8_model
from pfray.workflow import file_check
from tests.forms import FORMS, Text, form, images, tokens


@pytest.mark.parametrize("name", FORMS)
def test_files_take_and_give_what_the_model_does(name, tmp_path):
    model, inputs, given, made = form(name)
    pt2.save(model, take(inputs, slice(0, 1)), tmp_path / "model.pt2")
    outputs, expected = call(load(tmp_path / "model.pt2"), inputs), call(model, inputs)
    assert torch.equal(torch.cat(tensors(outputs), 1), torch.cat(tensors(expected), 1))
    assert type(outputs) is type(plain(expected))
    path = tmp_path / "model.tflite"
    convert.export(model, inputs, path)
    compared = convert.compare(path, model, inputs)
    assert type(compared.file) is type(expected)
    assert compared.largest_difference < 1e-5
    signature = interpreter.open_interpreter(path).get_signature_list()["serving_default"]
    # The interpreter sorts the names.
    assert [signature["inputs"], signature["outputs"]] == [sorted(given), sorted(made)]
    example = convert.arrays(take(inputs, slice(0, 1)))
    assert bench.latency_ms([path], rounds=1, example=example)[0] > 0
    assert bench.latency_ms([path], rounds=1)[0] > 0


@pytest.mark.parametrize("name", ["named inputs", "an input of none", "a dataclass", "tokens"])
def test_int8_files_too(name, tmp_path):
    model, inputs, *_ = form(name)
    prepared = int8_model.prepare(model, take(inputs, slice(0, 1)), [inputs])
    convert.export(prepared, inputs, tmp_path / "model.tflite")
    compared = convert.compare(tmp_path / "model.tflite", prepared, inputs)
    assert type(compared.file) is type(call(model, inputs))
    assert compared.largest_difference < 0.02
    pt2.save(prepared, inputs, tmp_path / "model.pt2")
    outputs = tensors(call(load(tmp_path / "model.pt2"), inputs))
    assert all((own - other).abs().max() < 0.02 for own, other in zip(outputs, tensors(compared.model), strict=True))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_on_tokens(kind, tmp_path):
    model = Text(kind).eval()
    convert.export(model, tokens(), tmp_path / "model.tflite")
    assert convert.compare(tmp_path / "model.tflite", model, tokens()).largest_difference < 1e-5
    pt2.save(model, tokens()[:1], tmp_path / "model.pt2")
    assert torch.allclose(load(tmp_path / "model.pt2")(tokens()), model(tokens()), atol=1e-6)


def test_wrong_inputs_are_one_line(tmp_path):
    model, inputs, *_ = form("two inputs")
    convert.export(model, inputs, tmp_path / "model.tflite")
    with pytest.raises(BenchError, match=r"takes 2 inputs, not 1\. Remedy: one array for each"):
        interpreter.predict(tmp_path / "model.tflite", images().numpy())
    with pytest.raises(BenchError, match=r"takes inputs of shape \(1, 3, 8, 8\), not \(1, 3, 4, 4\)"):
        bench.latency_ms([tmp_path / "model.tflite"], example=[images()[:1, :, :4, :4].numpy()] * 2)


class OfList(nn.Module):
    def __init__(self, stacked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stacked, self.layer = stacked, nn.Conv2d(3, 2, 3)

    def forward(self, samples: list[torch.Tensor]) -> torch.Tensor | list[dict[str, torch.Tensor]]:
        if self.stacked:
            return self.layer(torch.stack(samples)).mean((2, 3))
        return [{"mean": self.layer(sample[None]).mean((0, 2, 3))} for sample in samples]


@pytest.mark.parametrize("stacked", [True, False])
def test_a_list_of_samples_is_compared_sample_by_sample(stacked, tmp_path):
    model, samples, path = OfList(stacked).eval(), list(images()), tmp_path / "model.tflite"
    convert.export(model, samples[:1], path)
    compared = convert.compare(path, model, samples)
    assert [tuple(each.shape) for each in tensors(compared.file)] == ([(6, 2)] if stacked else [(2,)] * 6)
    assert type(compared.file) is type(model(samples))
    assert compared.largest_difference < 1e-5


class ClassToken(nn.Module):
    """A token a hundred times smaller than what it stands beside, which a norm makes as large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm, self.linear = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32), nn.Linear(32, 10)
        self.token = nn.Parameter(0.005 * torch.randn(1, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.convolution(x).flatten(2).transpose(1, 2)
        return self.linear(self.norm(torch.cat([self.token.expand(len(x), -1, -1), patches], 1))[:, 0])


def test_a_small_class_token_is_not_rounded_in_the_scale_of_the_patches(tmp_path):
    model = ClassToken().eval()
    inputs = torch.randn(4, 3, 16, 16)
    prepared = int8_model.prepare(model, inputs[:1], [inputs])
    convert.export(prepared, inputs[:1], tmp_path / "model.tflite")
    compared = convert.compare(tmp_path / "model.tflite", prepared, inputs)
    # 0.7 where the token is rounded to one of three values.
    assert file_check.distances(compared.file, compared.model)[0] < 0.05
