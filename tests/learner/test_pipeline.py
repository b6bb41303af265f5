"""Pipelines: joint knobs and costs, what may come before what, and a whole run that prunes and then quantizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from learners.channel_pruned import ChannelPruned
from pfray.config.registry import parse_settings
from pfray.config.schema import load
from pfray.data import digits
from pfray.errors import ConfigError
from pfray.learner.pipeline import Pipeline, Settings, split_plan
from pfray.measure.cost import count_params, stored_bits, stored_bytes, total_macs
from pfray.measure.evaluation import measure
from pfray.models.resnet import resnet20
from pfray.models.vgg import vgg11
from pfray.nn.layers import weight_layers
from pfray.reporting.observers import Observers
from pfray.run import run
from pfray.task import Task, example_input
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.workflow.baselines import plans_without_search
from pfray.workflow.setup import load as load_start
from tests.small import described_bytes, make_task

PRUNED = {"name": "channel_pruned", "images": 200, "round_to": 1}
EIGHT = {"name": "litert_quant", "images": 200}
FEW_BITS = {"name": "uniform_quant", "ends": True, "fold": False}


def parsed(*steps: Any) -> Settings:
    return parse_settings("learner", Settings, {"steps": list(steps)})


@pytest.fixture(scope="module")
def settings() -> Settings:
    return parsed(PRUNED, FEW_BITS)


@pytest.fixture(scope="module")
def space(context, settings):
    return Pipeline(context.teacher, context.task, settings).space()


def test_the_knobs_of_all_learners_are_searched_together(context, space, settings):
    alone = [step.bind(context.teacher, context.task).space() for step in settings.steps]
    prefixes = "channel_pruned:", "uniform_quant:"
    assert space.names == [prefix + name for prefix, own in zip(prefixes, alone, strict=True) for name in own.names]
    plan = space.uniform({"macs": 0.5 * space.costs_at(np.ones(len(space)))["macs"], "bits": 4})
    split = split_plan(settings, plan)
    assert [step.name for step, _ in split] == ["channel_pruned", "uniform_quant"]
    assert [list(own) for _, own in split] == [alone[0].names, alone[1].names]
    costs = space.costs(plan)
    assert costs["macs"] == alone[0].costs(split[0][1])["macs"]
    assert costs["bits"] == alone[1].costs(split[1][1])["bits"]


def test_each_limit_moves_only_the_knobs_that_can_keep_it(context, space, settings):
    full = space.costs_at(np.ones(len(space)))
    limits = {"macs": 0.5 * full["macs"], "bits": 4}
    pruned = settings.steps[0].bind(context.teacher, context.task).space()
    for plan in (space.uniform(limits), space.fit_to_target(space.decode(np.full(len(space), 0.9)), limits)):
        assert {v for n, v in plan.items() if n.startswith("uniform_quant:")} == {4}
    # As the pruning alone would be, whatever the bits.
    own = {n.removeprefix("channel_pruned:"): v for n, v in space.uniform(limits).items() if n.startswith("channel")}
    assert own == pruned.uniform({"macs": limits["macs"]})
    loose = space.fit_to_target(space.decode(np.zeros(len(space))), {"macs": full["macs"] - 1, "bits": 2})
    assert space.costs(loose)["macs"] > 0.8 * full["macs"]
    assert space.costs(loose)["bits"] <= 2


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_a_size_is_kept_by_all_knobs_together_and_is_what_is_then_stored(context, space, settings, share):
    params = sum(parameter.numel() for parameter in context.teacher.parameters())
    limits = {"size_bytes": share * 4 * params}
    pipeline = Pipeline(context.teacher, context.task, settings)
    curves = pipeline.error_curves()
    assert set(curves) == set(space.names)
    rng = np.random.default_rng(0)
    plans = [*plans_without_search(space, limits, curves).values()]
    plans += [space.fit_to_target(space.decode(rng.random(len(space))), limits) for _ in range(3)]
    for plan in plans:
        predicted = space.costs(plan)
        assert predicted["size_bytes"] <= limits["size_bytes"]
        model = pipeline.compress(plan).model
        macs = total_macs(model, example_input(context.task))
        found = measure(model, context.task, context.task.validation.head(20), "float32", macs)
        # The ranges of channels that are gone are counted too: two numbers for each.
        described = 8 * sum(len(layer.weight) for layer in weight_layers(context.teacher).values())
        assert described_bytes(model) <= described
        assert found.stored_bits == 8 * (predicted["size_bytes"] - described)
        assert (found.macs, found.params) == (predicted["macs"], predicted["params"])


def test_uniform_switches_eight_bits_on_before_it_prunes(context):
    settings = parsed(PRUNED, EIGHT)
    space = Pipeline(context.teacher, context.task, settings).space()
    params = sum(parameter.numel() for parameter in context.teacher.parameters())
    loose, tight = (space.uniform({"size_bytes": share * 4 * params}) for share in (0.3, 0.1))
    for plan in (loose, tight):
        assert {v for n, v in plan.items() if n.startswith("litert_quant:")} == {8}
    assert {v for n, v in loose.items() if n.startswith("channel_pruned:")} == {1}
    assert max(v for n, v in tight.items() if n.startswith("channel_pruned:")) < 0.8


def test_a_candidate_is_pruned_and_then_quantized(context, space, settings):
    plan = space.uniform({"macs": 0.5 * space.costs_at(np.ones(len(space)))["macs"], "bits": 4})
    (_, pruning), (_, bits) = split_plan(settings, plan)
    model = Pipeline(context.teacher, context.task, settings).compress(plan).model
    alone = ChannelPruned(context.teacher, context.task, settings.steps[0].settings).compress(pruning).model
    for name in bits:
        own, before = model.get_submodule(name).weight, alone.get_submodule(name).weight
        assert own.shape == before.shape
        assert max(channel.unique().numel() for channel in own) <= 2**4  # a bucket each
        assert 0 < (own - before).square().mean() < 0.05 * before.square().mean()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["litert_quant", "channel_pruned"], r"learner: litert_quant cannot come before .*Remedy: .*channel_pruned"),
        (["weight_sparse", "litert_quant"], r"learner: weight_sparse cannot come before"),
        (["distilled", "litert_quant"], r"learner: distilled cannot come before"),
        (["channel_pruned", "channel_pruned"], r"learner: channel_pruned is named twice"),
        (["channel_prund", "litert_quant"], r"learner: unknown name 'channel_prund'.*Did you mean 'channel_pruned'"),
        ([{"name": "channel_pruned", "imags": 2}, "litert_quant"], r"learner\.0\.imags: unknown key.*'images'"),
        (["channel_pruned", {"name": "litert_quant", "images": 0}], r"learner\.1\.images: 0 is not allowed"),
        (["channel_pruned", {**EIGHT, "finetune": {"epoch": 1}}], r"learner\.1\.finetune\.epoch: .*'epochs'"),
        (["channel_pruned", {"name": "litert_quant", "finetune": 3}], r"learner\.1\.finetune: 3 is no mapping"),
        (["channel_pruned"], r"learner\.steps: .*two learners or more"),
        (["channel_pruned", 7], r"learner\.1: 7 is not allowed"),
    ],
)
def test_wrong_pipelines_are_refused(steps, message):
    with pytest.raises(ConfigError, match=message):
        parsed(*steps)


def test_two_learners_of_one_cost_are_refused(context):
    for first, second in (("channel_pruned", "filter_ranked"), ("channel_pruned", "layer_removal")):
        with pytest.raises(ConfigError, match=rf"{first} and {second} both change macs.*layer_removal, channel"):
            Pipeline(context.teacher, context.task, parsed(first, second)).space()


def experiment(folder: Path, teacher_file: Path, **changes: Any) -> Path:
    raw: dict[str, Any] = {
        "name": "pruned_int8", "storage": str(folder), "data": "digits",
        "model": {"name": "lenet", "weights": str(teacher_file)},
        "learner": [PRUNED, {**EIGHT, "finetune": {"epochs": 1, "lr": 0.002}}],
        "target": {"macs": "0.5x", "bits": 8}, "search": {"name": "random", "trials": 2, "baselines": []},
        "finetune": {"epochs": 2, "lr": 0.01, "batch_size": 64}, "export": {"images": 50, "rounds": 3},
        "resources": {"parallel": 1}, **changes,
    }  # fmt: skip
    path = folder / "pruned_int8.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_target_that_leaves_a_learner_nothing_to_do_is_refused(tmp_path, teacher_file):
    path = experiment(tmp_path, teacher_file, target={"macs": "0.5x"})
    with pytest.raises(ConfigError, match=r"nothing asks litert_quant to compress. Remedy: add one of bits, size"):
        load_start(load(path), Observers())


def test_a_run_prunes_trains_quantizes_and_trains(ray_cluster, tmp_path, teacher_file):
    path = experiment(tmp_path, teacher_file)
    folder = run(load(path))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["learner"] == "channel_pruned, litert_quant"
    assert summary["compressed"]["macs"] <= 0.5 * summary["teacher"]["macs"]
    assert summary["compressed"]["accuracy"] > 0.9 * summary["teacher"]["accuracy"]
    assert summary["exported"]["size_bytes"] < 0.3 * summary["exported"]["teacher_size_bytes"]
    # Two epochs of the pruned network, one of the quantized.
    epochs = {
        name: len((folder / "training" / name / "curve.jsonl").read_text().splitlines())
        for name in ("compressed-channel_pruned", "compressed")
    }
    assert epochs == {"compressed-channel_pruned": 2, "compressed": 1}
    # Continued where the second training's result is lost, without the first one's being repeated.
    first = folder / "training" / "compressed-channel_pruned.safetensors"
    written = first.stat().st_mtime_ns
    for name in ("summary.json", "training/compressed.safetensors"):
        (folder / name).unlink()
    again = json.loads((run(load(path), resume=True) / "summary.json").read_text())
    assert again["compressed"]["accuracy"] == pytest.approx(summary["compressed"]["accuracy"], abs=0.02)
    assert again["plan"] == summary["plan"]
    assert first.stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def deep() -> tuple[torch.nn.Module, Task]:
    """A narrow VGG-11 with batch norms, of which six layers can go."""
    torch.manual_seed(0)
    task = digits.build()
    model = vgg11(in_channels=1, width=0.125).eval()
    reestimate_batch_norm(model, task, 250, "float32")
    return model, task


@pytest.mark.parametrize("second", [
    {"name": "litert_quant", "images": 20},
    {"name": "uniform_quant", "ends": True, "images": 20},
    {"name": "non_uniform_quant", "min_bits": 2, "max_bits": 3},
], ids=lambda second: second["name"])  # fmt: skip
def test_layers_are_removed_and_the_others_quantized_and_what_is_left_is_what_was_predicted(deep, second):
    model, task = deep
    settings = parsed({"name": "layer_removal", "images": 100}, second)
    pipeline = Pipeline(model, task, settings)
    space = pipeline.space()
    plan = space.decode(np.zeros(len(space)))
    gone = ["features.4", "features.11", "features.22"]
    plan |= {name: float(name.partition(":")[2] not in gone) for name in plan if name.startswith("layer_removal:")}
    student = pipeline.compress(plan).model
    layers = {name: layer for name, layer in student.named_modules() if hasattr(layer, "weight_bits")}
    assert layers
    assert not layers.keys() & set(gone)
    (step, own), _ = split_plan(settings, plan)
    first = step.bind(model, task).compress(own).model
    weights, bits = [layer.weight.numel() for layer in layers.values()], [int(x.weight_bits) for x in layers.values()]
    expected = stored_bytes(count_params(first)[0], np.array(weights), np.array(bits))
    costs = space.costs(plan)
    # What describes the layers that are gone is counted too.
    quantized = space.parts[1]
    alone = {name: value for name, value in plan.items() if name in quantized.names}
    sizes = np.array([knob.facts["params"] for knob in quantized.knobs])
    plain = stored_bytes(count_params(model)[0], sizes, np.array([*alone.values()]))
    described = quantized.costs(alone)["size_bytes"] - plain
    assert described_bytes(student) <= described or second["name"] == "litert_quant"
    assert costs["size_bytes"] == expected + described
    assert costs["params"] == count_params(first)[0] < count_params(model)[0]
    assert costs["macs"] == total_macs(student, example_input(task)) < total_macs(model, example_input(task))
    with torch.inference_mode():
        assert student.eval()(example_input(task)).isfinite().all()


def test_what_is_left_of_the_layers_is_trained_and_shipped_in_8_bits(deep):
    model, task = deep
    settings = parsed({"name": "layer_removal", "images": 100}, {"name": "litert_quant", "images": 20})
    pipeline = Pipeline(model, task, settings)
    space = pipeline.space()
    plan = space.decode(np.zeros(len(space)))
    (removal, gone), (quantization, bits) = split_plan(settings, plan)
    student = removal.bind(model, task).finish(gone).model
    int8 = quantization.bind(student, task).finish(bits)
    again = quantization.bind(student, task).rebuild(int8.structure)
    again.load_state_dict(int8.model.state_dict())
    found = {name for name, (kind, _) in again.operators().items() if kind == "int8"}
    assert {"features.0", "classifier"} <= found
    assert not found & {name for name, kept in gone.items() if not kept}


def test_a_size_that_eight_bits_reach_removes_no_layer(deep):
    model, task = deep
    space = Pipeline(model, task, parsed("layer_removal", EIGHT)).space()
    params = count_params(model)[0]
    for share in (0.3, 0.1):
        plan = space.uniform({"size_bytes": share * 4 * params})
        assert {v for n, v in plan.items() if n.startswith("litert_quant:")} == {8}
        kept = [v for n, v in plan.items() if n.startswith("layer_removal:")]
        assert (min(kept) == 1) == (share == 0.3)
        assert max(kept) == 1


def test_a_skipped_layer_may_be_taken_out(deep):
    model, task = deep
    left_float = {"name": "litert_quant", "images": 20, "skip": ["features.11", "classifier"]}
    settings = parsed({"name": "layer_removal", "images": 100}, left_float)
    pipeline = Pipeline(model, task, settings)
    space = pipeline.space()
    plan = space.decode(np.zeros(len(space)))
    assert plan["layer_removal:features.11"] == 0
    student = pipeline.compress(plan).model
    assert [n for n, m in student.named_modules() if hasattr(m, "weight_bits")] == ["features.0"]


DEPTH = {"name": "layer_removal", "images": 60}
WIDTH = {"name": "channel_pruned", "images": 60, "round_to": 1}


def residual() -> tuple[torch.nn.Module, Task]:
    torch.manual_seed(0)
    task = make_task((3, 16, 16), 10, 80)
    model = resnet20().eval()
    reestimate_batch_norm(model, task, 80, "float32")
    return model, task


@pytest.mark.parametrize("network", ["resnet20", "vgg11"])
@pytest.mark.parametrize("second", [WIDTH, {**WIDTH, "name": "filter_ranked"}], ids=lambda second: second["name"])
def test_layers_and_channels_that_go_together_cost_what_was_predicted(deep, network, second):
    model, task = deep if network == "vgg11" else residual()
    second = {key: value for key, value in second.items() if key != "images" or second["name"] == "channel_pruned"}
    settings = parsed(DEPTH, second)
    pipeline = Pipeline(model, task, settings)
    space = pipeline.space()
    whole, rng = space.costs_at(np.ones(len(space))), np.random.default_rng(0)
    for share in (0.8, 0.4, 0.15):
        plan = space.fit_to_target(space.decode(rng.random(len(space))), {"macs": share * whole["macs"]})
        costs = space.costs(plan)
        assert costs["macs"] <= share * whole["macs"]
        for student in (pipeline.compress(plan).model, pipeline.rebuild(plan)):
            assert costs["macs"] == total_macs(student, example_input(task))
            assert costs["params"] == count_params(student)[0]
        with torch.inference_mode():
            assert student.eval()(example_input(task)).isfinite().all()


def test_layers_channels_and_bits_meet_one_size_together(deep):
    model, task = deep
    few_bits = {"name": "uniform_quant", "ends": True, "images": 20}
    settings = parsed(DEPTH, WIDTH, few_bits)
    pipeline = Pipeline(model, task, settings)
    space = pipeline.space()
    params = count_params(model)[0]
    rng = np.random.default_rng(0)
    for share in (0.2, 0.05):
        limits = {"size_bytes": share * 4 * params}
        plan = space.fit_to_target(space.decode(rng.random(len(space))), limits)
        student = pipeline.compress(plan).model
        costs = space.costs(plan)
        # The ranges of channels that are gone are counted too: two numbers for each.
        described = 8 * sum(len(layer.weight) for layer in weight_layers(model).values())
        assert costs["size_bytes"] <= limits["size_bytes"]
        assert costs["size_bytes"] == stored_bits(student) / 8 + described
        assert costs["macs"] == total_macs(student, example_input(task))
        assert costs["params"] == count_params(student)[0]


def test_limits_of_the_bits_leave_those_of_layers_and_channels_alone(deep):
    model, task = deep
    space = Pipeline(model, task, parsed(DEPTH, WIDTH, {**EIGHT, "images": 20})).space()
    limits = {"macs": 0.3 * space.costs_at(np.ones(len(space)))["macs"], "bits": 8.0}
    (both, macs), (bits, eight) = space.separate(limits)
    assert (macs, eight) == ({"macs": limits["macs"]}, {"bits": 8.0})
    assert {name.partition(":")[0] for name in both.names} == {"layer_removal", "channel_pruned"}
    assert {name.partition(":")[0] for name in bits.names} == {"litert_quant"}
    plan = space.uniform(limits)
    # Channels alone reach it, so every layer stays.
    assert {v for n, v in plan.items() if n.startswith("layer_removal:")} == {1}
    assert 0.9 * limits["macs"] < space.costs(plan)["macs"] <= limits["macs"]
    assert space.costs(plan)["bits"] == 8


def test_no_plan_without_search_goes_past_the_target_and_allocate_keeps_the_least_error(deep):
    model, task = deep
    pipeline = Pipeline(model, task, parsed(DEPTH, WIDTH))
    space, curves = pipeline.space(), pipeline.error_curves()
    assert {*space.names} <= {*curves}
    limits = {"macs": 0.25 * space.costs_at(np.ones(len(space)))["macs"]}
    plans = plans_without_search(space, limits, curves)
    assert {*plans} == {"allocate", "uniform", "heuristic"}

    def error(plan: dict[str, float]) -> float:
        positions = dict(zip(space.names, space.encode(plan), strict=True))
        lost = [np.interp(p, np.linspace(0, 1, len(curves[n])), curves[n]) for n, p in positions.items()]
        return float(-np.log(np.maximum(1e-6, 1 - np.array(lost))).sum())

    for plan in plans.values():
        assert 0.8 * limits["macs"] < space.costs(plan)["macs"] <= limits["macs"]
        assert plan == space.settled(plan)
    assert error(plans["allocate"]) < min(error(plans["uniform"]), error(plans["heuristic"]))


def test_filters_of_the_removal_are_refused_before_channels(context):
    with pytest.raises(ConfigError, match=r"learner\.layer_removal\.filters: 0\.5 is not allowed.*Remedy: leave"):
        Pipeline(context.teacher, context.task, parsed({**DEPTH, "filters": 0.5}, WIDTH)).space()
