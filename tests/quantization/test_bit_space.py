"""What both quantization learners share, held against both: knobs and cost by hand, values, bad models and settings."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learners.non_uniform_quant import NonUniformQuant
from learners.uniform_quant import UniformQuant
from pfray.config.registry import parse_settings
from pfray.config.sections import Target
from pfray.errors import ConfigError, InfeasibleTarget, UnsupportedModel, WeightsError
from pfray.measure.cost import stored_bits
from pfray.nn.layers import weight_layers
from pfray.quantization.granularity import bucket_count, run_length
from pfray.space import Plan
from pfray.task import Task
from pfray.workflow.target import resolve_limits
from tests.small import make_task
from tests.zoo import conv, head, randomize

LEARNERS = [UniformQuant, NonUniformQuant]


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task()


@pytest.fixture(params=LEARNERS)
def learner(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model() -> nn.Module:
    """Weights of 8, 24, 12 and 6 elements; the images are 8 by 8."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.ReLU(), head(2, 3)
    ).eval()


def compressed(learner: Any, model: nn.Module, task: Task, plan: Plan, **settings: Any) -> nn.Module:
    return learner(model, task, learner.settings_type(**settings)).compress(plan).model


def outputs(model: nn.Module, task: Task) -> Tensor:
    with torch.inference_mode():
        return model.eval()(task.validation.inputs)


def test_the_knobs_are_the_bits_of_all_layers_but_the_first_and_the_last(learner, model, task):
    space = learner(model, task, learner.settings_type(min_bits=2, max_bits=6)).space()
    assert space.names == ["2", "4"]
    assert [(knob.compressed, knob.full, knob.integer) for knob in space.knobs] == [(2, 6, True)] * 2
    assert [knob.facts for knob in space.knobs] == [
        {"params": 24, "macs": 24 * 64},
        {"params": 12, "macs": 12 * 64},
    ]


def test_the_cost_is_the_mean_of_the_bits_over_the_weights_by_hand(learner, model, task):
    space = learner(model, task).space()
    # (3 * 24 + 6 * 12) / 36, and (8 * 24 + 1 * 12) / 36.
    params = sum(parameter.numel() for parameter in model.parameters())
    # A range for each of 6 and 2 channels, two numbers; or a codebook for each layer, of 2^3 and 2^6.
    described = 4 * {UniformQuant: 8 * 2, NonUniformQuant: 8 + 64}[learner]
    assert space.costs({"2": 3, "4": 6}) == {"bits": 4.0, "size_bytes": 4 * (params - 36) + 36 * 4 / 8 + described}
    assert space.costs({"2": 8, "4": 1})["bits"] == pytest.approx(17 / 3)
    assert space.reachable("bits") == (1.0, 8.0)
    # 4 for both, and what 5 bits a weight leave beside: 36 more bits are 1 for each weight.
    assert space.uniform({"bits": 4}) == {"2": 4, "4": 4}
    assert space.meets(space.uniform({"bits": 4.5}), {"bits": 4.5})
    assert not space.meets({"2": 5, "4": 4}, {"bits": 4.5})


def test_the_ends_are_quantized_where_they_are_asked_for_and_layers_are_skipped_by_name(learner, model, task):
    settings = learner.settings_type
    assert learner(model, task, settings(ends=True)).space().names == ["0", "2", "4", "6.2"]
    assert learner(model, task, settings(ends=True, skip=("2", "6.2"))).space().names == ["0", "4"]
    # Skipping the first does not make the second the first.
    assert learner(model, task, settings(skip=("0",))).space().names == ["2", "4"]
    with pytest.raises(UnsupportedModel, match=r"no layer '7'\. Allowed: 0, 2, 4, 6\.2"):
        learner(model, task, settings(skip=("7",))).space()


def test_a_model_with_nothing_to_quantize_is_refused_and_told_what_helps(learner, model, task):
    short = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), head(4, 3))
    with pytest.raises(UnsupportedModel, match=r"no layer to quantize beside its first and its last.*learner\.ends"):
        learner(short, task).space()
    assert learner(short, task, learner.settings_type(ends=True)).space().names == ["0", "2.2"]
    with pytest.raises(UnsupportedModel, match="no layer to quantize"):
        learner(model, task, learner.settings_type(skip=("2", "4"))).space()


