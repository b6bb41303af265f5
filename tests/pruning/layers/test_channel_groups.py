"""Channel groups and costs of networks without some of their layers, against those of the networks themselves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfray.measure.cost import count_params, stored_bytes, total_macs
from pfray.models.mobilenet import mobilenet_v1
from pfray.models.resnet import resnet20, resnet56
from pfray.models.vgg import vgg11
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.channels.prune import prune
from pfray.pruning.layers.channel_groups import GroupsOfLayers, JointCosts, predictable
from pfray.pruning.layers.find import layer_graph
from pfray.pruning.layers.graph import remove_layers
from tests.zoo import conv, head

EXAMPLE = torch.zeros(1, 3, 32, 32)


def joined(model: nn.Module, example: Tensor = EXAMPLE) -> GroupsOfLayers:
    return GroupsOfLayers(layer_graph(model, example), channel_graph(model, example))


def joint_costs(joint: GroupsOfLayers) -> JointCosts:
    return JointCosts(joint, tuple(joint.found.names), tuple(group.name for group in joint.graph.groups))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20, "resnet56": resnet56, "vgg11": lambda: vgg11(width=0.125),
    "mobilenet_v1": lambda: mobilenet_v1(width=0.25),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cost_of_a_random_plan_is_that_of_the_network_it_gives(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    joint = joined(model)
    costs_of, groups = joint_costs(joint), joint.graph.groups
    rng = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        kept = rng.random(len(costs_of.names)) > share
        counts = [int(rng.integers(1, group.units + 1)) for group in groups]
        values = np.array([*kept, *(n / group.units for n, group in zip(counts, groups, strict=True))], dtype=float)
        gone = [layer for layer, stays in zip(costs_of.names, kept, strict=True) if not stays]
        left = joint.without(gone)
        student = copy.deepcopy(model)
        remove_layers(student, joint.found, gone)
        known = {group.name: n for group, n in zip(groups, counts, strict=True)}
        prune(student, left, {group.name: range(known[group.name]) for group in left.groups})
        params = count_params(student)[0]
        assert costs_of(values) == {
            "macs": total_macs(student, EXAMPLE), "params": params, "size_bytes": stored_bytes(params)
        }  # fmt: skip
        assert left.costs([known[group.name] for group in left.groups])["params"] == params
        sizes = {n: m.weight.numel() for n, m in student.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        assert all(count == sizes.get(layer, 0) for layer, count in costs_of.weights(values).items())


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "mobilenet_v1"])
def test_groups_keep_their_names_and_positions_without_other_layers(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    joint = joined(model)
    assert predictable(model, joint, joint.found.names, EXAMPLE) == joint.found.names
    gone = joint.found.names[::3]
    remove_layers(model, joint.found, gone)
    found, expected = channel_graph(model, EXAMPLE), joint.without(gone)
    assert [(g.name, g.units, g.macs, g.params) for g in found.groups] == [
        (g.name, g.units, g.macs, g.params) for g in expected.groups
    ]
    for one, other in zip(found.groups, expected.groups, strict=True):
        cuts = [sorted((c.layer, c.side, c.size, c.index.tolist()) for c in group.cuts) for group in (one, other)]
        assert cuts[0] == cuts[1]
    assert {*found.skipped} == {*expected.skipped}


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 4), conv(4, 6), conv(6, 8), head(8, 2)).eval()


def test_a_layer_that_goes_is_read_past_in_a_case_worked_by_hand():
    example = torch.zeros(1, 3, 5, 5)
    joint = joined(chain(), example)
    costs_of = joint_costs(joint)
    assert (costs_of.names, costs_of.groups) == (("1.0", "2.0"), ("0.0", "1.0", "2.0"))
    # Convolutions of 3x3 on 25 places, with biases or batch norms; keep 2 of 4, 3 of 6 and 4 of 8 channels.
    widths = np.array([0.5, 0.5, 0.5])
    whole = 9 * 25 * (3 * 2 + 2 * 3 + 3 * 4) + 4 * 2
    assert costs_of(np.array([1, 1, *widths]))["macs"] == whole
    assert costs_of(np.array([0, 1, *widths]))["macs"] == 9 * 25 * (3 * 2 + 2 * 4) + 4 * 2
    # Without both, the classifier reads the two channels of the first layer.
    assert costs_of(np.array([0, 0, *widths]))["macs"] == 9 * 25 * 3 * 2 + 2 * 2
    # What the removed layers' knobs say makes no difference.
    assert costs_of(np.array([0, 0, 0.5, 1, 1])) == costs_of(np.array([0, 0, *widths]))
    assert costs_of.idle(np.array([0, 1, *widths])).tolist() == [False, False, False, True, False]
    assert costs_of.weights(np.array([0, 1, *widths]))["1.0"] == 0


def test_a_removed_block_takes_its_layers_and_groups_along():
    joint = joined(resnet20().eval())
    costs_of = joint_costs(joint)
    values = np.ones(len(costs_of.names) + len(costs_of.groups))
    values[costs_of.names.index("layer1.1")] = 0
    idle = costs_of.idle(values)
    names = [*(f"layer {n}" for n in costs_of.names), *(f"group {n}" for n in costs_of.groups)]
    assert [n for n, gone in zip(names, idle, strict=True) if gone] == ["layer layer1.1.conv1", "group layer1.1.conv1"]


class Projected(nn.Module):
    """A block whose shortcut gives channels of its own, which are those of the input once the block is gone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.body, self.short = conv(channels, channels), conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.inner(x)) + self.short(x)


def test_a_block_that_would_join_two_groups_has_to_stay():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), Projected(8), conv(8, 6), head(6, 2)).eval()
    example = torch.zeros(1, 3, 5, 5)
    joint = joined(model, example)
    assert "1" in joint.found.names
    left = predictable(model, joint, joint.found.names, example)
    assert "1" not in left
    assert {"1.inner.0", "2.0"} <= {*left}


def test_costs_are_sent_to_other_processes_as_they_are():
    costs_of = joint_costs(joined(chain(), torch.zeros(1, 3, 5, 5)))
    values = np.array([0, 1, 0.5, 0.5, 0.5])
    assert pickle.loads(pickle.dumps(costs_of))(values) == costs_of(values)
