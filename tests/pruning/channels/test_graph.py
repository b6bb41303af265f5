"""Channel graphs: groups, reasons and costs of all models of the zoo."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.models.resnet import resnet56
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.channels.prune import prune
from tests.zoo import ZOO, conv, head
from tests.zoo.pruning import built, check_plan, draw

# The groups of every member of the zoo. All else stays whole.
GROUPS = {
    "Plain": "conv1 conv2 fc1",
    "lenet_5": "conv1 conv2 fc1 fc2",
    # The first layer's 16 channels run through all stages; what the option-A shortcuts pad with zeros stays.
    "resnet_20": "conv1 layer1.0.conv1 layer1.1.conv1 layer1.2.conv1 layer2.0.conv1 layer2.1.conv1 layer2.2.conv1 "
    "layer3.0.conv1 layer3.1.conv1 layer3.2.conv1",
    "resnet_8": "conv1 layer1.0.conv1 layer2.0.conv1 layer3.0.conv1",
    "mobilenet": " ".join(f"features.{i}.0" for i in range(0, 27, 2)),
    "projection_resnet": "0.0 1.body.0.0 2.body.0.0 2.body.1 3.body.0.0",
    "resnext": "0.0 1.body.0.0 1.body.1.0 2.body.0.0 2.body.1.0",
    "inverted_residual": "1.body.0.0 2.0 3.body.0.0",
    "inception": "0.0 1.0.0 1.1.0.0 1.1.1.0 1.2.0.0 1.2.1.0 1.3.1.0 2.0.0 2.1.0.0 2.1.1.0 2.2.0.0 2.2.1.0 2.3.1.0",
    "densenet": "0.0 1.1.1.0 1.1.2 2.1.1.0 2.1.2 3.1.1.0 3.1.2 4.2 5.1.1.0 5.1.2",
    "SqueezeExcite": "conv1.0 down1 conv2.0 down2",
    "SpatialAttention": "conv2.0",
    "UNet": "enc1.0 enc2.0 mid.0 up2 dec2.0 up1 dec1.0",
    "FeaturePyramid": "stem.0 low.0 side2 head.0.0",
    "SharedConvolution": "stem.0 inner.0.0 shared.0",
    "TwoInputs": "image.0 joined.0 map.0 fc1",
    "SeveralOutputs": "stem.0 hidden.0",
    "vision_transformer": "mlp1",
    "vision_transformer_of_torch": "patch attention.attention mlp1",
    "conv_1d": "0 3 7",
    "normalized": "0 6",
    "Recurrent": "conv1.0 conv2.0 lstm",
    "single_linear": "",
    "one_channel": "1.0",
    "ChannelShuffle": "stem.0 branches.0.0.0 branches.1.0.0 head.0.0",
    "Split": "conv1.0 conv3.0 conv3.0#2 left.0",
    "Gate": "conv1 conv2.0",
    "FixedShape": "conv1.0 conv2.0",
    "norms_with_activation": "0 4 6",
    "convnext": "0 2.fc1 3.fc1 5 6.fc1",
    "Tokens": "patch mlp1",
    "C2f": "stem.0 first.0 chain.0.0.0 chain.1.0.0 last.0",
    "Auxiliary": "conv2.0",
    "Branching": "",
    "NoTensor": "",
    "wrong_input": "",
}
OUTPUT = "its channels are an output of the model"


def test_every_member_of_the_zoo_is_listed():
    assert sorted(GROUPS) == sorted(ZOO)


@pytest.mark.parametrize("name", GROUPS)
def test_every_layer_is_in_a_group_or_left_whole_with_a_reason(name):
    model, _, graph = built(name)
    assert sorted(group.name for group in graph.groups) == sorted(GROUPS[name].split())
    cut = {cut.layer for group in graph.groups for cut in group.cuts if cut.side == "out"}
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear | nn.RNNBase)}
    assert layers <= cut | set(graph.skipped)
    for layer, reason in graph.skipped.items():
        assert layer not in cut or "channels: " in reason
    assert all(group.units > 1 for group in graph.groups)


def test_costs_are_those_worked_out_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),  # 8 x 8
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), nn.PReLU(4),  # 4 x 4, depthwise
        nn.Conv2d(4, 6, 1, bias=False), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),  # 2 x 2 pixels a channel
    )  # fmt: skip
    graph = channel_graph(model.eval(), torch.randn(1, 3, 8, 8))
    assert [(group.name, group.units) for group in graph.groups] == [("0", 4), ("5", 6)]

    def by_hand(a: int, b: int) -> dict[str, int]:
        # The first convolution 27 a weights at 64 pixels, depthwise 9 a at 16, pointwise a b at 16, linear 4 b x 5.
        # Beside them biases a (first), 2 a (batch norm), a (depthwise), a (PReLU), 5 (linear).
        macs = 64 * 27 * a + 16 * 9 * a + 16 * a * b + 4 * b * 5
        return {"macs": macs, "params": 27 * a + 9 * a + a * b + 20 * b + 5 * a + 5}

    assert by_hand(4, 6) == {"macs": 7_992, "params": 313}
    for a in range(1, 5):
        for b in range(1, 7):
            assert graph.costs([a, b]) == by_hand(a, b)
    # Without any unit of the first group all but the last layer goes; without the second, what has b in it.
    assert (graph.groups[0].macs, graph.groups[0].params) == (7_992 - 120, 313 - 125)
    assert (graph.groups[1].macs, graph.groups[1].params) == (16 * 4 * 6 + 120, 24 + 120)
    cuts = {(cut.layer, cut.side): cut.index.tolist() for cut in graph.groups[1].cuts}
    pixels = [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(6)]
    assert cuts == {("5", "out"): [[i] for i in range(6)], ("8", "in"): pixels}


def test_channels_that_stay_have_a_reason_that_a_user_understands():
    def reason(name: str, layer: str) -> str:
        return built(name)[2].skipped[layer]

    assert reason("single_linear", "") == OUTPUT
    assert reason("SeveralOutputs", "last") == OUTPUT
    assert reason("one_channel", "0.0") == "a single channel"
    assert reason("SpatialAttention", "score") == "a single channel"
    assert reason("normalized", "3") == "normalized across channels by 4"
    fixed = "no head of attention can go alone: the forward pass relies on their number (shape '[1, 9, 3, 1, 8]'"
    assert reason("vision_transformer", "attention.qkv").startswith(fixed)
    assert reason("vision_transformer", "patch").startswith("the forward pass relies on their number (shape '[1, 9,")
    assert reason("ChannelShuffle", "head.1.2") == OUTPUT
    assert reason("inverted_residual", "0.0") == "its channels can only go all together"
    assert reason("FixedShape", "conv3.0").startswith("the forward pass relies on their number (shape '[-1, 144]'")
    assert reason("Auxiliary", "conv1.0") == "used by layers that run in training only"
    assert reason("Auxiliary", "unused") == "not used in the forward pass"
    padded = "16 of 32 channels: sliced and zero-padded on the way to the next layers"
    assert reason("resnet_20", "layer2.1.conv2") == padded
    assert set(built("Branching")[2].skipped.values()) == {
        "the model's forward pass reads the values of tensors, so that its layers may vary"
    }
    assert "no tensor that depends on its layers" in reason("NoTensor", "conv1.0")
    assert "expected input[1, 4, 8, 8] to have 3 channels" in reason("wrong_input", "0.0")


def test_a_unit_is_as_many_channels_as_have_to_go_together():
    def units(name: str, group: str) -> list[list[int]]:
        groups = {g.name: g for g in built(name)[2].groups}
        return next(c.index.tolist() for c in groups[group].cuts if (c.layer, c.side) == (group, "out"))

    # 16 channels in 4 convolution groups: one channel of each.
    assert units("resnext", "1.body.0.0") == [[i, i + 4, i + 8, i + 12] for i in range(4)]
    # A value and its gate.
    assert units("Gate", "conv1") == [[i, i + 6] for i in range(6)]
    # Halves of four, shuffled by pairs and halved again.
    assert units("ChannelShuffle", "stem.0") == [[0, 2, 4, 6], [1, 3, 5, 7]]
    # One map scales all the channels, and keeps none of them from going.
    assert units("SpatialAttention", "conv2.0") == [[i] for i in range(6)]


def test_option_a_shortcuts_carry_the_first_channels_through_all_stages_at_their_offsets():
    graph = built("resnet_20")[2]
    stream = next(group for group in graph.groups if group.name == "conv1")
    starts = {cut.layer: int(cut.index[0, 0]) for cut in stream.cuts}
    assert (starts["layer1.2.conv2"], starts["layer2.0.conv2"], starts["layer3.2.conv2"]) == (0, 8, 24)


def test_the_model_is_left_untouched():
    model, inputs = ZOO["resnext"]()
    model.train()
    model[1].eval()
    model[0][0].weight.requires_grad_(False)
    calls: list[object] = []
    hook = model[3].register_forward_hook(lambda *_: calls.append(0))
    state, ids = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    random_state = torch.random.get_rng_state()
    channel_graph(*ZOO["Plain"]())  # which has a dropout
    assert channel_graph(model, inputs).groups
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [id(p) for p in model.parameters()] == ids
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(ids) - 1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [len(module._forward_hooks) for module in model.modules()].count(1) == 1
    hook.remove()
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_graph_travels_between_processes():
    model, inputs, graph = built("densenet")
    data = pickle.dumps(graph)
    assert len(data) < 100_000
    check_plan(model, inputs, pickle.loads(data), draw(graph, 3))


class Sliced(nn.Module):
    def __init__(self, start: int | None, stop: int | None) -> None:
        super().__init__()
        self.part = slice(start, stop)
        self.one, self.two, self.head = conv(3, 12), conv(len(range(12)[self.part]), 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)[:, self.part]))


def test_channels_that_a_slice_counts_from_the_end_are_followed():
    x = torch.randn(1, 3, 8, 8)
    most = channel_graph(Sliced(None, -2).eval(), x)
    assert [(group.name, group.units) for group in most.groups] == [("one.0", 10), ("two.0", 6)]
    assert most.skipped["one.0"] == "2 of 12 channels: no layer reads them"
    check_plan(Sliced(None, -2).eval(), (x,), most, draw(most, 0))
    # The last four are four others where any but the first eight has gone.
    last = channel_graph(Sliced(-4, None).eval(), x)
    assert [group.name for group in last.groups] == ["two.0"]
    assert last.skipped["one.0"] == "no layer reads them; sliced on the way to the next layers"


class Tied(nn.Module):
    """Two layers with one weight: it would be two after a removal."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = conv(3, 6), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), head(6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.one(self.stem(x)))))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(3, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.conv(x), 0.5))