@pytest.mark.parametrize("buckets", ["tensor", "channel", "run"])
@pytest.mark.parametrize("width", range(1, 9))
def test_of_k_bits_a_bucket_has_2_to_the_k_values(learner, width, buckets):
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(4, 3000), nn.ReLU(), nn.Linear(3000, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        # Every bucket has enough weights near every level, and a range of its own.
        for scale, row in enumerate(wide[2].weight, 1):
            row.copy_(torch.linspace(-scale, 0.5 * scale, 3000)[torch.randperm(3000)])
    settings = {"buckets": buckets, "bucket_size": 1500, "min_bits": 1, "max_bits": max(2, width)}
    weight = compressed(learner, wide, make_task((4,)), {"2": width}, **settings)[2].weight.detach()
    count = bucket_count(weight, buckets, 1500)
    assert count == {"tensor": 1, "channel": 5, "run": 10}[buckets]
    parts = weight.flatten().split(run_length(weight.numel(), count))
    counts = [len(part.unique()) for part in parts]
    assert max(counts) == 2**width
    # Of 256 levels, one of the 6 weights near it on average may miss all.
    assert min(counts) == 2**width if width < 7 else min(counts) > 0.98 * 2**width


def test_only_the_plans_layers_change_and_the_bits_of_all_parameters_are_counted(learner, model, task):
    found = compressed(learner, model, task, {"2": 2, "4": 3}, bias_correction=False)
    before, after = model.state_dict(), found.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"2.weight", "4.weight"}
    # Weights of 8 and 6, and biases of 4, 6, 2 and 3 stay float32.
    assert stored_bits(found) == 24 * 2 + 12 * 3 + 32 * (8 + 6 + 4 + 6 + 2 + 3)
    assert stored_bits(model) == 32 * sum(p.numel() for p in model.parameters())


def test_error_curves_are_the_relative_squared_error_of_each_width(learner, model, task):
    curves = learner(model, task, learner.settings_type(min_bits=2, max_bits=5)).error_curves()
    for name, layer in (("2", model[2]), ("4", model[4])):
        assert curves[name].shape == (4,)
        for width, error in zip(range(2, 6), curves[name], strict=True):
            quantized = compressed(learner, model, task, {name: width}).get_submodule(name).weight
            lost = ((quantized - layer.weight).square().sum() / layer.weight.square().sum()).item()
            assert error == pytest.approx(lost, rel=1e-4, abs=1e-9) or error < lost


@pytest.mark.parametrize("width", [0, 33, 9, 2.5])
def test_a_plan_of_a_width_that_is_not_allowed_is_refused(learner, model, task, width):
    with pytest.raises(ConfigError, match=r"2: .* bits are not allowed\. Allowed: whole numbers from 1 to 8\. Remedy"):
        compressed(learner, model, task, {"2": width})


