"""Multiply-adds, each expected number worked by hand from the shapes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import torchvision_ops
from pfray.errors import UnsupportedModel
from pfray.measure.cost import layer_macs, total_macs
from pfray.measure.macs import FORMULAS, count_macs


class Recurrent(nn.Module):
    """Two convolutions, an LSTM over 20 columns of 32 values, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 16, 3, (2, 1), 1), nn.ReLU(), nn.Conv2d(16, 16, 3, (2, 1), 1))
        self.rnn, self.head = nn.LSTM(32, 48, batch_first=True), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.conv(x).flatten(1, 2).transpose(1, 2))[0][:, -1])


def test_a_lstm_counts_every_weight_at_every_step():
    convolutions, recurrent = 16 * 9 * 4 * 20 + 16 * 16 * 9 * 2 * 20, 20 * 4 * 48 * (32 + 48)
    macs = layer_macs(Recurrent(), torch.randn(1, 1, 8, 20))
    assert (macs["conv"], macs["rnn"], macs["head"]) == (convolutions, recurrent, 192)
    assert total_macs(Recurrent(), torch.randn(1, 1, 8, 20)) == convolutions + recurrent + 192 == 411_072


GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers_count_all_layers_and_directions(kind, batch_first):
    layer = kind(8, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    # Two sequences of five steps; the second layer reads both directions' six values.
    by_hand = 2 * 5 * 2 * GATES[kind] * 6 * ((8 + 6) + (12 + 6))
    assert total_macs(layer, torch.randn(2, 5, 8) if batch_first else torch.randn(5, 2, 8)) == by_hand


def test_a_lstm_with_projections_counts_them():
    layer = nn.LSTM(8, 6, proj_size=3)
    assert total_macs(layer, torch.randn(5, 1, 8)) == 5 * (4 * 6 * (8 + 3) + 3 * 6)


def test_packed_sequences_count_their_own_steps():
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 5, 8), torch.tensor([5, 3]), batch_first=True)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(packed)[0].data + 0 * x

    assert total_macs(Packed(), torch.zeros(1)) == (5 + 3) * 4 * 6 * (8 + 6)


def test_cells_and_the_recurrent_kernel_of_a_gpu_count_the_same():
    assert total_macs(nn.LSTMCell(8, 6), torch.randn(1, 8)) == 4 * 6 * (8 + 6)
    weights = [torch.empty(shape, device="meta") for shape in ((24, 8), (24, 3), (24,), (24,), (3, 6))]
    operations = FORMULAS[torch.ops.aten._cudnn_rnn](torch.empty(5, 2, 8, device="meta"), weights, 5, None, out_val=())
    assert operations == 2 * 10 * (24 * (8 + 3) + 3 * 6)


class Attention(nn.Module):
    """Four heads of 16 over 64 values."""

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.qkv, self.masked = nn.Linear(64, 192), masked

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.masked)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_its_two_products_whichever_kernel_does_them(masked):
    linear, products = 100 * 64 * 192, 2 * 4 * 100 * 100 * 16
    whole, macs = count_macs(Attention(masked), torch.randn(1, 100, 64))
    assert (whole, macs[""], macs["qkv"]) == (linear + products, linear + products, linear)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert total_macs(Attention(masked), torch.randn(1, 100, 64)) == linear + products


