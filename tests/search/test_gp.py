"""The Gaussian process: its gradient, its invariance, what it remembers, and that a suggestion is quick."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor

from pfray.search.gp import GP, NearBest, Settings, make_kernel, without_common_step
from pfray.space import CompressionSpace, Knob, Plan

KNOBS = 8
LIMITS = {"sparsity": 0.8}
SIZES = np.geomspace(1.0, 20.0, KNOBS)
SPACE = CompressionSpace(
    tuple(Knob(f"layer{i}", compressed=0.98, full=0.0, scale="log_density") for i in range(KNOBS)),
    lambda values: {"sparsity": float(values @ SIZES / SIZES.sum())},
)
MOVED = np.ones(KNOBS, dtype=bool)


def make(settings: Settings | None = None, trials: int = 40, seed: int = 0) -> GP:
    return GP(SPACE, LIMITS, settings or Settings(), seed=seed, trials=trials)


def score(plan: Plan) -> float:
    return -float(((SPACE.encode(plan) - 0.3 * np.sin(np.arange(KNOBS)) - 0.5) ** 2).sum())


def drive(searcher: GP, count: int) -> list[Plan]:
    plans = []
    for number in range(count):
        entry = searcher.suggest(str(number))
        assert entry is not None
        plans.append(entry["plan"])
        searcher.on_trial_complete(str(number), {"score": score(entry["plan"])})
    return plans


def fitted(positions: np.ndarray, moved: np.ndarray) -> GaussianProcessRegressor:
    process = GaussianProcessRegressor(make_kernel(KNOBS, None), alpha=1e-8, optimizer=None, normalize_y=True)
    return process.fit(without_common_step(positions, moved), targets(positions))


def targets(positions: np.ndarray) -> np.ndarray:
    return np.sin(3 * positions).sum(1)


@pytest.mark.parametrize("free", [0, 2])
def test_the_gradient_of_the_bound_is_that_of_finite_differences(free):
    rng = np.random.default_rng(0)
    positions, x = rng.uniform(size=(20, KNOBS)), rng.uniform(size=KNOBS)
    moved = np.arange(KNOBS) >= free
    process, bound = fitted(positions, moved), NearBest(positions, moved, 0.1, kappa=1.5)
    arguments = (process, *np.exp(process.kernel_.theta[:2]))
    numeric = approx_fprime(x, lambda at: bound.loss(at, *arguments)[0], 1e-6)
    np.testing.assert_allclose(bound.loss(x, *arguments)[1], numeric, rtol=1e-3, atol=1e-4)


def test_the_bound_is_the_librarys_mean_plus_kappa_deviations():
    rng = np.random.default_rng(1)
    positions, x = rng.uniform(size=(20, KNOBS)), rng.uniform(size=KNOBS)
    process, bound = fitted(positions, MOVED), NearBest(positions, MOVED, 0.1, kappa=2.0)
    mean, deviation = process.predict(without_common_step(x[None], MOVED), return_std=True)
    scale, noise = targets(positions).std(), np.exp(process.kernel_.theta[2])
    # The process's own deviation is that of a noisy score.
    expected = (mean[0] - targets(positions).mean()) / scale + 2.0 * np.sqrt((deviation[0] / scale) ** 2 - noise)
    assert -bound.loss(x, process, *np.exp(process.kernel_.theta[:2]))[0] == pytest.approx(expected, rel=1e-6)


def test_a_common_step_of_the_knobs_that_the_target_moves_changes_nothing_a_free_knob_does():
    moved = np.array([True, True, True, False])
    x = np.array([0.1, 0.5, 0.6, 0.2])
    np.testing.assert_allclose(without_common_step(x, moved), [-0.3, 0.1, 0.2, 0.2])
    np.testing.assert_allclose(without_common_step(x + 0.1 * moved, moved), without_common_step(x, moved))
    assert without_common_step(x + np.array([0, 0, 0, 0.1]), moved)[3] == pytest.approx(0.3)


def test_it_finds_the_best_plan_of_a_smooth_landscape_to_a_hundredth_of_where_it_started():
    searcher = make(trials=60)
    plans = drive(searcher, 60)
    reachable = max(score(SPACE.fit_to_target(plan, LIMITS)) for plan in _descend(plans[0]))
    assert reachable - searcher.best()["score"] < 0.01 * (reachable - score(plans[0]))


def test_plans_are_within_the_box_around_the_best_one_before_the_target_moves_them():
    searcher = make(Settings(trust=0.1))
    drive(searcher, 20)
    positions, _ = searcher.observations()
    asked = SPACE.encode(searcher.ask())
    assert np.abs(positions - asked).max(1).min() <= 0.1 / np.sqrt(KNOBS) + 1e-9


def test_a_failed_plan_counts_as_the_worst_and_a_running_one_as_average():
    searcher = make()
    for number in range(12):
        entry = searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), {"score": float("nan") if number == 5 else number})
    out = searcher.suggest("out")
    positions, scores = searcher.observations()
    assert len(scores) == 13
    assert scores[5] == 0.0
    assert scores[12] == pytest.approx(np.mean([n for n in range(12) if n != 5]))
    np.testing.assert_array_equal(positions[12], SPACE.encode(out["plan"]))
    assert entry is not None


def test_a_plan_tried_twice_is_one_observation_of_the_mean_score():
    searcher = make()
    plan = SPACE.uniform(LIMITS)
    searcher.warm_start([(plan, 0.2), (plan, 0.4)])
    positions, scores = searcher.observations()
    assert positions.shape == (1, KNOBS)
    assert scores == pytest.approx([0.3])


def test_startup_trials_are_random_and_later_ones_searched():
    searcher = make(Settings(startup=5), trials=8)
    drive(searcher, 8)
    assert [record["origin"] for record in searcher.records] == ["gp, random start"] * 5 + ["gp"] * 3


def test_the_kernel_is_fitted_every_so_many_trials_and_kept_between():
    searcher = make(Settings(refit=10))
    fits = []
    for number in range(35):
        entry = searcher.suggest(str(number))
        fits.append(searcher.fitted)
        searcher.on_trial_complete(str(number), {"score": score(entry["plan"])})
    assert sorted(set(fits)) == [0, 10, 20, 30]


def _descend(plan: Plan) -> list[Plan]:
    """Plans of a random local search that knows the score: the last is close to the best there is."""
    rng, found = np.random.default_rng(0), [SPACE.fit_to_target(plan, LIMITS)]
    for number in range(1500):
        step = 0.2 * 0.997**number * rng.standard_normal(KNOBS)
        tried = SPACE.fit_to_target(SPACE.decode(SPACE.encode(found[-1]) + step), LIMITS)
        if score(tried) > score(found[-1]):
            found.append(tried)
    return found


def test_of_many_plans_the_process_knows_those_nearest_to_the_best():
    searcher = make(Settings(nearest=10))
    positions = np.random.default_rng(0).random((40, KNOBS))
    scores = np.arange(40.0)
    near, own = searcher.near_best(positions, scores)
    assert len(near) == len(own) == 10
    assert own[-1] == 39
    away = np.linalg.norm(without_common_step(positions - positions[-1], searcher.moved), axis=1)
    assert set(own) == set(np.argsort(away)[:10].astype(float))
    assert (np.diff(own) > 0).all()
