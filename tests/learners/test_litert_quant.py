"""8 bits for LiteRT: the knobs, the fast candidate, and a whole run to an int8 file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from learners.litert_quant import LitertQuant, Settings
from pfray.config.schema import load
from pfray.errors import UnsupportedModel
from pfray.learner.base import Compressed
from pfray.learner.context import Context
from pfray.measure import calibration
from pfray.measure.evaluation import evaluate
from pfray.nn.modes import place
from pfray.quantization.bn_folding import folded
from pfray.quantization.pt2e import int8_model
from pfray.run import run
from tests.zoo import randomize

SETTINGS = Settings(images=200)


@pytest.fixture(scope="module")
def algorithm(context: Context) -> LitertQuant:
    return LitertQuant(place(copy.deepcopy(context.teacher), "cpu"), context.task, SETTINGS)


@pytest.fixture(scope="module")
def finished(algorithm: LitertQuant) -> Compressed:
    return algorithm.finish(algorithm.space().uniform({"bits": 8}))


def test_every_layer_has_8_bits_or_stays_float(algorithm):
    space = algorithm.space()
    eight = space.uniform({"bits": 8})
    assert set(eight.values()) == {8}
    params = sum(parameter.numel() for parameter in algorithm.model.parameters())
    weights = sum(knob.facts["params"] for knob in space.knobs)
    assert space.costs(eight) == {"bits": 8, "size_bytes": 4 * (params - weights) + weights}
    first = space.names[0]
    sizes = {knob.name: knob.facts["params"] for knob in space.knobs}
    share = sizes[first] / sum(sizes.values())
    assert space.costs({**eight, first: 32})["bits"] == pytest.approx(8 + 24 * share)
    curves = algorithm.error_curves()
    assert all(0 < curve[0] < 1e-3 and curve[1] == 0 for curve in curves.values())


def test_a_network_that_costs_much_is_calibrated_on_fewer_images_and_says_so(algorithm, monkeypatch):
    model, task = algorithm.model, algorithm.task
    default = LitertQuant(model, task)
    assert (default.images, default.notes()) == (1000, [])
    assert algorithm.images == 200
    monkeypatch.setattr(calibration, "MACS", 100.4 * default.macs)
    costly = LitertQuant(model, task)
    assert costly.images == 100
    assert "litert_quant calibrates on 100 training inputs instead of 1,000" in costly.notes()[0]
    assert costly.inputs == LitertQuant(model, task, Settings(images=100)).inputs != default.inputs


def test_skipped_layers_have_no_knob_and_wrong_names_are_refused(algorithm):
    model, task, names = algorithm.model, algorithm.task, algorithm.space().names
    assert LitertQuant(model, task, Settings(skip=(names[0],))).space().names == names[1:]
    with pytest.raises(UnsupportedModel, match=rf"no layer 'con'. Allowed: {names[0]}"):
        LitertQuant(model, task, Settings(skip=("con",))).space()
    with pytest.raises(UnsupportedModel, match=r"no layer to quantize.*Remedy"):
        LitertQuant(model, task, Settings(skip=tuple(names))).space()


def test_a_candidate_loses_what_the_graph_loses(algorithm, finished):
    candidate = algorithm.compress(algorithm.space().uniform({"bits": 8})).model
    teacher, task, graph = algorithm.model, algorithm.task, finished.model
    inputs = task.normalize(task.validation.inputs)
    with torch.no_grad():
        float_, fast, exact = (each.eval()(inputs) for each in (teacher, candidate, graph))
    largest = float_.abs().max()
    assert 0 < (fast - float_).abs().mean() / largest < 0.01
    assert 0 < (exact - float_).abs().mean() / largest < 0.01
    accuracies = [evaluate(each, task, task.validation).accuracy for each in (teacher, candidate, graph)]
    assert max(accuracies) - min(accuracies) < 0.01


def test_the_structure_takes_the_state_of_what_was_finished(algorithm, finished):
    other = algorithm.rebuild(finished.structure)
    other.load_state_dict(finished.model.state_dict())
    inputs = algorithm.task.normalize(algorithm.task.validation.inputs[:50])
    with torch.no_grad():
        assert torch.equal(other(inputs), finished.model(inputs))


def test_the_graph_trains_as_the_network_did_in_front_of_its_norms(context):
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)))
    task = context.task
    inputs, targets = task.normalize(task.train.inputs[:20]), task.train.targets[:20]
    model.eval()(inputs)
    algorithm = LitertQuant(model, task, SETTINGS)
    trained = algorithm.finish(algorithm.space().uniform({"bits": 8})).model
    plain = int8_model.prepare(folded(model, {"0": "1"}), inputs[:1], [task.normalize(task.train.inputs[:200])])
    plain.load_state_dict(trained.state_dict())
    for each in (trained, plain):
        nn.functional.cross_entropy(each(inputs), targets).backward()
    own, other = ({name: p.grad for name, p in each.named_parameters()} for each in (trained, plain))
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    expected = other["graph.0.weight"] * scale.detach().square().view(-1, 1, 1, 1)
    assert torch.allclose(own["graph.0.weight"], expected, rtol=1e-4)
    assert torch.equal(own["graph.4.weight"], other["graph.4.weight"])


def test_a_run_trains_with_the_rounding_and_ships_an_int8_file(ray_cluster, teacher_file, tmp_path: Path):
    raw = {
        "name": "int8", "storage": str(tmp_path), "data": "digits",
        "model": {"name": "lenet", "weights": str(teacher_file)},
        "learner": {"name": "litert_quant", "images": 200}, "target": {"bits": 8},
        "search": {"name": "uniform", "trials": 1, "baselines": []},
        "finetune": {"epochs": 1, "lr": 0.002, "batch_size": 64}, "export": {"images": 100, "rounds": 3},
    }  # fmt: skip
    path = tmp_path / "int8.yaml"
    path.write_text(yaml.safe_dump(raw))
    folder = run(load(path))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["compressed"]["accuracy"] > summary["teacher"]["accuracy"] - 0.02
    exported = summary["exported"]
    assert exported["size_bytes"] < 0.35 * exported["teacher_size_bytes"]
    assert summary["compressed"]["size_bytes"] < 0.35 * summary["teacher"]["size_bytes"]
    assert abs(exported["accuracy"] - exported["torch_accuracy"]) <= 0.01
