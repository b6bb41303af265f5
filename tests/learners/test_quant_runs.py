"""A whole run of each quantization learner through Ray: what is measured, stored, exported and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import pfray
from pfray.config.schema import load
from pfray.data import digits
from pfray.models.lenet import lenet
from pfray.nn.layers import weight_layers
from pfray.nn.modes import place
from pfray.quantization.granularity import run_length
from pfray.quantization.qparams import PARTS, qparams_of
from pfray.run import run

LEARNERS = {
    "uniform_quant": {"name": "uniform_quant", "activation_bits": 8, "images": 200},
    "non_uniform_quant": {"name": "non_uniform_quant"},
}
# conv2, fc1 and fc2; conv1 and fc3 stay float.
SIZES = {"conv2": 16 * 6 * 25, "fc1": 400 * 120, "fc2": 120 * 84}


@pytest.fixture(scope="module", params=LEARNERS)
def folder(
    request: pytest.FixtureRequest, ray_cluster: None, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    storage = tmp_path_factory.mktemp(request.param)
    raw: dict[str, Any] = {
        "name": "quantized", "storage": str(storage), "data": "digits",
        "model": {"name": "lenet", "weights": str(teacher_file)},
        "learner": LEARNERS[request.param], "target": {"bits": 4},
        "search": {"name": "random", "trials": 2, "baselines": []},
        "finetune": {"epochs": 1, "lr": 0.01, "batch_size": 64}, "export": {"images": 50, "rounds": 3},
        "resources": {"parallel": 1},
    }  # fmt: skip
    path = storage / "quantized.yaml"
    path.write_text(yaml.safe_dump(raw))
    return run(load(path))


@pytest.fixture
def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_plan_keeps_the_bits_and_the_shipped_weights_have_them(folder, summary):
    plan, state = summary["plan"], pfray.load(folder / "model.packed")
    assert set(plan) == set(SIZES)
    mean = sum(plan[name] * size for name, size in SIZES.items()) / sum(SIZES.values())
    assert mean <= 4
    floats = sum(p.numel() for p in lenet(in_channels=1).parameters()) - sum(SIZES.values())
    assert summary["compressed"]["stored_bits"] == mean * sum(SIZES.values()) + 32 * floats
    assert summary["teacher"]["stored_bits"] == 32 * (floats + sum(SIZES.values()))
    for name, bits in plan.items():
        qparams, weight = qparams_of(state, f"{name}.weight"), state[f"{name}.weight"]
        assert qparams is not None
        assert qparams.bits == bits
        assert torch.equal(qparams.quantize(weight), weight)
        buckets = len(qparams.low if qparams.codebook is None else qparams.codebook)
        parts = weight.flatten().split(run_length(weight.numel(), buckets))
        assert max(len(part.unique()) for part in parts) <= 2**bits
        assert len(parts) == (1 if qparams.codebook is not None else len(weight))


def test_the_file_is_as_small_as_the_bits_say_and_nothing_is_lost_but_a_little_accuracy(folder, summary):
    small, teacher = summary["compressed"], summary["teacher"]
    assert small["size_bytes"] == (folder / "model.packed").stat().st_size < 0.25 * teacher["size_bytes"]
    assert small["size_bytes"] < 0.4 * teacher["size_bytes"]
    assert small["accuracy"] > teacher["accuracy"] - 0.03 > 0.85


def test_the_packed_file_is_the_trained_state_bit_for_bit_and_the_program_does_the_same(folder):
    from safetensors.torch import load_file

    state = pfray.load(folder / "model.packed")
    trained = load_file(folder / "training" / "compressed.safetensors")
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], trained[name]) for name in state)
    assert (folder / "model.packed").stat().st_size < 0.3 * sum(v.nbytes for v in trained.values())
    program, inputs = pfray.load(folder / "model.pt2"), digits.build().test.inputs[:20]
    exact = digits.build().normalize(inputs)
    if any("input_quantizer" in name for name in state):
        from pfray.quantization import activations

        model = place(lenet(in_channels=1), "cpu").eval()
        for name in SIZES:
            prefix = f"{name}.input_quantizer"
            activations.attach(model, name, state[f"{prefix}.low"], state[f"{prefix}.step"], 8)
    else:
        model = place(lenet(in_channels=1), "cpu").eval()
    model.load_state_dict(without_qparams(state, model))
    with torch.no_grad():
        assert torch.allclose(program(exact), model(exact), atol=1e-4)


def test_the_tflite_is_as_much_smaller_was_run_and_agrees(summary):
    exported = summary["exported"]
    assert {exported["stored"][name]["type"] for name in SIZES} <= {"int8", "int4"}
    assert exported["size_bytes"] < 0.35 * exported["teacher_size_bytes"]
    assert exported["accuracy"] == pytest.approx(exported["torch_accuracy"], abs=0.03)
    assert exported["accuracy"] > 0.8


def without_qparams(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    described = {f"{name}.weight_{part}" for name in weight_layers(model) for part in PARTS}
    return {name: value for name, value in state.items() if name not in described}
