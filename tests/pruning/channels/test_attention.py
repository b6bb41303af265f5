"""Attention heads as groups: what is found, cut and counted, in modules of many kinds."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.measure.macs import count_macs
from pfray.nn.attention import HeadAttention
from pfray.pruning.channels.graph import ChannelGraph, channel_graph
from pfray.pruning.channels.keep_ratios import allowed_counts
from pfray.pruning.channels.prune import prune
from tests import torchvision_ops
from tests.zoo.pruning import check_plan, draw

T, E, H, D = 6, 10, 4, 3


class Packed(nn.Module):
    """Queries, keys and values from one layer, kind by kind or head by head."""

    def __init__(self, by_kind: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.by_kind = H, D, by_kind
        self.qkv, self.proj = nn.Linear(E, 3 * H * D), nn.Linear(H * D, E)
        self.q_norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        if self.by_kind:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        else:
            qkv = self.qkv(x).unflatten(-1, (self.num_heads, 3, self.head_dim)).permute(3, 0, 2, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Separate(nn.Module):
    """Own layers, a number for all heads together, and a bias of each head for every pair of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.all_head_size = H, H * D
        self.query, self.key, self.value = (nn.Linear(E, H * D) for _ in range(3))
        self.table, self.dense = nn.Parameter(torch.randn(T * T, H)), nn.Linear(H * D, E)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.n_heads, self.all_head_size // self.n_heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / D**0.5 + self.table.T.reshape(-1, T, T)
        return self.dense((scores.softmax(-1) @ v).transpose(1, 2).reshape(*x.shape[:2], self.all_head_size))