def test_weights_in_two_places_and_random_outputs_leave_a_model_whole():
    x = torch.randn(1, 3, 8, 8)
    assert channel_graph(Tied(), x).skipped["one"] == "what they cost cannot be predicted"
    noisy = channel_graph(Noisy(), x)
    assert not noisy.groups
    assert noisy.skipped["conv.0"] == "the model's outputs differ from run to run, or are not finite"
    assert noisy.costs([]) == {"macs": 64 * 3 * 9 * 6 + 30, "params": 3 * 9 * 6 + 12 + 35}


class Rolled(nn.Module):
    """Channels change places before they are read, in a residual branch that a batch norm of zeros switches off."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = conv(3, 6), conv(6, 8), conv(8, 6), head(6)
        nn.init.zeros_(self.two[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.two(self.one(x).roll(1, 1)))


def test_scales_of_zero_do_not_hide_a_wrong_group():
    graph = channel_graph(Rolled().eval(), torch.randn(1, 3, 8, 8))
    assert [group.name for group in graph.groups] == ["stem.0"]
    assert graph.skipped["one.0"] == "shifted on the way to the next layers"


def test_a_deep_network_is_pruned_and_counted_without_running_it(monkeypatch):
    model = resnet56().eval()
    example = torch.randn(1, 3, 32, 32)
    graph = channel_graph(model, example)
    assert len(graph.groups) == 28
    kept = {group.name: list(range(group.units // 2)) for group in graph.groups}
    pruned = copy.deepcopy(model)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", lambda *_: pytest.fail("a layer was run"))
        prune(pruned, graph, kept)
        costs = graph.costs([group.units // 2 for group in graph.groups])
    assert costs["params"] == sum(p.numel() for p in pruned.parameters())
    assert pruned(example).shape == (1, 10)


class Numbered(nn.Module):
    """``width`` and ``shape`` are the number of channels, ``limit`` happens to be equal."""

    def __init__(self) -> None:
        super().__init__()
        self.limit, self.width, self.shape = 16, 16, (16, 64)
        self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x)).view(-1, *self.shape).view(-1, self.width, 8, 8)
        return self.two(x)[..., : self.limit, :].mean((2, 3))


class OneNumber(Numbered):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)).view(-1, self.width, 8, 8)).mean((2, 3))


@pytest.mark.parametrize(("make", "shape"), [(Numbered, (6, 64)), (OneNumber, (16, 64))])
def test_only_the_numbers_that_the_forward_pass_needs_shrink(make, shape):
    model, x = make().eval(), torch.randn(1, 3, 8, 8)
    graph = channel_graph(model, x)
    assert [(group.name, group.units) for group in graph.groups] == [("one", 16)]
    pruned = check_plan(model, (x,), graph, {"one": [0, 2, 5, 7, 8, 15]})
    assert (pruned.width, pruned.shape, pruned.limit) == (6, shape, 16)
