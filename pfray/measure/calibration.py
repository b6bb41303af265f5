"""Number of training inputs that a calibration takes where the settings leave it open."""

from __future__ import annotations

# Inputs at most, and at least: fewer say too little of a layer with hundreds of channels.
MOST, LEAST = 1000, 50
# Multiply-adds of a whole calibration: half a minute of one core with AVX-512.
MACS = 1.2e12


def affordable_inputs(macs: int) -> int:
    """The number of inputs, ``LEAST`` to ``MOST``, whose work is ``MACS`` if one input costs ``macs``."""
    return round(min(MOST, max(LEAST, MACS / max(macs, 1))))


def fewer_inputs_note(learner: str, count: int, available: int, macs: int) -> list[str]:
    """Tells the user of a ``count`` below the usual one; empty otherwise. available: training inputs there are."""
    usual = min(MOST, available)
    if count >= usual:
        return []
    # A setting of one learner in a pipeline has another path than learner.images.
    return [
        f"{learner} calibrates on {count:,} training inputs instead of {usual:,}, because one costs "
        f"{macs / 1e9:.1f} billion multiply-adds; images: {usual} in its settings takes them all"
    ]
