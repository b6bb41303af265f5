"""Attention heads as groups: the heads found, cut and counted, in modules of several kinds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pfray.nn.attention import HeadAttention
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.channels.keep_ratios import allowed_counts
from pfray.pruning.channels.prune import prune
from tests.zoo.attentions import D, E, Grouped, H, OfTorch, Packed, Separate, T, block, heads_of
from tests.zoo.pruning import check_plan, draw

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


def test_any_number_of_heads_is_allowed_whatever_channels_are_rounded_to():
    graph = block(Packed())[2]
    assert allowed_counts(graph.groups[0], 8) == [1, 2, 3, 4]
    assert allowed_counts(graph.groups[0], 8, min_keep=0.5) == [2, 3, 4]
    assert allowed_counts(graph.groups[1], 4) == [4, 8, 12, 16]
