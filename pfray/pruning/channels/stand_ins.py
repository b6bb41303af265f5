"""Plain layers in place of modules whose weights torch-pruning does not know, for the time of a trace.

A recurrent layer becomes a linear layer from its inputs to its hidden features, and ``nn.MultiheadAttention`` one from
its inputs to its projection. transformers' ``Conv1D`` becomes the linear layer that it is, whose weight is transposed.
Cuts of these layers are then translated to cuts of the modules' own tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pfray.nn.attention import HeadAttention
from pfray.nn.layers import is_conv1d
from pfray.pruning.channels.dependency import Candidate, Cut
from pfray.pruning.channels.inside import Axis, Inside

# Blocks of rows in a recurrent layer's weights, one for each gate.
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class _Attention(nn.Module):
    num_heads: int

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        self.__dict__.update({key: value for key, value in vars(module).items() if not key.startswith("_")})
        self.in_proj_weight, self.in_proj_bias, self._qkv_same_embed_dim = None, None, False
        self.plain, self.out_proj = nn.Linear(module.embed_dim, module.out_proj.in_features), module.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any = None, need_weights: bool = True,
        attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        tokens = -2 if self.batch_first else 0
        output = self.out_proj(self.plain(query + (key + value).mean(tokens, keepdim=True)))
        shape = [query.shape[tokens], key.shape[tokens]]
        if query.dim() == 3:
            shape.insert(0, query.shape[0 if self.batch_first else 1])
        if not average_attn_weights:
            shape.insert(-2, self.num_heads)
        return output, query.new_zeros(shape) if need_weights else None


class _Recurrent(nn.Module):
    num_layers: int

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.__dict__.update({key: value for key, value in vars(module).items() if not key.startswith("_")})
        self.plain = nn.Linear(module.input_size, module.hidden_size)

    def flatten_parameters(self) -> None:
        """Does nothing, as on a processor."""

    def forward(self, x: Tensor, start: Any = None) -> tuple[Tensor, Any]:
        directions = 2 if self.bidirectional else 1
        hidden = self.plain(x)
        steps_first = not self.batch_first or x.dim() == 2
        for state in (start if isinstance(start, tuple) else (start,)) if start is not None else ():
            first = state.mean(0)
            hidden = hidden + (first if steps_first else first[:, None])
        last = hidden.mean(0 if steps_first else 1)
        final = torch.stack([last] * directions * self.num_layers)
        output = torch.cat([hidden] * directions, -1) if directions == 2 else hidden
        return output, (final, final) if self.mode == "LSTM" else final


def _linear(module: Any) -> nn.Linear:
    inputs, outputs = module.weight.shape
    linear = nn.Linear(inputs, outputs)
    linear.weight, linear.bias = nn.Parameter(module.weight.detach().T), module.bias
    return linear


def _stand_in(module: nn.Module) -> nn.Module | None:
    if is_conv1d(module):
        return _linear(module)
    if type(module) in (nn.LSTM, nn.GRU, nn.RNN) and not module.proj_size:
        return _Recurrent(module)  # type: ignore[arg-type]
    if type(module) in (nn.MultiheadAttention, HeadAttention) and module.in_proj_weight is not None:
        return _Attention(module)  # type: ignore[arg-type]
    return None


def put_stand_ins(model: nn.Module) -> None:
    """Replace recurrent layers and ``nn.MultiheadAttention`` in ``model``, in place; its outputs are others then."""
    made: dict[nn.Module, nn.Module | None] = {}
    for parent in list(model.modules()):
        for name, module in list(parent._modules.items()):
            if module is not None and (new := made.setdefault(module, _stand_in(module))) is not None:
                parent._modules[name] = new


def translated(model: nn.Module, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of a trace with stand-ins, for ``model`` itself."""
    found = []
    for candidate in candidates:
        cuts = {(own.layer, own.side, own.kind): own for cut in candidate.cuts for own in _cuts_of(model, cut)}
        # Features inside an attention go head by head.
        if not any(cut.kind == "MHA" and cut.side == "out" for cut in cuts.values()):
            name = candidate.name
            name = name.removesuffix(".plain") if isinstance(_owner(model, name), nn.RNNBase) else name
            found.append(replace(candidate, name=name, cuts=tuple(cuts.values())))
    return found


