"""REINFORCE over layers: it learns the toy teacher, transfers what it learned, and survives failures and restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from envs.layer_removal import toy
from pfray.errors import ConfigError
from pfray.search.policy_gradient import POLICY, PolicyGradient, Settings
from pfray.utils.cache import load_tensors, save_tensors
from tests.search.toy import drive

SPACE, LIMITS, evaluate, (BEST, TOP) = toy()
STUDENTS = 60
SEEDS = range(3)


def search(
    seed: int = 0, trials: int = STUDENTS, folder: Path | None = None, toy_space=SPACE, **settings
) -> PolicyGradient:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return PolicyGradient(
        toy_space, LIMITS, Settings(**settings), seed=seed, trials=trials, use_full_budget=False, folder=folder
    )


def rewards(searcher: PolicyGradient) -> list[float]:
    return [evaluate(entry["plan"]) for entry in drive(searcher, outcome=lambda e: {"score": evaluate(e["plan"])})]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[float]], Path]:
    """(the rewards of a search for each seed, the run folder of the first)."""
    folders = [tmp_path_factory.mktemp(f"run{seed}") for seed in SEEDS]
    return [rewards(search(seed, folder=folders[seed] / "search")) for seed in SEEDS], folders[0]


def test_it_beats_random_removal_at_equal_numbers_of_students(learned):
    rng = np.random.default_rng(0)
    random = [[evaluate(SPACE.decode(rng.integers(0, 2, len(SPACE)).astype(float))) for _ in range(STUDENTS)]
              for _ in SEEDS]  # fmt: skip
    found, drawn = (np.array(own) for own in (learned[0], random))
    assert (found.max(1) > drawn.max(1)).all()
    assert (found[:, -20:].mean(1) > 2 * drawn[:, -20:].mean(1)).all()
    assert (found.max(1) > 0.93 * TOP).all()


def test_a_policy_that_was_learned_starts_where_the_other_ended(learned):
    whole, folder = learned
    fresh = [own[:10] for own in whole]
    started = [rewards(search(seed + 10, trials=10, policy_from=str(folder))) for seed in SEEDS]
    assert np.mean(started) > 2 * np.mean(fresh)
    assert np.max(started) >= np.mean([max(own) for own in whole]) - 0.05


def test_a_policy_reads_spaces_of_any_depth(learned):
    space, limits, deeper, (_, top) = toy(stages=6)
    settings = Settings(policy_from=str(learned[1]))
    searcher = PolicyGradient(space, limits, settings, trials=10, use_full_budget=False)
    scores = [deeper(e["plan"]) for e in drive(searcher, outcome=lambda e: {"score": deeper(e["plan"])})]
    rng = np.random.default_rng(0)
    random = [deeper(space.decode(rng.integers(0, 2, len(space)).astype(float))) for _ in range(200)]
    assert np.mean(scores) > np.mean(random) + 0.2
    assert max(scores) < top + 1e-9


def test_plans_keep_the_masks():
    searcher = search(trials=30)
    for entry in drive(searcher, outcome=lambda e: {"score": evaluate(e["plan"])}):
        assert set(entry["plan"].values()) <= {0.0, 1.0}
        assert 0 < sum(entry["plan"].values()) < 12
        assert SPACE.costs(entry["plan"])["params"] <= LIMITS["params"]


def test_failed_students_count_as_the_worst_and_a_search_of_failures_ends():
    searcher = search(trials=10)
    before = [parameter.clone() for parameter in searcher.policy.parameters()]
    drive(searcher, outcome=lambda entry: {"score": float("nan")})
    assert all(torch.equal(*pair) for pair in zip(before, searcher.policy.parameters(), strict=True))
    searcher = search(trials=10)
    # Whatever keeps the last layer fails.
    drive(searcher, outcome=lambda e: None if e["plan"]["layer3.2"] else {"score": 1.0 + e["trial"]})
    assert searcher.baseline is not None
    assert np.isfinite(searcher.baseline)
    assert all(parameter.isfinite().all() for parameter in searcher.policy.parameters())


def test_a_search_goes_on_where_it_was_killed(tmp_path):
    whole = [entry["plan"] for entry in drive(search(trials=24), outcome=lambda e: {"score": evaluate(e["plan"])})]
    first = search(trials=24, folder=tmp_path / "search")
    plans = [e["plan"] for e in drive(first, 13, outcome=lambda e: {"score": evaluate(e["plan"])})]
    again = search(trials=24, folder=tmp_path / "search")
    again.resume()
    plans += [e["plan"] for e in drive(again, outcome=lambda e: {"score": evaluate(e["plan"])})]
    assert plans == whole


def test_the_baseline_is_the_moving_average_of_the_iterations():
    searcher = search(trials=10, students=5, decay=0.75)
    drive(searcher, outcome=lambda entry: {"score": float(entry["trial"])})
    assert searcher.baseline == pytest.approx(0.75 * 2.0 + 0.25 * 7.0)


def test_folders_without_a_fitting_policy_are_refused(learned, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no learned policy\. Remedy: the folder of a finished run"):
        search(policy_from=str(tmp_path))
    with pytest.raises(ConfigError, match=r"a policy of another space \(lstm.* is .* and not .*\)\. Remedy"):
        search(policy_from=str(learned[1]), hidden=7)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / POLICY).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="holds no learned policy"):
        search(policy_from=str(tmp_path))
    weights = load_tensors(learned[1] / "search" / POLICY)
    for strange in (weights["head.bias"].long(), torch.full_like(weights["head.bias"], float("nan"))):
        save_tensors(tmp_path / "search" / POLICY, {**weights, "head.bias": strange})
        with pytest.raises(ConfigError, match="holds no learned policy"):
            search(policy_from=str(tmp_path))
    for nowhere in ("~nobody-at-all/run", "a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="holds no learned policy") as error:
            search(policy_from=nowhere)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("env", ["nowhere:at-all-v0", "CartPole-v1", "envs:pfray/Layerwise-v0"])
def test_an_environment_that_cannot_be_searched_is_refused(env):
    with pytest.raises(ConfigError, match=f"search.env: '{env}' is no environment to search in"):
        search(env=env)
