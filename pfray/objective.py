"""Score functions: from a trial's measurement to one number, higher is better."""

from __future__ import annotations

from pfray.measure import Measurement


def accuracy(measurement: Measurement) -> float:
    """The accuracy alone, for a search whose plans all keep the target as a hard limit (Wu et al. 2018, section 3)."""
    return measurement.accuracy
