"""Networks of timm: everything but the outputs is in a group, and can go nearly whole."""

from __future__ import annotations

import pytest
import torch

from benchmarks import torchvision_ops
from pfray.pruning.channels.graph import channel_graph
from pfray.quantization.bn_folding import foldable_norms
from tests.zoo.pruning import check_plan, draw

torchvision_ops.load()
timm = pytest.importorskip("timm")

# Groups of each network. Norms hold their activation in all but the last three, where a stream has layer or group
# norms, parameters of its own, or parts of a size that the module keeps as a number.
NETWORKS = {
    "mobilenetv2_035": 25, "mobilenetv3_small_050": 26, "regnetx_002": 31, "convnext_atto": 16, "poolformer_s12": 16,
    "res2net50_14w_8s": 61,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_all_but_the_outputs_can_be_pruned(name):
    torch.manual_seed(0)
    model, example = timm.create_model(name, pretrained=False).eval(), torch.randn(1, 3, 64, 64)
    graph = channel_graph(model, example)
    assert len(graph.groups) == NETWORKS[name]
    assert list(graph.skipped.values()) == ["its channels are an output of the model"]
    whole, least = (graph.costs(kept)["macs"] for kept in (graph.units, [1] * len(graph.groups)))
    assert least < 0.02 * whole
    check_plan(model, (example,), graph, draw(graph, 0))


def test_norms_with_an_activation_are_folded():
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", pretrained=False).eval()
    assert len(foldable_norms(model, torch.randn(1, 3, 32, 32))) == 52
