from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from learners.layer_removal import removable_of
from pfray.errors import UnsupportedModel
from pfray.models.googlenet import googlenet
from pfray.models.mobilenet_v2 import mobilenet_v2
from pfray.models.resnet import resnet20
from pfray.models.vgg import vgg11
from pfray.pruning.layers.graph import remove_layers
from pfray.task import Split, Task
from pfray.training.features import Features, Stage, find_stages, relative_error, repeated_blocks, share_left
from tests.training.toy import equal

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_error_is_relative_to_the_size_of_the_teachers_features():
    # 2^2 + 1^2 = 5 over 3^2 + 4^2 = 25.
    assert relative_error(torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 4.0]])).item() == pytest.approx(0.2)
    assert relative_error(torch.zeros(2, 3), torch.ones(2, 3)).item() == 1
    assert relative_error(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


def test_the_weight_falls_in_a_line_to_zero_at_half_of_the_steps():
    assert [share_left(step, 8) for step in range(8)] == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    assert [share_left(step, 5) for step in range(5)] == pytest.approx([1, 0.6, 0.2, 0, 0])


def test_the_blocks_of_a_network_are_the_outermost_modules_of_a_class_that_comes_several_times():
    assert repeated_blocks(resnet20()) == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert repeated_blocks(mobilenet_v2(10)) == [f"features.{block}" for block in range(1, 18)]
    names = [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    assert repeated_blocks(googlenet(10)) == ["conv1", "conv2", "conv3", *names]
    assert repeated_blocks(encoder(8)) == ["layers.0", "layers.1"]
    assert repeated_blocks(vgg11()) == []


def encoder(hidden: int) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, hidden, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def test_a_transformers_layers_are_its_stages_whatever_is_inside():
    found = find_stages(encoder(4), encoder(16), torch.randn(2, 5, 6))
    assert found == [Stage("layers.0", 2, (6, 6)), Stage("layers.1", 2, (6, 6))]


def test_a_plain_row_of_layers_has_a_stage_for_each_resolution():
    found = find_stages(vgg11(width=0.5), vgg11(), IMAGES)
    # The pooling that halves the resolution ends the stage before; the last one is pooled to a single position.
    assert found == [
        Stage("features.2", 1, (32, 64)), Stage("features.6", 1, (64, 128)), Stage("features.13", 1, (128, 256)),
        Stage("features.20", 1, (256, 512)), Stage("features.27", 1, (256, 512)), Stage("pool", 1, (256, 512)),
    ]  # fmt: skip


class Rows(nn.Module):
    """Features with the channels last, ``(N, H, W, C)``, or a sequence ``(N, C, T)``."""

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, width) if last else nn.Conv1d(3, width, 1)
        self.head = nn.Linear(width, 2)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.mean((1, 2)) if self.last else x.mean(2))


def test_the_channels_lie_where_the_widths_differ():
    assert find_stages(Rows(4, True), Rows(5, True), torch.randn(2, 6, 6, 3)) == [Stage("first", 3, (4, 5))]
    assert find_stages(Rows(4, False), Rows(5, False), torch.randn(2, 3, 7)) == [Stage("first", 1, (4, 5))]


def test_a_block_that_was_taken_out_is_no_stage():
    split = Split(IMAGES, torch.zeros(2, dtype=torch.int64))
    task = Task("images", split, split, split, 10)
    teacher = resnet20().eval()
    student = copy.deepcopy(teacher)
    remove_layers(student, removable_of(teacher, task), ["layer2.1"])
    names = [stage.name for stage in find_stages(student, teacher, IMAGES)]
    assert names == [name for name in repeated_blocks(teacher) if name != "layer2.1"]


def test_there_are_adapters_only_where_the_widths_differ():
    teacher, student = two_convs(4), two_convs(4)
    assert len(Features(student, teacher, IMAGES, 0).adapters) == 0
    features = Features(two_convs(3), teacher, IMAGES, 0)
    assert [stage.widths for stage in features.stages] == [(3, 4), (5, 5)]
    assert {name: tuple(p.shape) for name, p in features.adapters.named_parameters()} == {
        "0.weight": (4, 3), "0.bias": (4,)
    }  # fmt: skip


def two_convs(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(width, 5, 2, 2), nn.Flatten(), nn.Linear(1280, 2)
    )


def test_the_error_is_the_mean_over_stages_of_what_the_adapters_give():
    teacher, student = two_convs(4), two_convs(3)
    features = Features(student, teacher, IMAGES, 0)
    own: list[Tensor] = []
    theirs: list[Tensor] = []
    with features.of(student, own):
        student(IMAGES)
    with features.of(teacher, theirs):
        teacher(IMAGES)
    kernels = nn.Conv2d(3, 4, 1)
    kernels.weight.data = features.adapters["0"].weight[:, :, None, None]
    kernels.bias.data = features.adapters["0"].bias
    assert torch.equal(own[0], student[1](student[0](IMAGES)))
    first = (kernels(own[0]) - theirs[0]).square().sum() / theirs[0].square().sum()
    second = (own[1] - theirs[1]).square().sum() / theirs[1].square().sum()
    assert features.error(own, theirs).item() == pytest.approx((first.item() + second.item()) / 2, rel=1e-5)
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())


def test_finding_the_stages_changes_neither_network_nor_the_random_numbers():
    teacher, student = resnet20().train(), resnet20().train()
    before = copy.deepcopy((teacher, student))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Features(student, teacher, IMAGES, 0)
    assert torch.equal(torch.rand(3), expected)
    assert equal(teacher, before[0])
    assert equal(student, before[1])
    assert teacher.training
    assert student.training


def test_the_adapters_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = Features(two_convs(3), two_convs(4), IMAGES, 7).adapters
    torch.manual_seed(2)
    again = Features(two_convs(3), two_convs(4), IMAGES, 7).adapters
    other = Features(two_convs(3), two_convs(4), IMAGES, 8).adapters
    assert equal(one, again)
    assert not equal(one, other)


def test_networks_without_a_common_stage_are_refused():
    one = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    with pytest.raises(UnsupportedModel, match=r"distill.features: the Sequential and its .* Remedy: distill.features"):
        Features(one, one, IMAGES, 0)