def _owner(model: nn.Module, layer: str) -> nn.Module | None:
    """The module that the stand-in's layer ``layer`` stands for."""
    outer, _, name = layer.rpartition(".")
    if name != "plain" or not outer:
        return None
    owner = model.get_submodule(outer)
    return owner if _stand_in(owner) is not None else None


def _cuts_of(model: nn.Module, cut: Cut) -> list[Cut]:
    owner, layer = _owner(model, cut.layer), cut.layer.rpartition(".")[0]
    if cut.kind == "LINEAR" and owner is None and is_conv1d(module := model.get_submodule(cut.layer)):
        axes = (Axis("weight", 1), Axis("bias", 0)) if cut.side == "out" else (Axis("weight", 0, reads=True),)
        # The number of inputs is for printing alone.
        numbers = ("nf",) if cut.side == "out" else ("nx",) if hasattr(module, "nx") else ()
        return [replace(cut, kind="CONV1D", inside=Inside(axes, _equal(module, numbers)))]
    if isinstance(owner, nn.MultiheadAttention):
        inside = Inside((Axis("in_proj_weight", 1, reads=True),), _equal(owner, ("embed_dim", "kdim", "vdim")))
        return [replace(cut, layer=layer, kind="MHA", inside=inside), *without_nested(model, layer, cut)]
    if cut.layer.endswith("out_proj") and cut.side == "out" and _owner(model, f"{layer}.plain") is not None:
        # torch's own forward pass wants outputs of one width with the inputs.
        spelled_out = Cut(layer, "out", cut.index, cut.size, "SETTING", inside=Inside())
        return [cut, spelled_out, *without_nested(model, layer, cut)]
    if isinstance(owner, nn.RNNBase):
        inside = _hidden(owner) if cut.side == "out" else _inputs(owner)
        return [replace(cut, layer=layer, kind="RECURRENT", inside=inside)]
    return [cut]


def without_nested(model: nn.Module, name: str, cut: Cut) -> list[Cut]:
    """Cuts that keep encoders around the attention ``name`` from making nested tensors, once a unit of ``cut`` goes.

    Nested tensors pass through the fused kernels only, which compute whole modules.
    """
    off = Inside(settings=(("use_nested_tensor", False),))
    return [
        Cut(outer, "out", cut.index, cut.size, "SETTING", inside=off)
        for outer, encoder in model.named_modules()
        if isinstance(encoder, nn.TransformerEncoder) and name.startswith(f"{outer}.".lstrip("."))
    ]


def _equal(module: Any, names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple((name, getattr(module, name)) for name in names)


def _suffixes(module: nn.RNNBase, layers: range) -> list[str]:
    return [f"_l{layer}{way}" for layer in layers for way in (("", "_reverse") if module.bidirectional else ("",))]


def _inputs(module: nn.RNNBase) -> Inside:
    axes = tuple(Axis(f"weight_ih{suffix}", 1, reads=True) for suffix in _suffixes(module, range(1)))
    return Inside(axes, _equal(module, ("input_size",)))


def _hidden(module: nn.RNNBase) -> Inside:
    """The hidden features, the same of all layers and directions."""
    gates, every = GATES[module.mode], _suffixes(module, range(module.num_layers))
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
    axes = [Axis(f"{kind}{suffix}", 0, gates) for kind in kinds for suffix in every]
    axes += [Axis(f"weight_hh{suffix}", 1, reads=True) for suffix in every]
    # A layer reads both directions of the one before.
    parts = 2 if module.bidirectional else 1
    axes += [Axis(f"weight_ih{s}", 1, parts, True) for s in _suffixes(module, range(1, module.num_layers))]
    return Inside(tuple(axes), _equal(module, ("hidden_size",)))
