"""Parts of a layer's channels that only go in equal numbers: ``half = x.shape[1] // 2; x[:, :half], x[:, half:]``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pfray.pruning.channels.dependency import Candidate, Cut


def in_equal_parts(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, list[Candidate]]]:
    """(candidate whose units are a unit of each part, the parts), for sliced parts of a layer with as many units."""
    alike: dict[tuple[str, int], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if "Slice" in candidate.passes:
            alike[candidate.name, candidate.units].append(candidate)
    for parts in alike.values():
        if len(parts) > 1:
            through = frozenset(name for part in parts for name in part.passes)
            yield replace(parts[0], cuts=_together(parts), passes=through), parts


def _together(parts: Sequence[Candidate]) -> tuple[Cut, ...]:
    cuts: dict[tuple[str, str], Cut] = {}
    for cut in (cut for part in parts for cut in part.cuts):
        known = cuts.get((cut.layer, cut.side))
        index = cut.index if known is None else np.concatenate([known.index, cut.index], 1)
        cuts[cut.layer, cut.side] = replace(cut, index=index)
    return tuple(cuts.values())
