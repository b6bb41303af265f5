"""A run trains a network pruned by something else as it is."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from benchmarks.pruned_elsewhere import PrunedElsewhere, Settings
from benchmarks.torch_pruning_resnet import prune
from pfray.measure.cost import count_params, total_macs
from pfray.models.resnet import CifarResNet
from tests.small import equal, make_task
from tests.zoo import randomize


def test_the_network_is_the_one_of_the_file_and_its_costs_are_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize(CifarResNet(8, in_channels=2)).eval()
    pruned, example = copy.deepcopy(model), torch.randn(4, 2, 8, 8)
    prune(pruned, example[:1], 2.0)
    torch.save(pruned.state_dict(), tmp_path / "pruned.pt")
    algorithm = PrunedElsewhere(model, make_task(), Settings(tmp_path / "pruned.pt"))
    made = algorithm.compress({}).model
    assert equal(made.state_dict(), pruned.state_dict())
    assert torch.equal(made(example), pruned(example))
    sizes = [(m.in_channels, m.out_channels) for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    assert sizes == [(m.in_channels, m.out_channels) for m in made.modules() if isinstance(m, nn.Conv2d)]
    params = count_params(pruned)[0]
    costs = {"macs": total_macs(pruned, example[:1]), "params": params, "size_bytes": 4 * params}
    assert algorithm.space().costs({}) == costs
    assert algorithm.space().uniform({"macs": costs["macs"]}) == {}
    assert count_params(model)[0] > params
