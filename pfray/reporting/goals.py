"""Goals that a run's result misses: loss of accuracy (``target.max_drop``) and latency (``target.latency_ms``).

All other limits are met by the plan itself, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from pfray.reporting.report_input import number
from pfray.reporting.summary import Summary
from pfray.units import UNITS

# Share of a latency limit by which a file may be slower, because a timing is not exact.
LATENCY_TOLERANCE = 0.05


@dataclass(frozen=True)
class MissedGoal:
    """goal: key of the experiment. found, allowed: values in words, with their unit."""

    goal: str
    found: str
    allowed: str
    remedy: str

    def remark(self) -> str:
        """Text for the reader of a report."""
        return f"the goal is missed: {self.found}, {self.allowed} allowed ({self.goal})"

    def error(self) -> str:
        """Text for the user of a run that has just ended."""
        return (
            f"the goal is missed: {self.found}; {self.goal} allows {self.allowed}. The files are complete. "
            f"Remedy: {self.remedy}"
        )


def missed_goals(summary: Summary) -> list[MissedGoal]:
    """Goals that the result misses. A goal with unknown numbers is not missed."""
    missed = []
    before, after = number(summary.teacher, "accuracy"), number(summary.compressed, "accuracy")
    allowed = number(summary.target, "max_drop")
    # The difference of two decimal fractions is not exact, and a drop equal to the limit is allowed.
    if before is not None and after is not None and allowed is not None and before - after > allowed + 1e-9:
        missed.append(MissedGoal(
            "target.max_drop", *_drop(summary, before - after, allowed),
            "a milder target, more finetune.epochs, more search.trials or distill.weight=0.5",
        ))  # fmt: skip
    latency, limit = summary.latencies()[0], number(summary.limits, "latency_ms")
    if latency is not None and limit is not None and latency > (1 + LATENCY_TOLERANCE) * limit:
        text = UNITS["latency_ms"].text
        missed.append(MissedGoal(
            "target.latency_ms", text(latency), text((1 + LATENCY_TOLERANCE) * limit),
            f"a lower target.latency_ms; {100 * LATENCY_TOLERANCE:.0f} % of doubt are allowed already",
        ))  # fmt: skip
    return missed


def _drop(summary: Summary, lost: float, allowed: float) -> tuple[str, str]:
    """A loss of the metric and the allowed one, in words."""
    if summary.metric.is_share:
        return f"{100 * lost:.2f} points lost", f"{100 * allowed:.2f}"
    return f"{summary.metric.name} is worse by {lost:.4g}", f"{allowed:.4g}"
