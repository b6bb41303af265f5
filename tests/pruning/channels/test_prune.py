"""Pruning: shapes and flags of what stays, and refused plans and models."""

from __future__ import annotations

import copy

import pytest

from pfray.errors import UnsupportedModel
from pfray.pruning.channels.prune import prune
from tests.zoo.pruning import built


def test_pruning_keeps_what_is_trained_and_what_is_not():
    model, _, graph = built("projection_resnet")
    pruned = copy.deepcopy(model)
    pruned[1].requires_grad_(False)
    prune(pruned, graph, {"0.0": [0, 3], "1.body.0.0": [1]})
    frozen = {name for name, parameter in pruned.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("1.")}
    assert tuple(pruned[1].body[0][0].weight.shape) == (1, 2, 3, 3)


@pytest.mark.parametrize(("kept", "message"), [
    ({"conv9": [0]}, r"no channel group 'conv9'. Allowed: conv1, conv2, fc1"),
    ({"conv1": []}, r"conv1 cannot keep \[\]. Allowed: one or more of 0 to 5"),
    ({"conv1": [0, 6]}, r"conv1 cannot keep \[0, 6\]. Allowed: one or more of 0 to 5"),
    ({"conv1": [-1, 2]}, r"cannot keep \[-1, 2\]"),
])  # fmt: skip
def test_units_that_do_not_exist_are_refused(kept, message):
    model, _, graph = built("Plain")
    with pytest.raises(ValueError, match=message):
        prune(copy.deepcopy(model), graph, kept)


def test_a_model_that_is_pruned_already_is_refused_and_stays_as_it_is():
    model, _, graph = built("Plain")
    pruned = copy.deepcopy(model)
    prune(pruned, graph, {"conv2": [0, 1, 2]})
    before = [tuple(p.shape) for p in pruned.parameters()]
    with pytest.raises(UnsupportedModel, match=r"conv2 has 3 output channels, .* made for 13. Remedy"):
        prune(pruned, graph, {"conv1": [0], "conv2": [0, 1]})
    assert [tuple(p.shape) for p in pruned.parameters()] == before
