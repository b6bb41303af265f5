from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pfray.data import _parquet
from pfray.measure.cost import count_params, layer_macs, total_macs
from pfray.measure.evaluation import evaluate
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.models.resnet import OptionAShortcut, resnet20, resnet32, resnet44, resnet56, resnet110
from pfray.models.resnet18 import resnet18, resnet34
from pfray.models.vgg import vgg7, vgg11, vgg13, vgg16
from pfray.task import Split, Task

SHARED = Path(__file__).parents[3] / "shared/data"
CIFAR_RESNETS = [resnet20, resnet32, resnet44, resnet56, resnet110]
WITH_WIDTH = [mobilenet_v1, vgg7, vgg11, vgg13, vgg16, resnet18, resnet34]
MODELS = [lenet, *CIFAR_RESNETS, *WITH_WIDTH]


@pytest.mark.parametrize("factory", MODELS)
def test_images_come_out_as_logits(factory: Callable[..., nn.Module]) -> None:
    model = factory(num_outputs=7, in_channels=1).eval()
    logits = model(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("factory", "size", "outputs", "macs", "params"),
    [
        # By hand: 28*28*6*75 + 10*10*16*150 + 400*120 + 120*84 + 84*10.
        (lenet, 32, 10, 651_720, 62_006),
        (mobilenet_v1, 224, 1000, 568_740_352, 4_231_976),
        (resnet20, 32, 10, 40_551_040, 269_722),
        (resnet56, 32, 10, 125_485_696, 853_018),
        # Without the biases of the convolutions, which the batch norms make useless.
        (vgg11, 32, 10, 152_769_536, 9_228_362),
        (vgg16, 32, 10, 313_201_664, 14_724_042),
        (resnet18, 32, 10, 555_422_720, 11_173_962),
        (resnet34, 32, 10, 1_159_402_496, 21_282_122),
    ],
)
def test_costs_are_the_published_ones(
    factory: Callable[..., nn.Module], size: int, outputs: int, macs: int, params: int
) -> None:
    model = factory(num_outputs=outputs)
    example = torch.zeros(1, 3, size, size)
    assert total_macs(model, example) == macs
    assert sum(count for name, count in layer_macs(model, example).items() if _is_leaf(model, name)) == macs
    assert count_params(model)[0] == params


def _is_leaf(model: nn.Module, name: str) -> bool:
    return not any(model.get_submodule(name).children())


def test_depth_is_six_blocks_of_layers_and_two() -> None:
    depths = [sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model().modules()) for model in CIFAR_RESNETS]
    assert depths == [20, 32, 44, 56, 110]


def test_option_a_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    out = OptionAShortcut(2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


def _channels(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("factory", "first", "last"),
    [(mobilenet_v1, 32, 1024), *((f, 64, 512) for f in (vgg11, vgg13, vgg16, resnet18, resnet34))],
)
def test_half_the_width_is_half_the_channels_everywhere(
    factory: Callable[..., nn.Module], first: int, last: int
) -> None:
    full, half = _channels(factory()), _channels(factory(width=0.5))
    assert half == [count // 2 for count in full]
    assert full[0] == first
    assert full[-1] == last


def test_the_names_of_vgg_and_resnet_count_their_layers() -> None:
    def depth(model: nn.Module) -> int:
        main = [m for n, m in model.named_modules() if "shortcut" not in n]
        return sum(isinstance(m, nn.Conv2d | nn.Linear) for m in main)

    assert [depth(model()) for model in (resnet18, resnet34)] == [18, 34]
    # One linear layer instead of three.
    assert [depth(model()) for model in (vgg7, vgg11, vgg13, vgg16)] == [7, 9, 11, 14]


@pytest.mark.parametrize("factory", WITH_WIDTH)
def test_any_width_gives_whole_multiples_of_eight_channels(factory: Callable[..., nn.Module]) -> None:
    model = factory(width=0.3).eval()
    assert all(count % 8 == 0 and count >= 8 for count in _channels(model))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("width", [0, -1, 4.1, float("nan")])
@pytest.mark.parametrize("factory", [mobilenet_v1, vgg11, resnet18])
def test_a_width_out_of_range_is_refused(factory: Callable[..., nn.Module], width: float) -> None:
    with pytest.raises(ValueError, match="allowed are numbers above 0 and up to 4"):
        factory(width=width)


@pytest.fixture(scope="module")
def images() -> Split:
    file = SHARED / "cifar10-jpeg/test.parquet"
    if not (file.is_file() and (SHARED / "weights").is_dir()):
        pytest.skip(f"the test images and public weights are not in {SHARED}")
    pixels, labels = _parquet.read_file(file, (32, 32))
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels))


@pytest.mark.parametrize(
    ("factory", "count", "documented", "tolerance"),
    [
        # The documented numbers are of all 8,000 images; the tolerance is three standard errors of the sample's mean.
        (resnet20, 1000, 0.8873, 0.028),
        (resnet56, 1000, 0.9031, 0.026),
    ],
)
def test_public_weights_load_strictly_and_reach_their_documented_accuracy(
    images: Split, factory: Callable[[], nn.Module], count: int, documented: float, tolerance: float
) -> None:
    model = factory()
    weights: dict[str, Tensor] = torch.load(SHARED / "weights" / f"{factory.__name__}.pt", weights_only=True)
    model.load_state_dict(weights, strict=True)
    sample = images.head(count)
    task = Task("cifar10", sample, sample, sample, 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert evaluate(model, task, sample).accuracy == pytest.approx(documented, abs=tolerance)
