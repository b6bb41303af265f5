"""The state dict of a model inside a checkpoint: in an entry of a dictionary, or with names that a wrapper prefixed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pfray.errors import short

# Usual names of the entry with a model's state dict, which comes before any other that fits.
ENTRIES = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params")
# Parts of names from DataParallel, torch.compile, FSDP and activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Dictionaries inside one another that are looked into.
DEEPEST = 3
# Batch norms' count of batches, which files from before torch 0.4.1 lack.
COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class Found:
    """state: tensors by the model's names as far as they are known. where: path of the entry in the file.

    complete: all of the model's names are there. notes: what was done to get it, in a few words each.
    """

    state: dict[Any, Tensor]
    where: str = ""
    complete: bool = False
    notes: list[str] = field(default_factory=list)


def find_state(content: Any, own: Mapping[str, Tensor]) -> Found | None:
    """The state dict of a model with the names and shapes of ``own``.

    Where none has all names, the one with the most. None if the file holds no tensors by name.
    """
    found = [_renamed(where, entry, own) for where, entry in _entries(content, ())]
    if not found:
        return None
    complete = [each for each in found if each.complete]
    if not complete:
        return max(found, key=lambda each: len(own.keys() & each.state.keys()))
    best, *others = sorted(complete, key=lambda each: _rank(each.where))
    if best.where:
        beside = f", and {_quoted([each.where for each in others])} left out" if others else ""
        best.notes.insert(0, f"its entry {_quoted([best.where])} is taken{beside}")
    return best


def _entries(content: Any, path: tuple[str, ...]) -> Iterator[tuple[str, dict[Any, Tensor]]]:
    """(path, tensors) of the dictionaries that hold tensors."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors or (not content and not path):
        yield ".".join(path), tensors
    if len(path) < DEEPEST:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _entries(value, (*path, key))


def _rank(where: str) -> tuple[bool, int, str]:
    """Averaged weights come last, because a file that has them has the trained ones too."""
    first = where.partition(".")[0]
    return "ema" in where.lower(), ENTRIES.index(first) if first in ENTRIES else len(ENTRIES), where


def _renamed(where: str, entry: dict[Any, Tensor], own: Mapping[str, Tensor]) -> Found:
    """The entry under the model's names, if leaving out a prefix, or the parts of wrappers as well, gives them."""
    if _has_all(entry, own):
        return Found(entry, where, complete=True)
    texts = [name for name in entry if isinstance(name, str)]
    for names, mine in (
        ({name: name for name in texts}, {name: name for name in own}),
        (_unwrapped(texts), _unwrapped(own)),
    ):
        if len(names) < len(entry) or len(mine) < len(own):  # other keys, or names that only their wrappers tell apart
            continue
        prefixes = _prefixes(names, mine)
        if len(prefixes) > 1:
            prefixes = [p for p in prefixes if _same_shapes(p, names, entry, mine, own)] or prefixes
        if len(prefixes) > 1:
            return Found(entry, where, notes=[f"its names fit with each of the prefixes {_quoted(prefixes)}"])
        if prefixes:
            return _without_prefix(prefixes[0], where, entry, names, mine)
    return Found(entry, where)


def _without_prefix(
    prefix: str, where: str, entry: Mapping[str, Tensor], names: Mapping[str, str], mine: Mapping[str, str]
) -> Found:
    """The entry's tensors below the prefix, under the model's names.

    names, mine: the original names in the file and in the model, by those that are compared.
    """
    state: dict[Any, Tensor] = {}
    outside, example = [], ""
    for name, original in names.items():
        if not name.startswith(prefix):
            outside.append(original)
            continue
        inner = name.removeprefix(prefix)
        read_as = mine.get(inner, inner)
        state[read_as] = entry[original]
        if not example and original != read_as:
            example = f"{short(original)} is read as {short(read_as)}"
            if original.endswith(f".{read_as}"):
                example = f"the prefix '{short(original.removesuffix(read_as))}' of its names is left out"
    left_out = [f"{_quoted(outside)} left out"] if outside else []
    return Found(state, where, complete=True, notes=[example, *left_out])


def _unwrapped(names: Collection[str]) -> dict[str, str]:
    """Names by what is left of them without the parts of wrappers."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}


def _prefixes(names: Collection[str], mine: Collection[str]) -> list[str]:
    """Prefixes, each ending with a dot or empty, with which all of the model's names are among ``names``."""
    first = next((name for name in mine if not name.endswith(COUNT)), None)
    if first is None:
        return []
    found = {name.removesuffix(first) for name in names if name == first or name.endswith(f".{first}")}
    return sorted(p for p in found if _has_all({name.removeprefix(p) for name in names if name.startswith(p)}, mine))


def _has_all(names: Collection[Any], mine: Collection[str]) -> bool:
    return all(name in names or name.endswith(COUNT) for name in mine)


def _same_shapes(
    prefix: str, names: Mapping[str, str], entry: Mapping[str, Tensor], mine: Mapping[str, str],
    own: Mapping[str, Tensor],
) -> bool:  # fmt: skip
    pairs = [(names.get(prefix + name), mine[name]) for name in mine]
    return all(theirs is None or entry[theirs].shape == own[name].shape for theirs, name in pairs)


def _quoted(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{short(name)}'" for name in names[:most]) + more
