from __future__ import annotations

import copy
import resource
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel, first_line
from pfray.measure import timing
from pfray.measure.cost import count_params, layer_macs, stored_bits, total_macs
from pfray.measure.evaluation import evaluate, measure
from pfray.nn.modes import evaluating
from pfray.task import Split, Task, example_input


class Net(nn.Module):
    """An ordinary, a depthwise, a grouped and a pointwise convolution, then a linear layer with bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            nn.Conv2d(8, 16, 1, groups=2, bias=False),
            nn.Conv2d(16, 4, 1, bias=False),
        )
        self.head = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


EXAMPLE = torch.zeros(1, 3, 8, 8)
BY_HAND = {
    "body.0": 64 * 8 * 3 * 9,
    "body.2": 16 * 8 * 9,
    "body.3": 16 * 16 * 4,
    "body.4": 16 * 4 * 16,
    "head": 64 * 5,
}


def task(count: int = 30) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(inputs, torch.arange(count) % 5)
    return Task("toy", split, split, split, 5)


def test_layer_macs_equal_the_ones_counted_by_hand() -> None:
    counts = layer_macs(Net(), EXAMPLE)
    assert {name: counts[name] for name in BY_HAND} == BY_HAND
    assert counts["body.1"] == 0
    assert counts["body"] == sum(BY_HAND.values()) - BY_HAND["head"]
    assert total_macs(Net(), EXAMPLE) == sum(BY_HAND.values())


def test_every_module_has_its_macs_under_its_own_name() -> None:
    assert set(layer_macs(Net(), EXAMPLE)) == {name for name, _ in Net().named_modules() if name}


def test_counting_leaves_the_model_as_it_was() -> None:
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    layer_macs(model, EXAMPLE)
    total_macs(model, EXAMPLE)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_fails_on_the_input_is_unsupported_and_the_shape_is_named() -> None:
    with pytest.raises(UnsupportedModel, match=r"Net fails on an input of shape \(1, 3, 16, 16\): .*Remedy") as caught:
        layer_macs(Net(), torch.zeros(1, 3, 16, 16))
    assert "\n" not in str(caught.value)


def test_evaluating_restores_every_modules_own_mode_even_after_an_error() -> None:
    model = Net().train()
    model.body[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled()


def test_count_params_tells_zeros_apart() -> None:
    model = nn.Linear(4, 3)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    model.weight.data[0] = 0
    assert count_params(model) == (15, 8)


def test_evaluate_is_the_mean_over_all_samples_whatever_the_batch_size() -> None:
    toy, model = task(), Net().eval()
    with torch.no_grad():
        outputs = model(toy.normalize(toy.test.inputs))
    accuracy = (outputs.argmax(1) == toy.test.targets).float().mean().item()
    loss = F.cross_entropy(outputs, toy.test.targets).item()
    for batch_size in (30, 7, 1):
        found = evaluate(model, toy, toy.test, batch_size)
        assert (found.accuracy, found.loss) == (pytest.approx(accuracy), pytest.approx(loss, rel=1e-4))


def test_bf16_changes_the_loss_only_slightly() -> None:
    toy, model = task(), Net()
    exact, rough = (evaluate(model, toy, toy.test, precision=p).loss for p in ("float32", "bf16"))
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.02)


def test_measure_gathers_accuracy_params_and_macs() -> None:
    toy, model = task(), Net()
    model.head.weight.data.zero_()
    result = measure(model, toy, toy.test)
    params, nonzero = count_params(model)
    assert (result.params, result.nonzero_params, result.macs) == (params, nonzero, sum(BY_HAND.values()))
    assert params - nonzero >= 320
    assert result.accuracy == pytest.approx(0.2)
    assert measure(model, toy, toy.test, macs=7).macs == 7
    assert result.to_dict()["latency_ms"] is None


def test_example_input_is_one_normalized_training_input() -> None:
    toy = task()
    assert torch.equal(example_input(toy), toy.normalize(toy.train.inputs[:1]))


def test_first_line_of_an_error_is_its_text_or_its_type() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


class Passing(nn.Module):
    """A model whose passes take ``seconds`` of a clock that is only said to go on; every few of them is interrupted."""

    def __init__(self, clock: dict[str, float], seconds: float, every: int) -> None:
        super().__init__()
        self.clock, self.seconds, self.every, self.passes = clock, seconds, every, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.clock["now"] += self.seconds
        if self.every and self.passes % self.every:
            self.clock["now"] += 1.0
            self.clock["interruptions"] += 1
        return x


@pytest.mark.parametrize(("every", "expected"), [(0, 2.0), (2, 2.0), (3, 2.0), (10, 1002.0)])
def test_passes_that_were_interrupted_count_only_where_most_were(monkeypatch, every, expected):
    clock = {"now": 0.0, "interruptions": 0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_nivcsw=clock["interruptions"]))
    models = [Passing(clock, 0.001, 0), Passing(clock, 0.002, every)]
    assert timing.latencies_ms(models, torch.zeros(1)) == pytest.approx([1.0, expected])


def test_counting_makes_lazy_layers_that_can_learn() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    assert sum(layer_macs(model, torch.rand(1, 2, 5, 5)).values()) == 9 * 9 * 2 * 4 + 36 * 2
    assert total_macs(model, torch.rand(1, 2, 5, 5)) == 9 * 9 * 2 * 4 + 36 * 2
    model(torch.rand(3, 2, 5, 5)).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_weights_that_are_computed_are_counted() -> None:
    model, example = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 1))), torch.rand(1, 2, 5, 5)
    assert total_macs(model, example) == sum(layer_macs(model, example).values()) == 8 * 25


def test_bits_of_a_shared_weight_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert stored_bits(model) == 16 * 32
    model[0].register_buffer("weight_bits", torch.tensor(3, dtype=torch.uint8))
    assert stored_bits(model) == 16 * 3


def test_a_users_own_evaluation_sees_the_evaluation_mode_and_restores_the_other() -> None:
    model = Net().train()
    modes: list[bool] = []

    def own(given: nn.Module) -> float:
        modes.append(given.training)
        return 0.25

    found = evaluate(model, replace(task(), evaluate=own), task().test)
    assert (found.accuracy, found.accuracy_error, modes, model.training) == (0.25, None, [False], True)
