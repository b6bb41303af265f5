"""Channel learners behind removed layers: what they know of the whole network serves again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learners import _channel_calibration, channel_pruned, filter_ranked
from learners._channel_calibration import calibrate
from learners.channel_pruned import ChannelPruned
from learners.filter_ranked import FilterRanked
from learners.layer_removal import LayerRemoval
from learners.layer_removal import Settings as Removal
from pfray.measure.cost import count_params
from pfray.pruning.channels.keep_ratios import graph_of
from tests.small import chain, make_task

PRUNING = channel_pruned.Settings(images=40, positions=64, round_to=1)


@pytest.fixture(scope="module")
def parts():
    """The task, a chain of four convolutions, and the removal of its layers."""
    task, model = make_task(), chain()
    return task, model, LayerRemoval(model, task, Removal(images=40))


def test_without_a_removed_layer_it_is_the_same_learner(parts):
    task, model, removal = parts
    pruning = ChannelPruned(model, task, PRUNING)
    plan = dict.fromkeys(pruning.space().names, 0.5)
    kept = dict.fromkeys(removal.space().names, 1.0)
    later = pruning.behind(removal, kept, removal.compress(kept).model)
    one, other = (each.compress(plan).model.state_dict() for each in (pruning, later))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_only_what_a_layer_reads_anew_is_measured_and_as_a_fresh_calibration_has_it(parts, monkeypatch):
    task, model, removal = parts
    pruning = ChannelPruned(model, task, PRUNING)
    assert pruning.calibration.moments
    plan = {name: float(name != "1.0") for name in removal.space().names}
    student = removal.compress(plan).model
    measured: list[list[str]] = []
    own = _channel_calibration.input_moments
    monkeypatch.setattr(_channel_calibration, "input_moments", lambda *a: measured.append(list(a[2])) or own(*a))
    later = pruning.behind(removal, plan, student)
    assert measured == []  # until it is needed
    assert later.calibration.moments
    assert measured == [["2.0"]]
    fresh = calibrate(student, task, PRUNING.images, PRUNING.positions, PRUNING.criterion)
    np.testing.assert_allclose(
        later.calibration.moments["2.0"].covariance, fresh.moments["2.0"].covariance, rtol=0.1, atol=0.05
    )
    assert later.calibration.moments["3.0"] is pruning.calibration.moments["3.0"]
    assert "1.0" not in later.calibration.moments
    assert [group.name for group in later.calibration.graph.groups] == ["0.0", "2.0", "3.0"]


def test_a_skipped_group_may_be_taken_out_and_its_knob_then_does_nothing(parts):
    task, model, removal = parts
    ranked = FilterRanked(model, task, filter_ranked.Settings(round_to=1, skip=("1.0",)))
    plan = {name: float(name != "1.0") for name in removal.space().names}
    later = ranked.behind(removal, plan, removal.compress(plan).model)
    widths = dict.fromkeys(ranked.space().names, 0.5)
    small = later.compress(widths).model
    assert later.structure({**widths, "1.0": 0.2}) == later.structure(widths)
    table = graph_of(later.model, task)
    kept = [later.structure(widths)[group.name] for group in table.groups]
    assert count_params(small)[0] == table.costs(kept)["params"]
