"""The candidates that the proof admits: each alone, and all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from pfray.pruning.channels.attention import with_needed_sizes
from pfray.pruning.channels.cost import cost_table
from pfray.pruning.channels.dependency import Candidate
from pfray.pruning.channels.equal_parts import in_equal_parts
from pfray.pruning.channels.layer_entries import removals_of
from pfray.pruning.channels.numbers import with_numbers
from pfray.pruning.channels.proof import Failure, Proof
from pfray.pruning.channels.reasons import explain


def admitted(
    proof: Proof, candidates: Sequence[Candidate], heads: Sequence[Sequence[Candidate]], order: Sequence[str]
) -> tuple[list[Candidate], dict[Candidate, str]]:
    """(candidates that can be removed alone and together, in execution order; reasons by each other candidate).

    heads: for each attention what its heads may be.
    """
    reasons: dict[Candidate, str] = {}
    proven: list[Candidate] = []

    for candidate in candidates:
        if candidate.units == 1 and candidate.cuts[0].index.shape[1] == 1:
            reasons[candidate] = "a single channel"
        elif candidate.obstacle or candidate.units == 1:
            reasons[candidate] = candidate.obstacle or "its channels can only go all together"
    possible = [candidate for candidate in candidates if candidate not in reasons]
    for variants in heads:
        possible = _with_heads(proof, variants, possible, reasons)
    rank = {name: index for index, name in enumerate(order)}
    possible.sort(key=lambda each: _rank(each, rank))
    # All at once first, because most networks need no look at single ones.
    if (first := _joint_failure(proof, possible)) is None:
        return possible, reasons
    alone = partial(_failure_alone, proof, training=first.kind == "training")
    likely: list[Candidate] = []
    for candidate in possible:
        if (failure := alone(candidate)) is None:
            likely.append(candidate)
            continue
        goes = failure.kind in ("fails", "values")
        found = with_numbers(proof.model, candidate, lambda each: alone(each) is None) if goes else None
        if found is None:
            reasons[candidate] = explain(candidate, failure)
        else:
            likely.append(found)
    for candidate, parts in in_equal_parts([each for each in possible if each in reasons]):
        if alone(candidate) is None:
            likely.append(candidate)
            reasons = {part: reason for part, reason in reasons.items() if part not in parts}
    likely.sort(key=lambda each: _rank(each, rank))

    def admit(batch: list[Candidate]) -> None:
        failure = _joint_failure(proof, [*proven, *batch])
        if failure is None:
            proven.extend(batch)
        elif len(batch) == 1:
            reasons[batch[0]] = explain(batch[0], failure)
        else:
            admit(batch[: len(batch) // 2])
            admit(batch[len(batch) // 2 :])

    admit(likely)
    return proven, reasons


def _rank(candidate: Candidate, rank: Mapping[str, int]) -> tuple[int, int]:
    """Place in the execution order: of the first layer that makes the channels, and among that layer's candidates."""
    places = [rank.get(cut.layer, len(rank)) for cut in candidate.cuts if cut.side == "out"]
    return min(places), candidate.number


def _with_heads(
    proof: Proof, variants: Sequence[Candidate], possible: list[Candidate], reasons: dict[Candidate, str]
) -> list[Candidate]:
    """``possible`` with the heads of one attention in place of channels of the same layers that cannot go.

    variants: what the heads may be. reasons: of candidates that stay; changed in place.
    """
    rivals = [other for other in possible if any(other.sides & variant.sides for variant in variants)]
    failures = {other: _failure_alone(proof, other) for other in rivals}
    if None in failures.values():
        return possible
    found, failure = None, None
    for variant in variants:
        failed = _failure_alone(proof, variant)
        if failed is None:
            found, failure = variant, None
            break
        failure = failure or failed
    first = found or variants[0]
    # The first guess's failure is the reason. That of guesses says something only if the forward pass fails.
    if failure and len(variants) > 1 and failure.kind != "fails":
        return possible
    for other in [other for other in reasons if other.sides & first.sides]:
        del reasons[other]
    if failure:
        reasons[first] = f"no head of {first.name} can go alone: {explain(first, failure)}"
    left = [other for other in possible if not other.sides & first.sides]
    if not found:
        return left
    return [*left, with_needed_sizes(found, lambda each: _failure_alone(proof, each) is None)]


def _failure_alone(proof: Proof, candidate: Candidate, training: bool = False) -> Failure | None:
    removals = removals_of([(candidate.cuts, _draw_units(candidate, 0, 1))])
    return proof.failure(removals, drawn=True, training=training)


def _joint_failure(proof: Proof, candidates: Sequence[Candidate]) -> Failure | None:
    """The first failure of several plans that prune all candidates together; None without any."""
    table = cost_table(proof, candidates)
    for style in range(3):
        gone = [_draw_units(candidate, number, style) for number, candidate in enumerate(candidates)]
        kept = np.array([c.units - len(units) for c, units in zip(candidates, gone, strict=True)], dtype=float)
        removals = removals_of((c.cuts, units) for c, units in zip(candidates, gone, strict=True))
        if failure := proof.failure(removals, drawn=style > 0, costs=table.costs(kept), training=True):
            return failure
    return None


def _draw_units(candidate: Candidate, number: int, style: int) -> np.ndarray:
    """Random units to remove. style: 0 some, but none of every second candidate; 1 some; 2 all but one."""
    generator = np.random.default_rng((number, style))
    most = candidate.units - 1
    count = most if style == 2 else 0 if style == 0 and number % 2 else int(generator.integers(1, most + 1))
    return generator.permutation(candidate.units)[:count]


