"""Summary of a run in words: the headline, and the remarks needed before quoting it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pfray.errors import short
from pfray.objective import WEIGH_COST
from pfray.reporting.goals import LATENCY_TOLERANCE, missed_goals
from pfray.reporting.report_input import Record, number
from pfray.reporting.summary import Summary
from pfray.units import UNITS, latency_text, size_text

# Origins of plans that need no measurement.
NO_SEARCH = ("allocate", "uniform", "heuristic")
# Multiples of a limit that give no remark: for the bytes of the file, and for the mean bits of all parameters.
BYTES_TOLERANCE, BITS_TOLERANCE = 1.05, 1.25
# What a training may take of a plan's metric, as a share of the teacher's, before it is called harmful.
HARMFUL = 0.05
# Share of a limit above which a plan uses it up.
USED = 0.95


def headline(summary: Summary) -> str:
    """The result in one sentence. Unknown numbers are left out."""
    teacher, compressed, metric = summary.teacher, summary.compressed, summary.metric
    parts = [_goal(unit, value) + _outcome(summary, unit) for unit, value in summary.target.items()
             if unit != "max_drop"]  # fmt: skip
    before, after = number(teacher, "accuracy"), number(compressed, "accuracy")
    if before is not None and after is not None:
        direction = "" if metric.higher_is_better else " (lower is better)"
        parts.append(f"{metric.name} {metric.text(before)} -> {metric.text(after)}{direction}")
    before, after = number(teacher, "size_bytes"), number(compressed, "size_bytes")
    if before and after is not None:
        parts.append(f"packed file {_change(size_text, before, after)}")
    if "latency_ms" not in summary.target and (outcome := _outcome(summary, "latency_ms")):
        parts.append(f"latency{outcome.removeprefix(':')}")
    return _line(f"{summary.experiment}: {', '.join(parts)}")


def remarks(summary: Summary) -> list[str]:
    """Remarks that a reader must know before quoting the headline; empty if there are none."""
    teacher, compressed = summary.teacher, summary.compressed
    notes = []
    now, before = summary.latencies()
    if now is not None and before is not None and now >= before:
        sizes = number(compressed, "size_bytes"), number(teacher, "size_bytes")
        smaller = None if sizes[0] is None or sizes[1] is None else sizes[0] < sizes[1]
        what = {True: "smaller but not faster", False: "neither smaller nor faster", None: "not faster"}[smaller]
        notes.append(f"{what}: {latency_text(now)} against {latency_text(before)}{_slow_remedy(summary, now, before)}")
    notes += _search_remarks(summary)
    notes += [missed.remark() for missed in missed_goals(summary)]
    notes += _training_remarks(summary)
    notes += _rounding_remarks(summary)
    notes += _size_remarks(summary)
    notes += _storage_remarks(summary.exported)
    failed = number(summary.trials, "failed")
    if failed:
        finished = number(summary.trials, "finished") or 0
        notes.append(f"{failed:.0f} of {failed + finished:.0f} trials failed; they are listed at the end")
    halved = number(summary.trials, "halved_batch")
    if halved:
        notes.append(f"{halved:.0f} trials ran out of memory and were tuned with half the batch "
                     "(resources.shrink_on_oom)")
    return [_line(note) for note in notes]


def chosen_text(summary: Summary) -> str | None:
    """The chosen plan in words: its origin, its trial, and whether it was moved afterwards."""
    origin, trial = summary.choice.get("origin"), summary.trials.get("best")
    if origin is None:
        return None if trial is None else f"trial {trial}"
    return _line(f"{origin}{'' if trial is None else f' (trial {trial})'}{_further(summary)}")


def time_text(summary: Summary) -> str:
    """Time of the last attempt of the run, and of all of them if there were several."""
    total, own = (sum(number(each, stage) or 0.0 for stage in each) for each in (summary.seconds, summary.own_seconds))
    if not summary.own_seconds or total - own < 0.05:
        return f"{total:,.0f} s."
    return f"{own:,.0f} s in the last attempt, {total:,.0f} s with the interrupted ones before."


def _outcome(summary: Summary, unit: str) -> str:
    """Change of a unit from teacher to result; empty if unknown, or if the goal says it all."""
    if unit == "latency_ms":
        after, before = summary.latencies()
    else:
        before, after = summary.cost("teacher", unit), summary.cost("compressed", unit)
    if before is None or after is None or unit not in UNITS or UNITS[unit].at_least:
        return ""
    slow = unit == "latency_ms" and after > (1 + LATENCY_TOLERANCE) * before
    return f": {_change(UNITS[unit].text, before, after)}{', slower than the original' if slow else ''}"


def _change(text: Callable[[float], str], before: float, after: float) -> str:
    ratio = f" ({after / before:.2f}x)" if before else ""
    return f"{text(before)} -> {text(after)}{ratio}"


def _slow_remedy(summary: Summary, now: float, before: float) -> str:
    """Operators that take the time of a file that is clearly slower than the original, and what to do; else empty."""
    if now <= (1 + LATENCY_TOLERANCE) * before:
        return ""
    slow = (summary.exported or {}).get("slow_operators") or []
    shares = [f"{each.get('operator')} ({100 * share:.0f} %)" for each in slow
              if (share := number(each, "share")) is not None]  # fmt: skip
    where = f". Its time goes to {', '.join(shares)}" if shares else ""
    layers = "the layers with these operators" if shares else "some layers"
    timed = "" if "latency_ms" in summary.target else ", or ask for the time itself (target.latency_ms)"
    return (
        f"{where}. Remedy: time both files on the device itself (pfray bench model.tflite teacher.tflite); where this "
        f"one is slower there too, leave out {layers} (learner.skip){timed}"
    )


def _further(summary: Summary) -> str:
    """Change of the plan after the search, for a latency limit; empty if there is none."""
    limit, moved = number(summary.limits, "latency_ms"), summary.choice.get("moved")
    if moved not in ("further", "less") or limit is None:
        return ""
    return f", compressed {moved} to {'meet' if moved == 'further' else 'use up'} {latency_text(limit)}"


def _search_remarks(summary: Summary) -> list[str]:
    """Remarks on a search that did not beat its baselines, and on a choice within the error of its score."""
    choice, found, metric = summary.choice, number(summary.compressed, "accuracy"), summary.metric
    notes = []
    if further := _further(summary):
        took = "longer" if choice.get("moved") == "further" else "less"
        notes.append(f"the plan is '{choice.get('origin')}'{further}, because its file took {took} than predicted")
    tried = sum(number(summary.trials, count) or 0.0 for count in ("finished", "failed"))
    # The only plan that meets a target has nothing to be compared with.
    if choice.get("origin") in NO_SEARCH and summary.searcher not in NO_SEARCH and tried != 1:
        early = ", so the search ended early (search.patience)" if choice.get("gave_up") else ""
        better = "clearly better" if early else "better"
        notes.append(f"no searched plan scored {better} than '{choice['origin']}', which needs no search{early}")
    for name in ("uniform", "allocate"):
        baseline = number(getattr(summary, name), "accuracy")
        rival = choice.get("origin") != name and name not in summary.shared
        if rival and found is not None and baseline is not None and found <= baseline:
            notes.append(f"the searched plan did not beat the {name} plan: {metric.text(found, 2)} against "
                         f"{metric.text(baseline, 2)} on the {summary.measured_on} split")
    near, error = number(choice, "within_error"), number(choice, "standard_error")
    if near is not None and near > 1 and error is not None:
        remedy = "" if choice.get("all_images") else ". More search.validation_images tell them apart"
        notes.append(f"the best {near:.0f} plans are within one standard error ({error:.2g}) of the best score, so the "
                     f"choice among them is close to chance{remedy}")
    return notes


def _training_remarks(summary: Summary) -> list[str]:
    """Remark on a plan that was clearly better in its trial than after its training."""
    before, after, metric = number(summary.choice, "accuracy"), number(summary.compressed, "accuracy"), summary.metric
    teacher = number(summary.teacher, "accuracy")
    if not summary.choice.get("trained") or before is None or after is None or teacher is None:
        return []
    if after >= before - HARMFUL * abs(teacher):
        return []
    return [f"the training did harm: {metric.name} was {metric.text(before)} in the plan's trial, on validation "
            f"samples, and is {metric.text(after)} after it. Remedy: a smaller finetune.lr, or more finetune.epochs"]


def _rounding_remarks(summary: Summary) -> list[str]:
    """Remark on a plan that uses up none of its limits, because its counts are rounded."""
    rounding = summary.choice.get("rounding")
    limits = {unit: number(summary.limits, unit) for unit in summary.limits or {}}
    if not (isinstance(rounding, dict) and rounding and limits) or summary.objective in WEIGH_COST:
        return []
    parts = []
    for unit, limit in limits.items():
        after, before = summary.cost("compressed", unit), summary.cost("teacher", unit)
        if not (limit and after and before) or UNITS[unit].at_least or after > USED * limit or unit == "latency_ms":
            return []
        parts.append(f"{after / before:.2f}x {UNITS[unit].noun} of {limit / before:.2f}x")
    settings = ", ".join(f"{path}={value}" for path, value in rounding.items())
    return [f"{', '.join(parts)} that the target allows, because counts are kept in multiples of {settings}, which "
            "are fast to compute. A smaller one comes nearer to the target"]


def _size_remarks(summary: Summary) -> list[str]:
    """Remarks on a target in bytes that the whole file exceeds, and on a target in bits that all parameters exceed."""
    size, params = number(summary.compressed, "size_bytes"), number(summary.compressed, "params")
    wanted = number(summary.limits, "size_bytes")
    notes = []
    if wanted and size is not None and size > BYTES_TOLERANCE * wanted:
        notes.append(f"the packed file has {size_text(size)}, target.size_bytes is {size_text(wanted)}: it counts "
                     "parameters, not the statistics of batch norms, names and the file's own table")
    bits, stored = number(summary.limits, "bits"), number(summary.compressed, "stored_bits")
    if bits and stored and params and stored / params > BITS_TOLERANCE * bits:
        notes.append(f"{bits:.4g} bits hold for the layers that are quantized; all parameters have "
                     f"{stored / params:.3g} on average, as the others stay float")
    return notes


def _storage_remarks(exported: Record | None) -> list[str]:
    """Remarks on layers that the .tflite stores differently from their bits: in float, or rounded once more.

    A layer that was not to be quantized is in the report's table only.
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


def _no_kernel(each: Record) -> bool:
    return str(each.get("reason")).startswith("no int8 kernel")


def _some(names: list[str]) -> str:
    """Up to four of the names; the report's table has all."""
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[:3] if more else names) + more


def _goal(unit: str, value: Any) -> str:
    """The limit in words; an unknown value or unit is shown unchanged."""
    try:
        return UNITS[unit].limit(UNITS[unit].amount(value))
    except (KeyError, ValueError):
        return f"at most {value} {unit}"


def _line(text: str) -> str:
    """Text that is safe on terminals and pages, because names and reasons come from files."""
    return short(str(text), 2000)
