"""Networks for 224x224 images: published names, shapes and costs, and the channels that can go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pfray.measure.cost import layer_macs, total_macs
from pfray.models.googlenet import googlenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.models.mobilenet_v2 import mobilenet_v2
from pfray.models.resnet_imagenet import resnet18_imagenet, resnet34_imagenet, resnet50_imagenet
from pfray.models.vgg_imagenet import vgg16_imagenet
from pfray.pruning.channels.graph import channel_graph

Factory = Callable[..., nn.Module]
# Names and shapes of torchvision's state dicts, which tests/models/test_torchvision.py compares with torchvision's own.
KEYS = json.loads(Path(__file__).with_name("torchvision_keys.json").read_text())
PUBLISHED = {
    "googlenet": googlenet, "mobilenet_v2": mobilenet_v2, "resnet18": resnet18_imagenet, "resnet34": resnet34_imagenet,
    "resnet50": resnet50_imagenet, "vgg16": vgg16_imagenet,
}  # fmt: skip
WITH_WIDTH = [mobilenet_v1, *PUBLISHED.values()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_weights(name: str) -> None:
    with torch.device("meta"):
        own = PUBLISHED[name]().state_dict()
    heads = ("aux1.", "aux2.") if name == "googlenet" else ()
    published = {key: shape for key, shape in KEYS[name].items() if not key.startswith(heads)}
    assert {key: list(tensor.shape) for key, tensor in own.items()} == published


@pytest.mark.parametrize(
    ("factory", "macs", "params"),
    [
        (googlenet, 1_498_376_192, 6_624_904),
        (mobilenet_v1, 568_740_352, 4_231_976),
        (mobilenet_v2, 300_774_272, 3_504_872),
        (resnet18_imagenet, 1_814_073_344, 11_689_512),
        (resnet34_imagenet, 3_663_761_408, 21_797_672),
        (resnet50_imagenet, 4_089_184_256, 25_557_032),
        (vgg16_imagenet, 15_470_264_320, 138_357_544),
    ],
)
def test_costs_are_the_published_ones(factory: Factory, macs: int, params: int) -> None:
    with torch.device("meta"):
        model, example = factory(num_outputs=1000), torch.zeros(1, 3, 224, 224)
    assert total_macs(model, example) == macs
    leaves = {name for name, module in model.named_modules() if not any(module.children())}
    assert sum(count for name, count in layer_macs(model, example).items() if name in leaves) == macs
    assert sum(each.numel() for each in model.parameters()) == params


@pytest.mark.parametrize(("factory", "share"), [(mobilenet_v2, 0.2), (googlenet, 0.2), (vgg16_imagenet, 0.5)])
def test_dropout_is_the_published_one(factory: Factory, share: float) -> None:
    with torch.device("meta"):
        model = factory()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {share}


@pytest.mark.parametrize(
    ("factory", "groups", "output"),
    [
        (mobilenet_v1, 14, "classifier"),
        # 16 expansions, the stem, a stream at the end of each of 7 stages, and the last convolution.
        (mobilenet_v2, 16 + 1 + 7 + 1, "classifier.1"),
        # A group for the inside of each block, and four streams.
        (resnet18_imagenet, 8 + 4, "fc"),
        (resnet34_imagenet, 16 + 4, "fc"),
        # Two inside each bottleneck, four streams, and the stem.
        (resnet50_imagenet, 2 * 16 + 4 + 1, "fc"),
        # All 57 convolutions on their own, since concatenations tie none together.
        (googlenet, 57, "fc"),
        (vgg16_imagenet, 15, "classifier.6"),
    ],
)
def test_all_channels_but_the_outputs_can_go(factory: Factory, groups: int, output: str) -> None:
    model = factory(num_outputs=5, width=0.5).eval()
    graph = channel_graph(model, torch.randn(1, 3, 64, 64))
    assert list(graph.skipped) == [output]
    assert len(graph.groups) == groups
    cut = {cut.layer for group in graph.groups for cut in group.cuts}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert layers <= cut


@pytest.mark.parametrize("factory", WITH_WIDTH)
def test_images_of_any_size_and_depth_come_out_as_logits(factory: Factory) -> None:
    model = factory(num_outputs=7, in_channels=1, width=0.25).eval()
    for size in (32, 96):
        logits = model(torch.randn(2, 1, size, size))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()


@pytest.mark.parametrize("factory", WITH_WIDTH)
def test_a_width_divides_the_channels_and_one_out_of_range_is_refused(factory: Factory) -> None:
    def channels(width: float) -> list[int]:
        with torch.device("meta"):
            model = factory(width=width)
        return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]

    if factory is not mobilenet_v2:  # whose 24 channels become 16, and 6 times as many in between
        # The 24 channels inside GoogLeNet are rounded too.
        pairs = zip(channels(1.0), channels(0.5), strict=True)
        assert all(half == full // 2 for full, half in pairs if full % 16 == 0)
    assert all(count % 8 == 0 for count in channels(0.3))
    with pytest.raises(ValueError, match="width is 0; allowed are numbers above 0 and up to 4"):
        factory(width=0)


def test_mobilenet_v2_is_not_rounded_down_by_more_than_a_tenth() -> None:
    with torch.device("meta"):
        model = mobilenet_v2(width=0.35)
    # 32 x 0.35 = 11.2, of which 8 would be 71 %.
    assert model.get_submodule("features.0.0").out_channels == 16
    assert model.get_submodule("features.18.0").out_channels == 1280
