"""Networks of every wiring in 8 bits: near the float network, and their files near the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pfray.quantization.bn_folding import foldable_norms, folded
from pfray.quantization.pt2e import int8_model
from tests.small import difference, file_difference
from tests.zoo import ZOO

# Of one input and one output, and which torch.export takes.
ONE_TO_ONE = sorted(set(ZOO) - {
    "TwoInputs", "SeveralOutputs", "FeaturePyramid", "NoTensor", "wrong_input", "Branching", "FixedShape",
})  # fmt: skip


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Batch norms folded, and 40 inputs."""
    model, (example,) = ZOO[name]()
    inputs = torch.randn(40, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    return folded(model, foldable_norms(model, example[:1])).eval(), inputs


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_eight_bits_lose_little(name):
    model, inputs = network(name)
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert difference(prepared, model, inputs) < 0.05


# Average poolings and concatenations; batch norms that no layer can take in; a convolution used more than once.
@pytest.mark.parametrize("name", ["inception", "densenet", "SharedConvolution"])
def test_the_file_does_what_the_graph_does(name, tmp_path):
    model, inputs = network(name)
    prepared = int8_model.prepare(model, inputs, [inputs])
    assert file_difference(prepared, inputs, tmp_path / "model.tflite") < 0.02
    assert [why for kind, why in prepared.operators().values() if kind == "float"] == []
