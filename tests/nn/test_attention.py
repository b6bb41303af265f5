"""Attention of torch with any number of heads, against torch's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfray.nn.attention import HeadAttention, calling_projections, restore_whole, spell_out

B, T, S, E, H = 3, 5, 7, 12, 4

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without_bias": {"bias": False},
    "other_widths": {"kdim": 6, "vdim": 10},
    "added_keys": {"add_bias_kv": True, "add_zero_attn": True},
}


def pair(**options: Any) -> tuple[nn.MultiheadAttention, nn.Module]:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(E, H, **options).eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.5)
    other = copy.deepcopy(own)
    spell_out(other)
    assert type(other) is HeadAttention
    return own, other


def inputs(batch_first: bool, batched: bool, key: int = E, value: int = E) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.randn(B, T, E), torch.randn(B, S, key), torch.randn(B, S, value)
    if not batched:
        return tuple(x[0] for x in found)  # type: ignore[return-value]
    return found if batch_first else tuple(x.transpose(0, 1) for x in found)  # type: ignore[return-value]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_outputs_and_weights_are_those_of_torch(name, batch_first, batched):
    own, other = pair(batch_first=batch_first, **OPTIONS[name])
    given = inputs(batch_first, batched, own.kdim, own.vdim)
    padding = torch.zeros(B, S, dtype=torch.bool) if batched else torch.zeros(S, dtype=torch.bool)
    padding[..., -2:] = True
    masks = [torch.ones(T, S, dtype=torch.bool).triu(2), torch.randn(B * H if batched else H, T, S)]
    for wanted in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        for mask in (None, *masks):
            # torch takes a padding and a mask of one kind only.
            for hidden in (None, padding) if mask is None or mask.dtype == torch.bool else (None,):
                arguments = {"attn_mask": mask, "key_padding_mask": hidden, **wanted}
                first, second = own(*given, **arguments), other(*given, **arguments)
                torch.testing.assert_close(second[0], first[0])
                assert (first[1] is None) == (second[1] is None)
                if first[1] is not None:
                    torch.testing.assert_close(second[1], first[1])


def test_a_causal_hint_needs_its_mask():
    own, other = pair(batch_first=True)
    x, mask = torch.randn(B, T, E), torch.ones(T, T, dtype=torch.bool).triu(1)
    first, second = (each(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0] for each in (own, other))
    torch.testing.assert_close(second, first)
    with pytest.raises(ValueError, match="is_causal is given without attn_mask"):
        other(x, x, x, is_causal=True)


def test_the_projection_is_seen_by_hooks_for_as_long_as_wanted():
    own, _ = pair(batch_first=True)
    seen: list[Tensor] = []
    own.out_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x, names = torch.randn(B, T, E), list(own.state_dict())
    expected = own(x, x, x)[0]
    assert not seen
    with calling_projections(own):
        found = own(x, x, x)[0]
    assert type(own) is nn.MultiheadAttention
    assert [maps.shape for maps in seen] == [(B, T, E)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own(x, x, x)[0], expected)
    assert len(seen) == 1
    assert list(own.state_dict()) == names


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_layer_gives_what_its_fused_kernel_gives(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 20, batch_first=True, norm_first=norm_first).eval()
    x, padding = torch.randn(B, T, E), torch.zeros(B, T, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.no_grad():
        for hidden in (None, padding):
            fused = layer(x, src_key_padding_mask=hidden)
            with calling_projections(layer):
                torch.testing.assert_close(layer(x, src_key_padding_mask=hidden), fused)


def test_fewer_heads_stay_spelled_out_and_travel():
    _, other = pair(batch_first=True)
    # The first head is taken out by hand.
    size = E // H
    keep = torch.tensor([part * E + row for part in range(3) for row in range(size, E)])
    expected = copy.deepcopy(other)
    with torch.no_grad():
        expected.out_proj.weight[:, :size] = 0.0
    other.in_proj_weight = nn.Parameter(other.in_proj_weight[keep])
    other.in_proj_bias = nn.Parameter(other.in_proj_bias[keep])
    other.out_proj.weight = nn.Parameter(other.out_proj.weight[:, size:])
    other.num_heads = H - 1
    restore_whole(other)
    assert type(other) is HeadAttention
    x = torch.randn(B, T, E)
    travelled = pickle.loads(pickle.dumps(copy.deepcopy(other)))
    torch.testing.assert_close(travelled(x, x, x)[0], expected(x, x, x)[0])
    program = torch.export.export(travelled, (x, x, x), strict=False).module()
    torch.testing.assert_close(program(x, x, x)[0], expected(x, x, x)[0])
