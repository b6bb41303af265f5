"""A run's summary in words: the headline, and what a reader must know before quoting it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pfray.errors import short
from pfray.reporting.figures import number

Summary = Mapping[str, Any]
# Origins of plans that are made without measuring any.
NO_SEARCH = ("allocate", "uniform", "heuristic")
# By how much of the target a file may be slower before the goal counts as missed: the clock's own doubt.
DOUBT = 0.05
# Of the target's bytes, what the file may have, and of its bits, what all parameters may have on average, before it is
# worth a word.
LARGER, BESIDE = 1.05, 1.25


def headline(summary: Summary) -> str:
    """What came out, in one sentence of plain words. What was not measured is left out."""
    teacher, compressed = summary.get("teacher"), summary.get("compressed")
    parts = [_goal(unit, value) for unit, value in (summary.get("target") or {}).items() if unit != "max_drop"]
    before, after = number(teacher, "accuracy"), number(compressed, "accuracy")
    if before is not None and after is not None:
        parts.append(f"accuracy {score_text(before)} -> {score_text(after)}")
    before, after = number(teacher, "size_bytes"), number(compressed, "size_bytes")
    if before and after is not None:
        parts.append(f"packed file {size_text(before)} -> {size_text(after)} ({after / before:.2f}x)")
    return _line(f"{summary.get('experiment', 'run')}: {', '.join(parts)}")


def remarks(summary: Summary) -> list[str]:
    """What a reader must know before quoting the headline; empty where there is nothing to hold back."""
    teacher, compressed = summary.get("teacher"), summary.get("compressed")
    exported = summary.get("exported")
    notes = []
    now, before = number(exported, "latency_ms"), number(exported, "teacher_latency_ms")
    if now is None or before is None:
        now, before = number(compressed, "latency_ms"), number(teacher, "latency_ms")
    if now is not None and before is not None and now >= before:
        sizes = number(compressed, "size_bytes"), number(teacher, "size_bytes")
        smaller = None if sizes[0] is None or sizes[1] is None else sizes[0] < sizes[1]
        what = {True: "smaller but not faster", False: "neither smaller nor faster", None: "not faster"}[smaller]
        notes.append(f"{what}: {latency_text(now)} against {latency_text(before)}")
    found = number(compressed, "accuracy")
    notes += _doubts(summary)
    start, allowed = number(teacher, "accuracy"), number(summary.get("target"), "max_drop")
    if found is not None and start is not None and allowed is not None and start - found > allowed + 1e-9:
        notes.append(f"the goal is missed: {100 * (start - found):.2f} points lost, {100 * allowed:.2f} allowed "
                     "(target.max_drop)")
    wanted = latency_goal(summary)
    if wanted is not None and now is not None and now > wanted:
        notes.append(f"the goal is missed: {latency_text(now)}, {latency_text(wanted)} allowed (target.latency_ms)")
    notes += _beside_weights(summary)
    notes += _storage(exported)
    failed = number(summary.get("trials"), "failed")
    if failed:
        finished = number(summary.get("trials"), "finished") or 0
        notes.append(f"{failed:.0f} of {failed + finished:.0f} trials failed; they are listed at the end")
    halved = number(summary.get("trials"), "halved_batch")
    if halved:
        notes.append(f"{halved:.0f} trials ran out of memory and were tuned with half the batch "
                     "(resources.shrink_on_oom)")
    return [_line(note) for note in notes]


def latency_goal(summary: Summary) -> float | None:
    """The milliseconds that the target allows, with the clock's own doubt on top; None where it names none."""
    wanted = _amount(summary, "latency_ms", number(summary.get("exported"), "teacher_latency_ms"))
    return None if wanted is None else (1 + DOUBT) * wanted


def score_text(value: float, digits: int = 1) -> str:
    """Fractions as per cent; scores of another range as they are."""
    return f"{100 * value:.{digits}f} %" if 0 <= value <= 1 else f"{value:.4g}"


