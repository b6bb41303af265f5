"""What a user gave or returned in place of a model, in words, with the way to one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pfray.errors import short, shown
from pfray.nn.state_dicts import find_state

# How the files of weights end.
WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl")
# Names of the libraries' functions that make models by a name.
LIBRARIES = {"timm": "timm.create_model({!r})", "hf": "transformers.AutoModel.from_pretrained({!r})"}


def no_module(value: Any) -> str:
    """Such as ``the class Net, not a torch.nn.Module. Remedy: Net(...)``."""
    what, remedy = _words(value)
    return f"{what}, not a torch.nn.Module. Remedy: {remedy}"


def _words(value: Any) -> tuple[str, str]:
    kind = type(value).__name__
    if inspect.isclass(value):
        return f"the class {value.__name__}", f"{value.__name__}(...), an instance"
    if isinstance(value, Mapping) and (found := find_state(value, {})) is not None and found.state:
        where = f" in its entry '{short(found.where)}'" if found.where else ""
        return (
            f"a state dict of {len(found.state)} tensors ({kind}{where})",
            "build the model, model.load_state_dict(...), and give the model",
        )
    if isinstance(value, str | Path):
        return shown(str(value)), _of_text(str(value))
    if isinstance(value, DataLoader | Dataset):
        return f"a {kind}", "the model first, then the data: compress(model, train, ...)"
    if isinstance(value, list | tuple) and value and all(isinstance(part, nn.Module) for part in value):
        return f"a {kind} of {len(value)} modules", "nn.Sequential(*layers), or one of them"
    if isinstance(getattr(value, "model", None), nn.Module):  # pipelines and trainers
        return f"a {kind}", "the .model that it holds"
    if inspect.isroutine(value):
        return f"the function {value.__name__}", f"{value.__name__}(...), if it makes the model"
    if isinstance(value, Tensor):
        return f"a tensor of the shape {tuple(value.shape)}", "a trained torch.nn.Module"
    return f"a {kind}", "a trained torch.nn.Module"


def _of_text(text: str) -> str:
    if text.lower().endswith(WEIGHTS):
        return "build the model, load the file with model.load_state_dict(torch.load(...)), and give the model"
    prefix, _, rest = text.partition(":")
    if prefix in LIBRARIES and rest:
        return f"{LIBRARIES[prefix].format(short(rest))}; a name is enough in an experiment file only"
    return "the model itself; a name is enough in an experiment file only"
