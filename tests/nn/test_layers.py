"""Which layers have a weight to compress, and which of them share one."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.utils import parametrizations, prune

from pfray.errors import UnsupportedModel
from pfray.nn.layers import sharing, weight_layers


@pytest.mark.parametrize("computed", [
    lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), nn.utils.weight_norm,
    parametrizations.weight_norm, parametrizations.spectral_norm,
])  # fmt: skip
def test_a_weight_that_is_computed_is_refused_with_the_ways_to_make_it_a_plain_one(computed):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), computed(nn.Conv2d(4, 4, 3)))
    with pytest.raises(UnsupportedModel, match=r"1: its weight is computed from .*Remedy: .*prune\.remove"):
        weight_layers(model)
    assert list(weight_layers(model, computed=True)) == ["0"]


def test_of_layers_that_share_a_weight_the_first_stands_for_all():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Embedding(4, 4))
    model[3].weight = model[4].weight = model[0].weight
    assert list(weight_layers(model)) == ["0", "1"]
    assert sharing(model, "0") == ["0", "3"]
    assert sharing(model, "1") == ["1"]