def size_text(size: float) -> str:
    """Bytes in MB (10^6) or kB (10^3)."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def latency_text(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds:.3f} ms"


def _doubts(summary: Summary) -> list[str]:
    """Where the search did not earn its keep, and where its choice is within the error of its score."""
    choice, found = summary.get("choice") or {}, number(summary.get("compressed"), "accuracy")
    notes = []
    if choice.get("origin") in NO_SEARCH and summary.get("searcher") not in NO_SEARCH:
        notes.append(f"no searched plan scored better than '{choice['origin']}', which needs no search")
    for name in ("uniform", "allocate"):
        baseline = number(summary.get(name), "accuracy")
        if found is not None and baseline is not None and found <= baseline and choice.get("origin") != name:
            notes.append(f"the searched plan did not beat the {name} plan: {score_text(found, 2)} against "
                         f"{score_text(baseline, 2)} on the test split")
    near, error = number(choice, "within_error"), number(choice, "standard_error")
    if near is not None and near > 1 and error is not None:
        remedy = "" if choice.get("all_images") else ". More search.validation_images tell them apart"
        notes.append(f"the best {near:.0f} plans are within one standard error ({error:.2g}) of the best score, so the "
                     f"choice among them is close to chance{remedy}")
    return notes


def _beside_weights(summary: Summary) -> list[str]:
    """Where a target in bytes or bits is not that of the whole file, or of all parameters."""
    target, compressed = summary.get("target") or {}, summary.get("compressed")
    size, params = number(compressed, "size_bytes"), number(compressed, "params")
    wanted = _amount(summary, "size_bytes", 4 * (number(summary.get("teacher"), "params") or 0))  # in float32
    notes = []
    if wanted and size is not None and size > LARGER * wanted:
        notes.append(f"the packed file has {size_text(size)}, target.size_bytes is {size_text(wanted)}: it counts "
                     "parameters, not the statistics of batch norms, names and the file's own table")
    bits, stored = number(target, "bits"), number(compressed, "stored_bits")
    if bits and stored and params and stored / params > BESIDE * bits:
        notes.append(f"{bits:.4g} bits hold for the layers that are quantized; all parameters have "
                     f"{stored / params:.3g} on average, as the others stay float")
    return notes


def _storage(exported: Mapping[str, Any] | None) -> list[str]:
    """Where the .tflite is not what the bits promise: quantized layers in float, and roundings that the model has not.

    A layer that was not to be quantized is in the report's table, and no surprise.
    """
    stored = ((exported or {}).get("stored") or {}).items()
    whole = [name for name, each in stored if each.get("type") == "float" and (each.get("bits") or _no_kernel(each))]
    inputs = [name for name, each in stored if each.get("type") == "int4" and each.get("rounds")]
    nearest = [name for name, each in stored if each.get("type") == "int8" and each.get("rounds")]
    notes = []
    if whole:
        reasons = "; ".join(dict.fromkeys(str(each.get("reason")) for name, each in stored if name in whole))
        notes.append(f"float in the .tflite, {_some(whole)}: {reasons}")
    if inputs:
        notes.append(f"the .tflite rounds to 8 bits what its int4 layers read: {_some(inputs)}")
    if nearest:
        notes.append(f"the .tflite has int8's levels nearest to the model's, not the same: {_some(nearest)}")
    return notes


def _no_kernel(each: Mapping[str, Any]) -> bool:
    return str(each.get("reason")).startswith("no int8 kernel")


def _some(names: list[str]) -> str:
    """At most four of them; the table has all."""
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[:3] if more else names) + more


def _goal(unit: str, value: Any) -> str:
    known = number({unit: value}, unit)
    if unit == "sparsity" and known is not None:
        return f"{100 * known:.4g} % sparsity"
    if unit == "bits" and known is not None:
        return f"at most {known:.4g} bits a weight"
    if unit == "latency_ms":
        return f"at most {f'{value} latency' if known is None else latency_text(known)}"
    amount = str(value) if known is None else f"{known:,.0f}"
    return f"at most {amount} {unit.removeprefix('size_')}"


def _amount(summary: Summary, unit: str, whole: float | None) -> float | None:
    """The target's limit in ``unit``, ``0.4x`` of ``whole`` too; None where it has none."""
    value = (summary.get("target") or {}).get(unit)
    if isinstance(value, str):
        share = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*x\s*", value)
        return None if share is None or whole is None else float(share[1]) * whole
    return number(summary.get("target"), unit)


def _line(text: str) -> str:
    """For terminals and pages alike; names and reasons come from files."""
    return short(str(text), 2000)
