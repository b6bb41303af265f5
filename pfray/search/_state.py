"""What a search knows beyond its finished trials, in two files: ``state.json``, and safetensors for what is large.

The first names the second, and comes after it: whenever the writing stops, the two that belong together are there, or
the two before them. No pickle: whoever can write into a run folder must not thereby run code.
"""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfray.utils.cache import load_tensors, save_tensors
from pfray.utils.files import write_atomically

STATE = "state.json"
FORMAT, VERSION = "pfray search", 1
# What versions before this one kept. It is not read.
PICKLE = "searcher.pkl"

_TENSORS = re.compile(r"state-[0-9a-f]{8}\.safetensors")


class UnusableState(ValueError):
    """The reason, a few words."""


def write(folder: Path, of: Mapping[str, Any], values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Keep the state in ``folder``. of: whose it is, and of how many trials (``told``). Raises StorageError."""
    name = None
    if tensors:
        name = f"state-{uuid.uuid4().hex[:8]}.safetensors"
        save_tensors(folder / name, tensors)
    state = {"of": of, "tensors": name, "values": values}
    content = {"format": FORMAT, "version": VERSION, "checksum": _checksum(state), **state}
    write_atomically(folder / STATE, json.dumps(content))
    for path in folder.glob("state-*.safetensors"):
        if path.name != name and _TENSORS.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]] | None:
    """(of, values, tensors) as ``write`` was given them; None where there is no state. Raises UnusableState."""
    try:
        content = json.loads((folder / STATE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableState("it is damaged") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UnusableState("it is no state of a search")
    if content.get("version") != VERSION:
        raise UnusableState("it is of another version of pfray")
    state = {key: content.get(key) for key in ("of", "tensors", "values")}
    of, name, values = state["of"], state["tensors"], state["values"]
    if content.get("checksum") != _checksum(state) or not (isinstance(of, dict) and isinstance(values, dict)):
        raise UnusableState("it is damaged")
    if name is None:
        return of, values, {}
    if not isinstance(name, str) or not _TENSORS.fullmatch(name):
        raise UnusableState("it is damaged")
    if (tensors := load_tensors(folder / name)) is None:
        raise UnusableState(f"{name} is missing or damaged")
    return of, values, tensors


def trials_told(folder: Path) -> int:
    """How many finished trials the state in ``folder`` is made of; 0 where there is none, or none that can be read."""
    try:
        found = read(folder)
    except UnusableState:
        return 0
    told = found[0].get("told") if found else 0
    return told if isinstance(told, int) else 0


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """The state of a generator as plain numbers, for ``set_generator``."""
    return dict(generator.bit_generator.state)


def set_generator(generator: np.random.Generator, state: Any) -> None:
    """Raises ValueError, TypeError or such for what is no state of this kind of generator."""
    generator.bit_generator.state = state


def module_tensors(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's weights and buffers, for ``load_module``; ``name`` keeps several modules apart."""
    return {f"{name}.{key}": tensor.detach().clone() for key, tensor in module.state_dict().items()}


def load_module(name: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises KeyError or RuntimeError for tensors of another module."""
    module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of what an optimizer remembers of each parameter, for ``load_optimizer``; not its settings."""
    remembered = optimizer.state_dict()["state"].items()
    return {f"{name}.{i}.{key}": kept.detach().clone() for i, own in remembered for key, kept in own.items()}


def load_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for what is remembered of other parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    remembered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := re.fullmatch(rf"{re.escape(name)}\.(\d+)\.(\w+)", key):
            remembered.setdefault(int(match[1]), {})[match[2]] = tensor.clone()
    for i, own in remembered.items():
        if i >= len(parameters) or any(t.dim() and t.shape != parameters[i].shape for t in own.values()):
            raise ValueError("the moments are of other parameters")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": remembered})


def _checksum(state: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(state).encode())
