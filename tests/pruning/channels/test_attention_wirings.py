"""Attention heads as groups where the network itself counts them, layers share them, or another method multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.measure.macs import count_macs
from pfray.pruning.channels.graph import channel_graph
from tests.zoo.attentions import D, E, H, OfTorch, Packed, Separate, T, block, heads_of
from tests.zoo.pruning import check_plan


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
