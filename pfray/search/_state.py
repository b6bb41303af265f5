"""State of a search beyond its finished trials, in two files: ``state.json``, and safetensors for arrays.

The JSON names the safetensors file and is written after it, so that an interruption at any time leaves a consistent
pair, the new or the old one. No pickle: write access to a run folder must not give code execution.
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
# File of earlier versions, not read.
PICKLE = "searcher.pkl"

_TENSORS = re.compile(r"state-[0-9a-f]{8}\.safetensors")


class UnusableState(ValueError):
    """A saved state cannot be used; the message is the reason, a few words."""


def write(folder: Path, of: Mapping[str, Any], values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the state to ``folder``. of: its identity, with the number of trials as ``told``. Raises StorageError."""
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
    """(of, values, tensors) as given to ``write``; None without a state. Raises UnusableState."""
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


def saved_trial_count(folder: Path) -> int:
    """Number of finished trials that the state in ``folder`` covers; 0 without a readable state."""
    try:
        found = read(folder)
    except UnusableState:
        return 0
    told = found[0].get("told") if found else 0
    return told if isinstance(told, int) else 0


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """State of a generator as plain numbers, for ``set_generator``."""
    return dict(generator.bit_generator.state)


def set_generator(generator: np.random.Generator, state: Any) -> None:
    """Set a generator's state. Raises ValueError, TypeError or KeyError for an invalid one."""
    generator.bit_generator.state = state


def module_tensors(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers, for ``load_module``; ``name`` is the prefix of the keys."""
    return {f"{name}.{key}": tensor.detach().clone() for key, tensor in module.state_dict().items()}


def load_module(name: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of ``module_tensors``. Raises KeyError or RuntimeError for tensors of another module."""
    module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of an optimizer's state of each parameter (moments), for ``load_optimizer``; without its settings."""
    remembered = optimizer.state_dict()["state"].items()
    return {f"{name}.{i}.{key}": kept.detach().clone() for i, own in remembered for key, kept in own.items()}


def load_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of ``optimizer_tensors``. Raises ValueError for the state of other parameters."""
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
