"""Every wiring under random plans: what is left runs, costs what was predicted, and can be exported and run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pfray.export.tflite import convert
from pfray.nn.inputs import tensors
from pfray.pruning.channels import dependency
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.channels.prune import prune
from tests.zoo import ZOO, Example
from tests.zoo.pruning import built, check_plan, draw, outputs

RUNNING = [name for name in ZOO if name not in ("NoTensor", "wrong_input")]


@pytest.mark.parametrize("name", RUNNING)
def test_pruning_any_units_gives_the_outputs_of_masking_them_and_the_predicted_costs(name):
    model, inputs, graph = built(name)
    before = outputs(model, inputs)
    for seed in range(4):
        check_plan(model, inputs, graph, draw(graph, seed))
    least = {group.name: [group.units - 1] for group in graph.groups}
    pruned = check_plan(model, inputs, graph, least)
    if graph.groups:
        assert graph.costs([1] * len(graph.groups))["params"] < graph.costs(graph.units)["params"]
        after = outputs(pruned, inputs)
        assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))
    if name != "Branching":  # which torch cannot export, pruned or not
        program = torch.export.export(pruned, inputs).module()
        for one, other in zip(outputs(program, inputs), outputs(pruned, inputs), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["Plain", "resnet_20", "inverted_residual", "densenet", "UNet", "Gate", "conv_1d"])
def test_a_pruned_model_has_a_graph_again(name):
    model, inputs, graph = built(name)
    pruned = copy.deepcopy(model)
    kept = {group.name: list(range(0, group.units, 2)) if group.units > 3 else [0, 1] for group in graph.groups}
    prune(pruned, graph, kept)
    again = channel_graph(pruned, inputs)
    assert [(group.name, group.units) for group in again.groups] == [(n, len(units)) for n, units in kept.items()]
    assert again.costs(again.units) == graph.costs([len(units) for units in kept.values()])
    check_plan(pruned, inputs, again, draw(again, 0))


@pytest.mark.parametrize("name", ["Plain", "resnet_20", "inception", "densenet", "UNet", "Gate", "TwoInputs"])
def test_what_the_tracing_gets_wrong_is_left_whole(name, monkeypatch):
    def guess(graph, source, node, slot, positions, width):
        return positions, positions, width  # as if channels never moved

    monkeypatch.setattr(dependency, "move_channels", guess)
    model, inputs = ZOO[name]()
    graph = channel_graph(model, inputs)
    assert len(graph.groups) < len(built(name)[2].groups)
    for seed in range(3):
        check_plan(model, inputs, graph, draw(graph, seed))


class Flat(nn.Module):
    """All inputs of a model in the columns of one, and all its outputs likewise: a .tflite is run with one of each."""

    def __init__(self, model: nn.Module, inputs: Example) -> None:
        super().__init__()
        self.model, self.shapes = model, [x.shape[1:] for x in inputs]

    def forward(self, x: Tensor) -> Tensor:
        inputs, start = [], 0
        for shape in self.shapes:  # litert-torch cannot convert a split into a single part
            inputs.append(x[:, start : start + shape.numel()].unflatten(1, shape))
            start += shape.numel()
        return torch.cat([output.flatten(1) for output in tensors(self.model(*inputs))], 1)


# One for each wiring: option-A and projection shortcuts, depthwise and grouped convolutions, concatenation of two
# kinds, a gate, transposed convolutions, a shared head with several outputs, several inputs and a flatten, attention.
EXPORTED = [
    "resnet_8", "projection_resnet", "inverted_residual", "resnext", "inception", "densenet", "SqueezeExcite", "UNet",
    "FeaturePyramid", "TwoInputs", "vision_transformer",
]  # fmt: skip


@pytest.mark.parametrize("name", EXPORTED)
def test_a_pruned_model_is_exported_to_tflite_and_runs(name, tmp_path: Path):
    model, inputs, graph = built(name)
    pruned = copy.deepcopy(model)
    prune(pruned, graph, draw(graph, 1))
    flat, path = Flat(pruned, inputs).eval(), tmp_path / "pruned.tflite"
    samples = torch.randn(3, sum(x.numel() for x in inputs), generator=torch.Generator().manual_seed(1))
    convert.export(flat, samples, path)
    compared = convert.compare(path, flat, samples)
    found, difference = compared.file, compared.largest_difference
    assert difference < 1e-5 * max(1.0, float(found.abs().max()))
    # And that is little beside what the inputs make of the outputs.
    assert difference < 0.01 * float(found.std(0).max())
