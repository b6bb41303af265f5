"""What a trial is given of the cluster: processors, a fraction of a graphics processor, threads."""

from __future__ import annotations

import pytest
import torch

from learners import weight_sparse
from pfray.cluster import ray_cluster as cluster
from pfray.config.sections import Resources
from pfray.learner.base import Compressed
from pfray.learner.context import Recipe
from pfray.learner.scoring import Scoring, TrialSpec
from pfray.reporting.observers import Observers
from pfray.search.random import Random, Settings
from pfray.workflow.trials import run_trials


class Telling(weight_sparse.WeightSparse):
    """Fails with what it was given."""

    def compress(self, plan, steps: int = 0) -> Compressed:
        import ray

        given = ray.get_runtime_context().get_assigned_resources()
        raise ValueError(f"CPU {given['CPU']:g}, GPU {given.get('GPU', 0):g}, threads {torch.get_num_threads()}")


@pytest.mark.parametrize(("share", "given"), [
    ({"cpu": 2, "gpu": 0.25}, "CPU 2, GPU 0.25, threads 2"),
    ({"cpu": 1}, "CPU 1, GPU 0, threads 1"),
])  # fmt: skip
def test_a_trial_has_its_share_and_no_more_threads_than_processors(
    ray_cluster, context, recipe, tmp_path, share, given
):
    space = Telling(context.teacher, context.task).space()
    searcher = Random(space, {"sparsity": 0.5}, Settings(), trials=1, folder=tmp_path)
    resources = Resources.model_validate({"trial": share})
    spec = TrialSpec(context, Recipe(Telling, recipe.settings, recipe.training), Scoring())
    run_trials(spec, searcher, resources, tmp_path / "search", Observers())
    assert searcher.records[0]["error"].startswith(f"ValueError: {given} (")


@pytest.mark.parametrize(("share", "most"), [
    ({"cpu": 1}, 2), ({"cpu": 2}, 1), ({"cpu": 1, "gpu": 0.25}, 2), ({"cpu": 1, "gpu": 0.6}, 1),
    ({"cpu": 1, "gpu": 1}, 1),
])  # fmt: skip
def test_as_many_trials_run_at_once_as_fit(ray_cluster, share, most):
    assert cluster.parallel_trials(share["cpu"], share.get("gpu", 0)) == most


@pytest.mark.parametrize(("share", "most"), [
    ({"cpu": 1, "gpu": 0.25}, 8), ({"cpu": 1, "gpu": 0.1}, 16), ({"cpu": 1, "gpu": 0.6}, 2), ({"cpu": 3}, 4),
    ({"cpu": 5, "gpu": 0.25}, 2),
])  # fmt: skip
def test_a_trial_does_not_spread_over_machines(monkeypatch, share, most):
    nodes = [{"Alive": True, "Resources": {"CPU": 8, "GPU": 1}}] * 2
    nodes.append({"Alive": False, "Resources": {"CPU": 64, "GPU": 8}})
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
    assert cluster.parallel_trials(share["cpu"], share.get("gpu", 0)) == most


def test_a_share_that_goes_into_a_machine_but_for_rounding_fits(monkeypatch):
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64, "GPU": 7}}])
    assert 7 / 0.28 < 25
    assert cluster.parallel_trials(1, 0.28) == 25