def test_values_of_another_width_and_queries_that_share_keys_count_what_is_multiplied():
    class Shared(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    q, k, v = torch.randn(2, 6, 7, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    assert total_macs(Shared(), (q, k, v)) == 2 * 6 * 7 * 9 * 8 * 2
    assert total_macs(Shared(), (q, k[:, :, :, :8], torch.randn(2, 3, 9, 5))) == 2 * 6 * 7 * 9 * (8 + 5)


class Text(nn.Module):
    """32 tokens, an encoder of two layers of four heads, and a linear layer on the mean."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, **options), nn.Linear(64, 4)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.words(tokens), src_key_padding_mask=mask).mean(1))


@pytest.mark.parametrize("nested", [False, True])
def test_an_encoders_fused_path_counts_as_its_modules_do(nested):
    attention, linear = 32 * 4 * 64 * 64 + 2 * 32 * 32 * 64, 32 * 64 * 64
    tokens = torch.randint(50, (1, 32))
    macs = layer_macs(Text(enable_nested_tensor=nested), tokens)
    assert (macs["words"], macs["head"]) == (0, 256)
    for name in ("encoder.layers.0", "encoder.layers.1"):
        own = [macs[name], *(macs[f"{name}.{part}"] for part in ("self_attn", "linear1", "linear2"))]
        assert own == [attention + 2 * linear, attention, linear, linear]
    assert total_macs(Text(enable_nested_tensor=nested), tokens) == 2 * (attention + 2 * linear) + 256 == 1_835_264
    # What is padded is multiplied too.
    masked = {"tokens": tokens, "mask": torch.arange(32)[None] > 20}
    assert total_macs(Text(enable_nested_tensor=nested), masked) == 1_835_264


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_has_the_products_of_all_its_weights(need_weights):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 4, kdim=24, vdim=40, batch_first=True)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(q, k, v, need_weights=need_weights)[0]

    inputs = torch.randn(1, 10, 64), torch.randn(1, 7, 24), torch.randn(1, 7, 40)
    by_hand = 10 * 64 * 64 + 7 * 24 * 64 + 7 * 40 * 64 + 2 * 10 * 7 * 64 + 10 * 64 * 64
    whole, macs = count_macs(Net(), inputs)
    assert whole == macs["attention"] == by_hand


def test_counting_leaves_the_fused_paths_as_they_were():
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    total_macs(Text(), torch.randint(50, (1, 4)))
    with pytest.raises(UnsupportedModel):
        layer_macs(Text(), torch.randn(1, 4))
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


def test_a_vision_transformer_of_other_peoples_is_counted_in_full():
    torchvision_ops.load()
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224")
    tokens, width = 197, 192
    attention = tokens * 4 * width * width + 2 * tokens * tokens * width
    by_hand = 196 * 768 * width + 12 * (attention + tokens * 2 * 4 * width * width) + width * 1000
    whole, macs = count_macs(model, torch.zeros(1, 3, 224, 224))
    assert whole == by_hand == 1_253_683_200
    assert macs["blocks.3.attn"] == attention
    assert macs["blocks.3.attn.qkv"] == 3 * macs["blocks.3.attn.proj"] == tokens * 3 * width * width
    for block in model.blocks:
        block.attn.fused_attn = False  # the same products, written out
    assert total_macs(model, torch.zeros(1, 3, 224, 224)) == by_hand


class Products(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> None:
        """a: ``(9, 8)``. b: ``(2, 8, 5)``."""
        self.results = [
            a @ b,  # 2 * 9 * 8 * 5
            torch.einsum("ik,bkj->bij", a, b),  # 2 * 9 * 8 * 5
            torch.baddbmm(a.new_zeros(2, 9, 5), a.expand(2, 9, 8), b),  # 2 * 9 * 8 * 5
            torch.addbmm(a.new_zeros(9, 5), a.expand(2, 9, 8), b),  # 2 * 9 * 8 * 5
            torch.mv(a, a[0]),  # 9 * 8
            torch.addmv(a[:, 0], a, a[0]),  # 9 * 8
            torch.dot(a[0], a[1]),  # 8
            a * 2,
        ]


def test_all_matrix_products_count_and_elementwise_ones_do_not():
    assert total_macs(Products(), (torch.randn(9, 8), torch.randn(2, 8, 5))) == 4 * 720 + 2 * 72 + 8


def test_layers_that_are_less_common_are_counted():
    pair = torch.randn(2, 5), torch.randn(2, 6)
    assert total_macs(nn.Bilinear(5, 6, 3), pair) == 2 * 3 * 6 * (5 + 1)
    assert total_macs(nn.ConvTranspose1d(4, 6, 3, groups=2), torch.randn(1, 4, 7)) == 7 * 4 * 3 * 3
    assert total_macs(nn.Linear(8, 6), torch.randn(8)) == 48
    assert total_macs(nn.EmbeddingBag(10, 8), torch.randint(10, (2, 5))) == 0

    class Sequence(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.conv_tbc(x, x.new_zeros(3, 4, 6), x.new_zeros(6))

    assert total_macs(Sequence(), torch.randn(7, 2, 4)) == 5 * 2 * 3 * 4 * 6


@pytest.mark.parametrize(
    ("first", "second", "result", "by_hand"),
    [
        ((10, 8), (3, 8, 5), (10, 5), 10 * 8 * 5),  # each row meets the matrix of its group
        ((3, 4, 8), (3, 8, 5), (3, 4, 5), 3 * 4 * 8 * 5),
        ((4, 12), (12, 5), (3, 4, 5), 4 * 12 * 5),  # the groups share the 12 between them
    ],
)
def test_products_of_groups_of_experts_are_counted(first, second, result, by_hand):
    shapes = [torch.empty(shape, device="meta") for shape in (first, second, result)]
    assert FORMULAS[torch.ops.aten._grouped_mm](*shapes[:2], out_val=shapes[2]) == 2 * by_hand


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantized_layers_count_as_their_float_ones():
    quantized = pytest.importorskip("torch.ao.nn.quantized")
    assert total_macs(quantized.dynamic.Linear(4, 3), torch.rand(2, 4)) == 24
    layer = nn.Sequential(quantized.Quantize(0.1, 0, torch.quint8), quantized.Conv2d(4, 6, 3, groups=2))
    assert total_macs(layer, torch.rand(1, 4, 5, 5)) == 9 * 6 * 2 * 9


class Twice(nn.Module):
    """A layer under two names, run twice, and an attempt that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        try:
            self.last(x[:, :3])
        except RuntimeError:
            return self.last(self.other(self.one(x)))
        raise AssertionError


def test_a_shared_layer_has_all_its_runs_and_a_failed_one_ends_it():
    whole, macs = count_macs(Twice(), torch.rand(1, 4))
    assert (whole, macs) == (40, {"": 40, "one": 32, "last": 8})


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, image: Tensor, text: Tensor, scale: float | None = None) -> dict[str, Tensor]:
        return {"sum": (self.image(image) + self.text(text)) * (scale or 1.0)}


def test_inputs_of_any_form_are_counted():
    image, text = torch.rand(2, 4), torch.rand(2, 5)
    for inputs in ((image, text), {"text": text, "image": image, "scale": None}, (image, text, 2.0)):
        assert layer_macs(Pair(), inputs) == {"image": 24, "text": 30}
        assert total_macs(Pair(), inputs) == 54

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, samples: list[Tensor]) -> list[Tensor]:
            return [self.layer(sample) for sample in samples]

    assert total_macs(Listed(), [torch.rand(4), torch.rand(6, 4)]) == 7 * 12


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ((torch.rand(1, 3), torch.rand(1, 5)), r"inputs of shapes \[0\] \(1, 3\), \[1\] \(1, 5\)"),
        ({"image": torch.rand(1, 3), "text": torch.rand(1, 5)}, r"inputs of shapes image \(1, 3\), text \(1, 5\)"),
        (torch.rand(1, 4), r"an input of shape \(1, 4\)"),
    ],
)
def test_a_model_that_fails_is_refused_and_the_shapes_of_all_inputs_are_named(inputs, named):
    with pytest.raises(UnsupportedModel, match=rf"the model Pair fails on {named}: .*Remedy") as caught:
        layer_macs(Pair(), inputs)
    assert "\n" not in str(caught.value)


def test_counting_changes_neither_gradients_nor_modes():
    model = Recurrent().train()
    before = copy.deepcopy(model.state_dict())
    total_macs(model, torch.randn(1, 1, 8, 20))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
