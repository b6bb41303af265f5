"""Weights of a file, checked entry by entry, and loaded into a model whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfray.errors import WeightsError, first_line, short, shown
from pfray.nn.checks import unfit_values
from pfray.nn.state_dicts import COUNT, find_state
from pfray.nn.weights_file import SAVE, read


def load_weights(model: nn.Module, path: Path, classes: Sequence[int] | None = None) -> list[str]:
    """Load a weights file strictly, torch's or ``.safetensors``. Returns notes on what was changed, a line each.

    The file holds a state dict, or a dictionary with one in an entry, such as a training's checkpoint; prefixes that a
    wrapper gave the names are left out.

    A model's ``unused_weights``, if it has them, are prefixes of names that its published files have beside its own,
    such as heads that only training used; they are left out.

    classes: for a task with some classes of a data set, the outputs to keep of a head for all of them.
    Raises WeightsError that names the file, or the entries that do not fit.
    """
    title = f"model.weights: {short(str(path), 200)}"
    content = read(title, path)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = find_state(content, own)
    if found is None:
        raise WeightsError(f"{title} holds no state dict. Remedy: torch.save(model.state_dict(), path)")
    inside = f"{title}, entry '{short(found.where)}'" if found.where else title
    unused = _unused(model, found.state, own)
    state = {key: value for key, value in found.state.items() if key not in unused}
    _check_state(inside, state)
    if classes is not None:
        state = {k: _cut_head(v, own[k], classes) if k in own else v for k, v in state.items()}
    counts = [name for name in own if name.endswith(COUNT) and name not in state and found.complete]
    state = {**state, **{name: own[name] for name in counts}}
    _check_fit(inside, state, own, found.notes if not found.complete else [])
    others = {_plain(state[k]) for k in own if state[k].dtype != own[k].dtype}
    state = {k: v.to(own[k].dtype) for k, v in state.items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in state.items():
        if count := unfit_values(value, name in parameters):
            raise WeightsError(
                f"{inside}: {count} of {value.numel()} numbers of {short(name)} are NaN or infinite in float32. "
                "Remedy: weights of a training that did not diverge"
            )
    try:
        model.load_state_dict(state)
    except Exception as error:  # from a module with its own way of loading
        raise WeightsError(
            f"{title} cannot be loaded ({first_line(error)}). Remedy: choose the model it is for"
        ) from error
    notes = [f"{title}: {note}" for note in found.notes]
    if unused:
        prefixes = " and ".join(f"'{prefix}'" for prefix in dict.fromkeys(unused.values()))
        notes.append(f"{title}: {prefixes} left out, which the model has no use for")
    if counts:
        notes.append(f"{title} has no {COUNT} of batch norms; the model's own is kept")
    if others:
        notes.append(f"{title} is {' and '.join(sorted(others))}; the model is float32 and has it converted")
    return notes


def _unused(model: nn.Module, state: Mapping[Any, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Names in the file that begin with one of the model's ``unused_weights``, and that prefix of each."""
    prefixes = [str(prefix) for prefix in getattr(model, "unused_weights", ())]
    others = [name for name in state if isinstance(name, str) and name not in own]
    return {name: prefix for prefix in prefixes for name in others if name.startswith(prefix)}


def _check_state(title: str, state: Mapping[Any, Tensor]) -> None:
    """Raise WeightsError unless it has names and dense tensors with values."""
    for name, value in state.items():
        if not isinstance(name, str):
            raise WeightsError(
                f"{title} has the {type(name).__name__} {shown(name)} as a key, where a state dict has names. {SAVE}"
            )
        where, what = f"{title}: {short(name)}", None
        if value.is_meta:
            what = "a tensor without values (device meta)"
        elif value.is_nested or value.layout != torch.strided:
            what = f"a tensor of the layout {'nested' if value.is_nested else _named(value.layout)}, not a dense one"
        elif value.is_quantized:
            what = f"a quantized tensor ({_named(value.dtype)})"
        if what:
            raise WeightsError(f"{where} is {what}. Remedy: the weights of a plain model, on the CPU")


def _check_fit(title: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor], remarks: Sequence[str]) -> None:
    """Raise WeightsError if names, shapes or types are not the model's. Floats of any precision are convertible.

    remarks: reasons why the names do not fit, beside the names themselves.
    """

    def differing(fits: Callable[[Tensor, Tensor], bool], shape: Callable[[Tensor], object]) -> list[str]:
        both = [(name, state[name], own[name]) for name in own if name in state]
        return [f"{k} {shape(value)} instead of {shape(mine)}" for k, value, mine in both if not fits(value, mine)]

    reshaped = differing(lambda value, mine: value.shape == mine.shape, lambda value: tuple(value.shape))
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra or reshaped:
        parts = [("missing", missing), ("unknown", extra), ("of another shape", reshaped)]
        what = "; ".join([*remarks, *(f"{kind}: {_few(keys)}" for kind, keys in parts if keys)])
        raise WeightsError(f"{title} is of another architecture ({what}). Remedy: choose the model it is for")
    if retyped := differing(_convertible, _plain):
        raise WeightsError(f"{title} is of another type ({_few(retyped)}). Remedy: save the weights that were trained")


def _convertible(value: Tensor, mine: Tensor) -> bool:
    return value.dtype == mine.dtype or (value.is_floating_point() and mine.is_floating_point())


def _cut_head(tensor: Tensor, own: Tensor, classes: Sequence[int]) -> Tensor:
    """The rows of ``classes`` if the model has one row for each class and the file has more; else the tensor."""
    if not own.dim() == tensor.dim() > 0 or tensor.shape[1:] != own.shape[1:] or len(own) != len(classes):
        return tensor
    return tensor[list(classes)] if len(tensor) > max(len(own), *classes) else tensor


def _few(keys: Sequence[str], most: int = 4) -> str:
    shorter = ", ".join(short(key, 120) for key in keys[:most])
    return shorter + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _plain(tensor: Tensor) -> str:
    return _named(tensor.dtype)


def _named(kind: object) -> str:
    return str(kind).removeprefix("torch.")
