"""Identity of a run beyond its experiment file: pfray's version, the model, the data and the user's code.

It is kept in the run folder, so that a run is continued only with the same ones.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfray.data._split import in_memory
from pfray.nn.fingerprint import fixed_batch_outputs
from pfray.nn.inputs import named_tensors
from pfray.storage.judging import SCRIPT, judging, judging_differences, script_code
from pfray.task import Split, Task
from pfray.utils.cache import content_key, state_bytes, version
from pfray.utils.code_key import code_key

# Packages whose code pfray's version identifies.
OWN_PACKAGES = ("pfray", "learners", "envs", "torch")
# Most outputs that are kept, and the difference allowed between machines, as a share of the largest output.
KEPT_OUTPUTS = 64
OUTPUT_TOLERANCE = 1e-3
# The same for moments of the data, in which the rounding of many values cancels out.
MOMENT_TOLERANCE = 1e-7
# Values whose moments are summed at once, because a copy of a data set in double precision would be twice its size.
CHUNK = 1_000_000


def identity(experiment: Mapping[str, Any], model: nn.Module, task: Task, is_trained: bool) -> dict[str, Any]:
    """The identity as JSON values.

    experiment: plain data from ``schema.plain``. model: at the begin of the run. is_trained: its weights are the
    user's, and not drawn.
    """
    outputs = fixed_batch_outputs(model, task)
    kept = outputs.flatten()[:: max(1, outputs.numel() // KEPT_OUTPUTS)][:KEPT_OUTPUTS].nan_to_num()
    splits = (("train", task.train), ("validation", task.validation), ("test", task.test))
    return {
        "pfray": version(),
        "architecture": content_key(repr(model)),
        # Weights drawn by a seed differ between machines in their last bits; the outputs cover them.
        "weights": content_key(state_bytes(model)) if is_trained else "drawn",
        "outputs": kept.tolist(),
        **{f"{name} data": _forms(split) for name, split in splits},
        "classes": list(map(int, (task.num_outputs or 0, *(task.classes or ())))),
        "contents": {f"{name} {part}": _contents(tensor) for name, split in splits
                     for part, tensor in _tensors(split)},
        "task": judging(task),
        "code": {name: _code_key(path) for name, path in _user_modules(experiment, task)},
        "functions": script_code(task) | _script_classes(experiment),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Changes between two identities, in a few words each."""
    changed = _version_changes(old, new["pfray"])
    if old.get("architecture") != new["architecture"]:
        changed.append("the model's architecture")
    elif old.get("weights") != new["weights"]:
        changed.append("the model's weights")
    elif not _close(old.get("outputs"), new["outputs"], OUTPUT_TOLERANCE):
        changed.append("what the model gives for the first inputs (forward() or the normalization)")
    shapes = [f"{name} {new[name]} instead of {old.get(name)}"
              for name in ("train data", "validation data", "test data") if old.get(name) != new[name]]  # fmt: skip
    changed += shapes
    if old.get("classes") != new["classes"]:
        changed.append("the data's classes")
    elif not shapes and not _same_contents(old.get("contents"), new["contents"]):
        changed.append("the data's values")
    changed += judging_differences(old.get("task"), new["task"])
    known = _known(old, "code")
    # A module that is new has functions named above. Earlier versions kept a script's whole file, which may change.
    modules = sorted(known.keys() - {SCRIPT})
    changed += [f"the code of {name}" for name in modules if known[name] != new["code"].get(name)]
    return [*changed, *_function_changes(old, new["functions"])]


def code_differences(old: Mapping[str, Any], experiment: Mapping[str, Any]) -> list[str]:
    """Changes since an identity that show without model and data: pfray's version, and modules of import paths."""
    known = _known(old, "code")
    changed = [name for name, file in _files(_named_modules(experiment)) if known.get(name) != _code_key(file)]
    functions = _function_changes(old, _script_classes(experiment))
    return [*_version_changes(old, version()), *(f"the code of {name}" for name in changed), *functions]


def _version_changes(old: Mapping[str, Any], own: str) -> list[str]:
    return [f"pfray {own} instead of {old.get('pfray')}"] if old.get("pfray") != own else []


