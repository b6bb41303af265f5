"""torchvision's own networks beside pfray's for the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import torchvision_ops
from pfray.config.registry import find_function
from pfray.nn.weights import load_weights

SETTINGS: dict[str, dict[str, bool]] = {"googlenet": {"transform_input": True, "init_weights": False}}
OWN_NAMES = {
    "googlenet": "googlenet", "mobilenet_v2": "mobilenet_v2", "resnet18": "resnet18_imagenet",
    "resnet34": "resnet34_imagenet", "resnet50": "resnet50_imagenet", "vgg16": "vgg16_imagenet",
}  # fmt: skip


@pytest.fixture(params=OWN_NAMES)
def published(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """A network of torchvision with statistics of batch norms that are not trivial, and its name."""
    torchvision_ops.load()
    models: Any = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model: nn.Module = getattr(models, request.param)(**SETTINGS.get(request.param, {}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return request.param, model.eval()


def test_a_saved_file_of_torchvision_loads_as_it_is_and_gives_the_same_outputs(published, tmp_path):
    name, theirs = published
    torch.save(theirs.state_dict(), tmp_path / f"{name}.pth")
    own = find_function("model", OWN_NAMES[name])(num_outputs=1000)
    notes = load_weights(own, tmp_path / f"{name}.pth")
    left_out = ["'aux1.' and 'aux2.' left out" in note for note in notes]
    assert left_out == ([True] if name == "googlenet" else [])
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, found = theirs(images), own.eval()(images)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert expected.std() > 0


def test_the_kept_names_and_shapes_are_torchvisions(published):
    name, theirs = published
    kept = json.loads(Path(__file__).with_name("torchvision_keys.json").read_text())
    assert kept[name] == {key: list(tensor.shape) for key, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("width", [0.35, 0.5, 1.4])
def test_widths_of_mobilenet_v2_are_torchvisions(width):
    torchvision_ops.load()
    models: Any = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        own = find_function("model", "mobilenet_v2")(width=width).state_dict()
        theirs = models.mobilenet_v2(width_mult=width).state_dict()
    assert {key: tensor.shape for key, tensor in own.items()} == {key: each.shape for key, each in theirs.items()}
