"""State-dict files: read without running code, checked entry by entry, and loaded whole or not at all."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pfray.errors import WeightsError, first_line, short, shown
from pfray.nn.checks import unfit_values

SAVE = "Remedy: save it again with torch.save(model.state_dict(), path)"


def load_weights(model: nn.Module, path: Path, classes: Sequence[int] | None = None) -> list[str]:
    """Load a state-dict file strictly, torch's or ``.safetensors``. Returns notes on conversions, a line each.

    classes: for a task with some classes of a data set, the outputs to keep of a head for all of them.
    Raises WeightsError that names the file, or the entries that do not fit.
    """
    title = f"model.weights: {short(str(path), 200)}"
    state = _read(title, path)
    _check_state(title, state)
    own = model.state_dict()
    if classes is not None:
        state = {k: _cut_head(v, own[k], classes) if k in own else v for k, v in state.items()}
    _check_fit(title, state, own)
    others = {_plain(state[k]) for k in own if state[k].dtype != own[k].dtype}
    state = {k: v.to(own[k].dtype) for k, v in state.items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in state.items():
        if count := unfit_values(value, name in parameters):
            raise WeightsError(
                f"{title}: {count} of {value.numel()} numbers of {short(name)} are NaN or infinite in float32. "
                "Remedy: weights of a training that did not diverge"
            )
    try:
        model.load_state_dict(state)
    except Exception as error:  # from a module with its own way of loading
        raise WeightsError(
            f"{title} cannot be loaded ({first_line(error)}). Remedy: choose the model it is for"
        ) from error
    return [f"{title} is {' and '.join(sorted(others))}; the model is float32 and has it converted"] if others else []


def _read(title: str, path: Path) -> Any:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise WeightsError(f"model.weights: no file {short(str(path), 200)}. Remedy: check the path") from None
    # A device may never end, and a pipe without a writer never begins.
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise WeightsError(f"{title} is {kind}, not a file. Remedy: the path of a state-dict file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # everything torch warns of is refused below
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise WeightsError(f"{title} is not a readable state-dict file ({first_line(error)}). {SAVE}") from error


def _check_state(title: str, state: Any) -> None:
    """Raise WeightsError unless it is a dict of names and dense tensors with values."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{title} holds no state dict. Remedy: torch.save(model.state_dict(), path)")
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


def _check_fit(title: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise WeightsError if names, shapes or types are not the model's. Floats of any precision are convertible."""

    def differing(fits: Callable[[Tensor, Tensor], bool], shape: Callable[[Tensor], object]) -> list[str]:
        both = [(name, state[name], own[name]) for name in own if name in state]
        return [f"{k} {shape(value)} instead of {shape(mine)}" for k, value, mine in both if not fits(value, mine)]

    reshaped = differing(lambda value, mine: value.shape == mine.shape, lambda value: tuple(value.shape))
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra or reshaped:
        parts = [("missing", missing), ("unknown", extra), ("of another shape", reshaped)]
        what = "; ".join(f"{kind}: {_few(keys)}" for kind, keys in parts if keys)
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