class Grouped(nn.Module):
    """Two heads share their keys and values; only the size of a head is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.each = D, 2
        self.q, self.k, self.v = nn.Linear(E, H * D), nn.Linear(E, H * D // 2), nn.Linear(E, H * D // 2)
        self.o = nn.Linear(H * D, E, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(self.each, 1) for part in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OfTorch(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, H, **options)
        self.before, self.after = nn.Linear(E, 12), nn.Linear(12, E)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = x if self.attention.batch_first else x.transpose(0, 1)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.after(x if self.attention.batch_first else x.transpose(0, 1))


class Block(nn.Module):
    """Tokens through an attention and an MLP, as in a transformer."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(E), attention, nn.LayerNorm(E)
        self.fc1, self.fc2, self.head = nn.Linear(E, 16), nn.Linear(16, E), nn.Linear(E, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


def heads_of(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.units for group in graph.groups if group.noun != "channels"}


def block(attention: nn.Module, tokens: int = T) -> tuple[nn.Module, tuple[Tensor], ChannelGraph]:
    torch.manual_seed(0)
    model, inputs = Block(attention).eval(), (torch.randn(1, tokens, E),)
    return model, inputs, channel_graph(model, inputs)


ATTENTIONS = {
    "kind_by_kind": (Packed, "attn", 4, "heads"),
    "head_by_head": (lambda: Packed(False), "attn", 4, "heads"),
    "separate": (Separate, "attn", 4, "heads"),
    "grouped": (Grouped, "attn", 2, "groups of heads"),
    "of_torch": (OfTorch, "attn.attention", 4, "heads"),
    "of_torch_batch_first": (lambda: OfTorch(batch_first=True), "attn.attention", 4, "heads"),
    "of_torch_with_keys": (lambda: OfTorch(add_bias_kv=True, add_zero_attn=True), "attn.attention", 4, "heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_are_removed_with_all_that_belongs_to_them(name):
    make, group, units, noun = ATTENTIONS[name]
    model, inputs, graph = block(make())
    widths = ("attn.before", "attn.attention.out_proj") if group == "attn.attention" else ()
    width = [(each, 12, "channels") for each in widths]
    found = [(g.name, g.units, g.noun) for g in graph.groups]
    assert found == [*width, (group, units, noun), ("fc1", 16, "channels")]
    for seed in range(4):
        check_plan(model, inputs, graph, draw(graph, seed))
    pruned = check_plan(model, inputs, graph, {group: [units - 1], "fc1": [3, 7]})
    # One head is all that is left.
    assert not heads_of(channel_graph(pruned, inputs))
    pruned.train()(torch.randn(2, *inputs[0].shape[1:])).sum().backward()


def test_costs_of_heads_and_mlp_are_those_worked_out_by_hand():
    graph = block(Packed())[2]

    def by_hand(h: int, f: int) -> dict[str, int]:
        # qkv 3 h D rows of E, the products T x T x D of each head twice, proj; the MLP's two layers; the head once.
        macs = T * 3 * h * D * E + 2 * T * T * D * h + T * h * D * E + 2 * T * E * f + 5 * E
        params = 3 * h * D * (E + 1) + h * D * E + E + f * (E + 1) + f * E + E + 5 * (E + 1) + 2 * 2 * E + 2 * D
        return {"macs": macs, "params": params}

    for h in range(1, H + 1):
        for f in (1, 9, 16):
            assert graph.costs([h, f]) == by_hand(h, f)
    assert graph.groups[0].macs == by_hand(4, 16)["macs"] - by_hand(0, 16)["macs"]
    cuts = {(cut.layer, cut.side): cut.index for cut in graph.groups[0].cuts}
    assert cuts["attn.qkv", "out"][1].tolist() == [3, 4, 5, 15, 16, 17, 27, 28, 29]
    assert cuts["attn.proj", "in"][1].tolist() == [3, 4, 5]
    assert graph.weights([2, 16])["attn.qkv"] == 3 * 2 * D * E
    other = block(Packed(False))[2]
    assert other.groups[0].cuts[1].index[1].tolist() == list(range(9, 18))


def test_the_numbers_that_count_heads_shrink_and_those_of_one_head_stay():
    model, _, graph = block(Separate())
    pruned = copy.deepcopy(model)
    table = model.attn.table.detach().clone()
    prune(pruned, graph, {"attn": [1, 3, 0]})
    assert (pruned.attn.n_heads, pruned.attn.all_head_size) == (3, 3 * D)
    assert torch.equal(pruned.attn.table, table[:, [0, 1, 3]])
    assert (model.attn.n_heads, model.attn.all_head_size, model.attn.table.shape) == (H, H * D, (T * T, H))
    model, _, graph = block(Packed())
    prune(model, graph, {"attn": [2]})
    assert (model.attn.num_heads, model.attn.head_dim) == (1, D)
    model.attn.num_heads = 3
    with pytest.raises(Exception, match="attn has 3 output channels, and the channel graph was made for 4"):
        prune(model, graph, {"attn": [2]})


def test_torch_s_attention_is_replaced_where_heads_went_and_only_there():
    model, inputs, graph = block(OfTorch(batch_first=True))
    pruned = copy.deepcopy(model)
    prune(pruned, graph, {"fc1": [0, 1]})
    assert type(pruned.attn.attention) is nn.MultiheadAttention
    prune(pruned, channel_graph(pruned, inputs), {"attn.attention": [0, 2]})
    assert type(pruned.attn.attention) is HeadAttention
    assert (pruned.attn.attention.num_heads, pruned.attn.attention.embed_dim) == (2, 12)
    assert pruned.attn.attention.in_proj_weight.shape == (3 * 6, 12)
    assert type(model.attn.attention) is nn.MultiheadAttention
    again = channel_graph(pruned, inputs)
    assert heads_of(again) == {"attn.attention": 2}
    check_plan(pruned, inputs, again, {"attn.attention": [1]})


class Encoder(nn.Module):
    """Tokens (integers) through torch's encoder; token 0 is padding."""

    def __init__(self, batch_first: bool, norm_first: bool) -> None:
        super().__init__()
        self.batch_first, self.embed = batch_first, nn.Embedding(20, 12)
        layer = nn.TransformerEncoderLayer(12, H, 16, batch_first=batch_first, norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first and batch_first)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, padding = self.embed(tokens), tokens == 0
        x = self.layers(x if self.batch_first else x.transpose(0, 1), src_key_padding_mask=padding)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head((x * ~padding[..., None]).mean(1))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_of_torch_is_pruned_with_integers_and_padding(batch_first, norm_first):
    torch.manual_seed(0)
    model, inputs = Encoder(batch_first, norm_first).eval(), (torch.tensor([[3, 9, 1, 19, 0]]),)
    graph = channel_graph(model, inputs)
    assert [group.name for group in graph.groups] == [
        "embed", "layers.layers.0.self_attn", "layers.layers.0.linear1", "layers.layers.1.self_attn",
        "layers.layers.1.linear1",
    ]  # fmt: skip
    for seed in range(2):
        pruned = check_plan(model, inputs, graph, draw(graph, seed))
    prune(pruned := copy.deepcopy(model), graph, {"layers.layers.0.self_attn": [0, 1]})
    with torch.no_grad():
        assert pruned(torch.tensor([[3, 9, 1, 19, 0], [3, 9, 0, 0, 0]])).isfinite().all()


class Shared(nn.Module):
    """Two attentions with one table of biases by head, as in T5: their heads go together."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(T * T, H)
        self.one, self.two = Biased(), Biased()
        self.head = nn.Linear(E, 5)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias(torch.arange(T * T, device=x.device)).T.reshape(-1, T, T)
        x = x + self.one(F.layer_norm(x, (E,)), bias)
        return self.head((x + self.two(F.layer_norm(x, (E,)), bias)).mean(1))


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = H, D
        self.q, self.k, self.v, self.o = (nn.Linear(*s) for s in [(E, H * D)] * 3 + [(H * D, E)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, bias[None]).transpose(1, 2).flatten(2))


def test_attentions_that_share_a_layer_lose_the_same_heads():
    torch.manual_seed(0)
    model, inputs = Shared().eval(), (torch.randn(1, T, E),)
    graph = channel_graph(model, inputs)
    assert heads_of(graph) == {"one": 4}
    pruned = check_plan(model, inputs, graph, {"one": [0, 3]})
    assert (pruned.one.heads, pruned.two.heads, pruned.bias.embedding_dim) == (2, 2, 2)


class FromWidth(Packed):
    """The commonest idiom: the size of a head is the width divided by their number."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, x.shape[2] // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class FromWidthOfTwelve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attn, self.after = nn.Linear(E, 12), FromWidth(), nn.Linear(12, E)
        self.attn.qkv, self.attn.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attn(self.before(x)))


def test_heads_that_stay_have_a_reason():
    graph = block(FromWidthOfTwelve())[2]
    assert not heads_of(graph)
    assert graph.skipped["attn.attn.qkv"].startswith("no head of attn.attn can go alone: the forward pass relies on")
    single = nn.MultiheadAttention(12, 1)
    attention = OfTorch()
    attention.attention = single
    assert block(attention)[2].skipped["attn.attention"] == "a single head"


def test_any_number_of_heads_is_allowed_whatever_channels_are_rounded_to():
    graph = block(Packed())[2]
    assert allowed_counts(graph.groups[0], 8) == [1, 2, 3, 4]
    assert allowed_counts(graph.groups[0], 8, min_keep=0.5) == [2, 3, 4]
    assert allowed_counts(graph.groups[1], 4) == [4, 8, 12, 16]


class InOneClass(nn.Module):
    """The network itself counts the heads, and a layer reads what its projection gives."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = H
        self.q, self.k, self.v = (nn.Linear(E, H * D) for _ in range(3))
        self.proj, self.fc = nn.Linear(H * D, E), nn.Linear(E, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.fc(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).relu()).mean(1)


def test_heads_counted_by_the_network_itself_have_a_name_of_their_own():
    torch.manual_seed(0)
    model, inputs = InOneClass().eval(), (torch.randn(1, T, E),)
    graph = channel_graph(model, inputs)
    assert [(g.name, g.units, g.noun) for g in graph.groups] == [("proj#heads", 4, "heads"), ("proj", 10, "channels")]
    # The projection's 3 inputs and 7 outputs; 3 layers make 3 of the width 10, products T x T x 3 twice, and fc.
    macs = T * 3 * 3 * E + 2 * T * T * 3 + T * 3 * 7 + T * 7 * 5
    assert graph.costs([1, 7])["macs"] == macs == count_macs(check_plan(
        model, inputs, graph, {"proj#heads": [2], "proj": [0, 1, 2, 3, 4, 5, 8]}), inputs)[0]  # fmt: skip


class Attending(Separate):
    """A method other than the forward pass is called."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def attend(self, x: Tensor) -> Tensor:
        return super().forward(x)


class CallsAttend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = Attending()
        self.fc1, self.fc2 = nn.Linear(E, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.at.attend(x)).relu()).mean(1)


def test_an_attention_whose_forward_pass_never_runs_loses_heads_too():
    torch.manual_seed(0)
    model, inputs = CallsAttend().eval(), (torch.randn(1, T, E),)
    graph = channel_graph(model, inputs)
    assert {g.name: g.units for g in graph.groups} == {"at": 4, "at.dense": 10, "fc1": 8}
    check_plan(model, inputs, graph, {"at": [0, 3], "fc1": [1, 2, 7]})


class Product(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


class Delegating(nn.Module):
    """The products are done by a module without weights, which may lie deeper; the input's width is written down."""

    def __init__(self, nested: bool = False) -> None:
        super().__init__()
        self.num_heads, self.dim, self.max_length = H, H * D, H * D
        self.q, self.k, self.v, self.proj = (nn.Linear(H * D, H * D) for _ in range(4))
        self.attention = nn.ModuleDict({"inner": Product()}) if nested else Product()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        product = self.attention["inner"] if isinstance(self.attention, nn.ModuleDict) else self.attention
        return self.proj(product(q, k, v).transpose(1, 2).flatten(2)) + x[..., : self.dim] + x[:, : self.max_length]


@pytest.mark.parametrize("nested", [False, True])
def test_products_in_a_module_without_weights_are_the_heads_and_unneeded_numbers_stay(nested):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(Delegating(nested), nn.Linear(12, 5)).eval(), (torch.randn(1, T, 12),)
    graph = channel_graph(model, inputs)
    assert [(g.name, g.units, g.noun) for g in graph.groups] == [("0", 4, "heads")]
    # Queries, keys, values and projection of 6 features each, two products, and the last layer.
    assert graph.costs([2])["macs"] == 4 * T * 6 * 12 + 2 * T * T * 6 + T * 12 * 5
    pruned = check_plan(model, inputs, graph, {"0": [1, 2]})
    assert (pruned[0].num_heads, pruned[0].dim, pruned[0].max_length) == (2, 12, 12)


class Mixed(Separate):
    """One number of the heads' width is read and another is the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = H * D
        self.query, self.key, self.value = (nn.Linear(12, H * D) for _ in range(3))
        self.dense = nn.Linear(H * D, 12)


def test_of_two_sizes_of_one_value_only_the_one_that_is_read_shrinks():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(Mixed(), nn.Linear(12, 5)).eval(), (torch.randn(1, T, 12),)
    graph = channel_graph(model, inputs)
    pruned = check_plan(model, inputs, graph, {"0": [1, 2]})
    assert (pruned[0].n_heads, pruned[0].all_head_size, pruned[0].input_size) == (2, 6, 12)


# Networks that nobody here wrote, small: (heads of each attention, share of the MACs that can go).
def timm_model(name: str, **options: Any) -> tuple[nn.Module, tuple[Tensor]]:
    torchvision_ops.load()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10, img_size=32, **options).eval(), (torch.randn(1, 3, 32, 32),)


def text_model(kind: str, **options: Any) -> tuple[nn.Module, tuple[Tensor]]:
    torchvision_ops.load()  # which some of its models import
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, max_position_embeddings=20, num_labels=3, **options)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval(), (torch.randint(2, 50, (1, 12)),)


def gpt2() -> tuple[nn.Module, tuple[Tensor]]:
    """Layers of one weight ``(inputs, outputs)``, and one for queries, keys and values."""
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return text_model("GPT2", n_embd=32, n_layer=2, n_head=4, use_cache=False, **tokens)


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
OTHERS = {
    "vit": (lambda: timm_model("vit_tiny_patch16_224", depth=2), {"blocks.0.attn": 3, "blocks.1.attn": 3}),
    "deit": (lambda: timm_model("deit_tiny_patch16_224", depth=1), {"blocks.0.attn": 3}),
    "swin": (
        lambda: timm_model("swin_tiny_patch4_window7_224", window_size=4, embed_dim=32, depths=(2,), num_heads=(4,)),
        {"layers.0.blocks.0.attn": 4, "layers.0.blocks.1.attn": 4},
    ),
    "bert": (lambda: text_model("Bert", **BERT), {f"bert.encoder.layer.{i}.attention.self": 4 for i in range(2)}),
    "eager_bert": (
        lambda: text_model("Bert", attn_implementation="eager", **BERT),
        {f"bert.encoder.layer.{i}.attention.self": 4 for i in range(2)},
    ),
    "roberta": (
        lambda: text_model("Roberta", **BERT), {f"roberta.encoder.layer.{i}.attention.self": 4 for i in range(2)}
    ),
    "distilbert": (
        lambda: text_model("DistilBert", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        {f"distilbert.transformer.layer.{i}.attention": 4 for i in range(2)},
    ),
    "gpt2": (lambda: gpt2(), {f"transformer.h.{i}.attn": 4 for i in range(2)}),
    "llama": (
        lambda: text_model("Llama", num_key_value_heads=2, pad_token_id=0, use_cache=False, **BERT),
        {f"model.layers.{i}.self_attn": 2 for i in range(2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_people_s_transformers_lose_heads_and_mlp_features(name):
    torch.manual_seed(0)
    model, inputs = OTHERS[name][0]()
    graph = channel_graph(model, inputs)
    assert heads_of(graph) == OTHERS[name][1]
    # An MLP, gated or not, for each attention.
    assert len([g for g in graph.groups if g.noun == "channels"]) >= len(heads_of(graph))
    half = {group.name: np.arange(group.units)[-(group.units // 2) :] for group in graph.groups}
    pruned = copy.deepcopy(model)
    prune(pruned, graph, half)
    costs = graph.costs([len(units) for units in half.values()])
    assert costs == {"macs": count_macs(pruned, inputs)[0], "params": sum(p.numel() for p in pruned.parameters())}
    with torch.no_grad():
        for one, other in zip(*(list_of(each(*inputs)) for each in (pruned, model)), strict=True):
            assert one.shape == other.shape
            assert one.isfinite().all()


def test_gpt2_loses_features_heads_and_its_stream_at_costs_worked_out_by_hand():
    torch.manual_seed(0)
    model, inputs = gpt2()
    graph = channel_graph(model, inputs)
    blocks = [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn", "mlp.c_fc")]
    assert [group.name for group in graph.groups] == ["transformer.wte", *blocks]
    assert graph.units.tolist() == [32, 4, 128, 4, 128]
    assert list(graph.skipped) == ["score"]

    def by_hand(e: int, *blocks: int) -> int:
        """12 tokens; heads of 8 features, each with products of 12 by 12 by 8 for the scores and the values."""
        heads, features = sum(blocks[::2]), sum(blocks[1::2])
        return 12 * (4 * 8 * heads * e + 2 * features * e + 3 * e) + 2 * 12 * 12 * 8 * heads

    for counts in ((32, 4, 128, 4, 128), (20, 3, 50, 1, 7), (1, 1, 1, 1, 1)):
        assert graph.costs(counts)["macs"] == by_hand(*counts)
    pruned = check_plan(model, inputs, graph, draw(graph, 0))
    pruned = check_plan(model, inputs, graph, {"transformer.h.0.mlp.c_fc": [3, 100], "transformer.h.0.attn": [0, 2]})
    block = pruned.transformer.h[0]
    assert (block.mlp.c_fc.nf, block.mlp.c_fc.weight.shape, block.mlp.c_proj.nx) == (2, (32, 2), 2)
    assert (block.attn.num_heads, block.attn.split_size, block.attn.c_attn.weight.shape) == (2, 16, (32, 48))
    assert torch.equal(block.mlp.c_fc.weight, model.transformer.h[0].mlp.c_fc.weight[:, [3, 100]])


def list_of(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [x for x in outputs.to_tuple() if isinstance(x, Tensor)]