def _function_changes(old: Mapping[str, Any], new: Mapping[str, str]) -> list[str]:
    """Of functions and classes that both know; others go by another name or setting."""
    known = _known(old, "functions")
    return [f"the code of {name}" for name, key in new.items() if known.get(name, key) != key]


def _known(old: Mapping[str, Any], part: str) -> dict[str, Any]:
    found = old.get(part)
    return found if isinstance(found, dict) else {}


def _contents(tensor: Tensor) -> str | list[float]:
    """Hash of integers, or three moments of floats, whose last bits depend on the number of threads."""
    if not tensor.is_floating_point():
        return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).data).hexdigest()[:16]
    count, sums = tensor.numel(), torch.zeros(3, dtype=torch.float64)
    for start in range(0, count, CHUNK):
        values = tensor.reshape(-1)[start : start + CHUNK].double().nan_to_num()
        places = torch.arange(start + 1, start + len(values) + 1, dtype=torch.float64) / count
        sums += torch.stack([values.sum(), values.square().sum(), (values * places).sum()])
    return (sums / count).tolist()


def _same_contents(old: Any, new: dict[str, Any]) -> bool:
    if not isinstance(old, dict) or old.keys() != new.keys():
        return False
    return all(_close(old[key], new[key], MOMENT_TOLERANCE) if isinstance(new[key], list) else old[key] == new[key]
               for key in new)  # fmt: skip


def _tensors(split: Any) -> list[tuple[str, Tensor]]:
    """Tensors of the split by name, or of the first samples of one that is read batch by batch."""
    known = in_memory(split)
    return [*named_tensors(known.inputs, "inputs"), *named_tensors(known.targets, "targets")]


def _forms(split: Any) -> str:
    """``uint8 (1000, 3, 32, 32), int64 (1000,)``."""
    forms = ", ".join(_form(tensor) for _, tensor in _tensors(split))
    return forms if isinstance(split, Split) else f"{len(split)} samples such as {forms}"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _close(old: Any, new: list[float], tolerance: float) -> bool:
    if not isinstance(old, list) or len(old) != len(new):
        return False
    allowed = tolerance * max(map(abs, new), default=0.0) + 1e-30
    return all(abs(one - other) <= allowed for one, other in zip(old, new, strict=True))


def _user_modules(experiment: Mapping[str, Any], task: Task) -> Iterator[tuple[str, str]]:
    """(name, file) of the modules of the experiment's import paths and the task's functions, without pfray's.

    A script counts by its functions alone; see ``pfray.utils.code_key``.
    """
    names = _named_modules(experiment)
    for each in (task.loss, task.score, task.soft_loss, task.augment, task.evaluate, task.output):
        while isinstance(each, partial):
            each = each.func
        names.add(str(getattr(each, "__module__", "")))
    yield from _files(names)


def _named_modules(experiment: Mapping[str, Any]) -> set[str]:
    """Modules of the experiment's import paths."""
    return {text.partition(":")[0] for text in _import_paths(experiment)}


def _script_classes(experiment: Mapping[str, Any]) -> dict[str, str]:
    """Content keys of the learners and searchers that a script or notebook defines, by name."""
    paths = [text.partition(":") for text in _import_paths(experiment)]
    found = {name: getattr(sys.modules.get(SCRIPT), name, None) for module, _, name in paths if module == SCRIPT}
    return {name: code_key(value, SCRIPT) for name, value in found.items() if value is not None}


def _import_paths(experiment: Mapping[str, Any]) -> list[str]:
    return [text for text in _texts(experiment) if re.fullmatch(r"[\w.]+:\w+", text)]


def _files(names: Collection[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and name.partition(".")[0] not in (SCRIPT, *OWN_PACKAGES, *sys.stdlib_module_names):
            yield name, file


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _code_key(file: str) -> str:
    """Content key of a module's code, without comments and line breaks."""
    source = Path(file).read_bytes()
    try:
        return content_key(ast.dump(ast.parse(source)))
    except (SyntaxError, ValueError):  # an extension module
        return content_key(source)