@pytest.mark.parametrize(("given", "message"), [
    ({"min_bits": 0}, "learner.min_bits: 0 is not allowed"),
    ({"max_bits": 33}, "learner.max_bits: 33 is not allowed"),
    ({"activation_bits": 1}, "learner.activation_bits: 1 is not allowed"),
    ({"activation_bits": 33}, "learner.activation_bits: 33 is not allowed"),
    ({"min_bits": 4, "max_bits": 4}, "min_bits is 4 and max_bits is 4; min_bits must be below"),
    ({"bucket_size": 0}, "learner.bucket_size: 0 is not allowed"),
    ({"buckets": "layer"}, "learner.buckets"),
    ({"equalize": True}, "equalize is true and fold is false.*Remedy: fold=true"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(learner, given, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings("learner", learner.settings_type, given)


def test_a_target_below_the_least_bits_is_refused_with_the_range(learner, model, task):
    space = learner(model, task, learner.settings_type(min_bits=3)).space()
    for refuse in (partial(space.uniform, {"bits": 2}), partial(resolve_limits, Target(bits=2), space, model, "own")):
        with pytest.raises(InfeasibleTarget, match=r"target\.bits: 2 is out of reach; .* reach 3 to 8\. Remedy"):
            refuse()


def test_a_float_keeps_a_target_of_32_bits_so_there_is_nothing_to_do(learner, model, task):
    space = learner(model, task).space()
    with pytest.raises(ConfigError, match=r"target\.bits"):
        resolve_limits(Target(bits=32), space, model, "a_learner")
    # Above the most bits and below a float's, all get the most.
    assert space.uniform(resolve_limits(Target(bits=12), space, model, "a_learner")) == {"2": 8, "4": 8}


@pytest.mark.parametrize("buckets", ["tensor", "channel"])
def test_constant_and_all_zero_channels_are_exact_and_the_outputs_stay_finite(learner, model, task, buckets):
    with torch.no_grad():
        model[2].weight.zero_()
        model[4].weight.fill_(-0.3)
    for width in (1, 8):
        found = compressed(learner, model, task, {"2": width, "4": width}, buckets=buckets)
        assert (found[2].weight == 0).all()
        assert torch.allclose(found[4].weight, model[4].weight, rtol=1e-6, atol=0)
        assert outputs(found, task).isfinite().all()
    curves = learner(model, task, learner.settings_type(buckets=buckets)).error_curves()
    assert (curves["2"] == 0).all()
    assert (curves["4"] < 1e-12).all()


def test_some_dead_channels_among_others_stay_dead(learner, model, task):
    with torch.no_grad():
        model[2].weight[[1, 4]] = 0.0
    found = compressed(learner, model, task, {"2": 2}, buckets="channel")
    assert (found[2].weight[[1, 4]] == 0).all()
    assert (found[2].weight[[0, 2, 3, 5]] != 0).any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers_are_refused_by_name(learner, model, task, bad):
    with torch.no_grad():
        model[4].weight[0, 1] = bad
    with pytest.raises(WeightsError, match=r"^4: 1 of 12 weights are NaN or infinite"):
        learner(model, task).error_curves()


class Sometimes(nn.Module):
    """The layer ``rare`` runs for a batch of one only, as the example is and calibration's batches are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare, self.often, self.last = (nn.Conv2d(2, 2, 1) for _ in range(4))

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.first(inputs)
        if len(inputs) == 1:
            found = self.rare(found)
        return self.last(self.often(found)).mean((2, 3))


def test_a_layer_that_calibration_does_not_reach_is_refused_unless_its_inputs_stay_float(learner, task):
    model, settings = Sometimes().eval(), learner.settings_type
    with pytest.raises(UnsupportedModel, match=r"rare does not run on the training inputs.*learner\.skip=\[rare\]"):
        learner(model, task, settings(activation_bits=8)).error_curves()
    learner(model, task, settings()).error_curves()
    learner(model, task, settings(activation_bits=8, skip=("rare",))).error_curves()


@pytest.mark.parametrize("width", [2, 5, 8, None])
def test_what_a_layer_reads_has_at_most_so_many_values(learner, model, task, width):
    found = compressed(learner, model, task, {"2": 4, "4": 4}, activation_bits=width)
    read: dict[str, Tensor] = {}
    for name, layer in weight_layers(found).items():
        # After the layer's own hook, so it sees what the layer sees.
        layer.register_forward_hook(lambda _, inputs, __, name=name: read.__setitem__(name, inputs[0]))
    outputs(found, task)
    counts = {name: len(inputs.unique()) for name, inputs in read.items()}
    if width is None:
        assert counts["2"] > 256
        assert not any("input_quantizer" in name for name, _ in found.named_modules())
        return
    # Half of the levels and more are in use, and the ends read floats.
    assert 2 ** (width - 1) < counts["2"] <= 2**width
    assert 1 < counts["4"] <= 2**width
    assert counts["0"] > 1000


def test_more_bits_of_the_activations_bring_the_outputs_nearer(learner, model, task):
    exact = outputs(model, task)
    settings = {"min_bits": 1, "max_bits": 8}
    gaps = [
        (outputs(compressed(learner, model, task, {"2": 8}, activation_bits=k, **settings), task) - exact).norm().item()
        for k in (2, 4, 8)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.1 * exact.norm()


def test_with_a_range_for_each_channel_folding_changes_no_output_but_by_rounding(task):
    torch.manual_seed(0)
    model = randomize(nn.Sequential(conv(2, 4), conv(4, 8), conv(8, 6), head(6, 3))).eval()
    with torch.no_grad():
        model[1][1].weight[2] *= -1  # a negative scale mirrors the channel's range
    for width in (2, 3, 8):
        plan = {"1.0": width, "2.0": width}
        plain, folded = (compressed(UniformQuant, model, task, plan, fold=fold) for fold in (False, True))
        assert sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) == 3
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        assert torch.allclose(outputs(plain, task), outputs(folded, task), atol=1e-4)
        # Of 8 bits the corrected biases leave less than that.
        assert width == 8 or not torch.allclose(outputs(plain, task), outputs(model, task), atol=1e-4)


def test_a_folded_model_is_quantized_too_and_keeps_its_plan(learner, task):
    torch.manual_seed(0)
    model = randomize(nn.Sequential(conv(2, 4), conv(4, 8), head(8, 3))).eval()
    found = compressed(learner, model, task, {"1.0": 2}, fold=True, buckets="tensor")
    assert len(found.get_submodule("1.0").weight.unique()) <= 4
    assert np.isfinite(outputs(found, task).numpy()).all()


def test_of_layers_that_share_a_weight_all_read_few_bits(learner, task):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)
    layers[3].weight = layers[1].weight
    model = nn.Sequential(*layers, head(4, 3)).eval()
    found = compressed(learner, model, task, {"1": 3}, activation_bits=4)
    assert found[3].weight is found[1].weight
    ranges = [layer.get_submodule("input_quantizer").get_buffer("step").item() for layer in (found[1], found[3])]
    assert ranges[0] != ranges[1]


def test_a_layer_that_shares_a_weight_and_does_not_run_stays_as_it_is(learner, task):
    class Apart(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x)))

    torch.manual_seed(0)
    model = Apart(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), head(4, 3), nn.Conv2d(4, 4, 1)).eval()
    model[3].weight = model[1].weight
    found = compressed(learner, model, task, {"1": 3}, activation_bits=4)
    assert hasattr(found[1], "input_quantizer")
    assert not hasattr(found[3], "input_quantizer")


def test_a_space_can_be_pickled(learner, model, task):
    space = learner(model, task).space()
    assert pickle.loads(pickle.dumps(space)).costs({"2": 3, "4": 6}) == space.costs({"2": 3, "4": 6})
