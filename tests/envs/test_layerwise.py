"""The layer-wise environment: Gymnasium's contract, the target, the clip, and the toy landscape's optimum."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from envs.layerwise import LayerwiseEnv
from pfray.errors import InfeasibleTarget
from pfray.space import SHAPE, CompressionSpace, Knob, Plan

NAME = "envs:pfray/Layerwise-v0"
SIZES = np.array([1_000.0, 4_000.0, 2_000.0])


def ratio_space(sizes: np.ndarray = SIZES) -> CompressionSpace:
    """Keep ratios of 0.1 to 1; params and MACs grow with them, and each layer's with the one before it."""

    def costs(values: np.ndarray) -> dict[str, float]:
        kept = np.concatenate([[1.0], values[:-1]]) * values * sizes
        return {"params": float(kept.sum()), "macs": float((kept * np.arange(1, len(values) + 1)).sum())}

    knobs = tuple(Knob(f"keep{i}", 0.1, 1.0, facts={"params": float(s), "macs": 9.0}) for i, s in enumerate(sizes))
    return CompressionSpace(knobs, costs)


def bit_space() -> CompressionSpace:
    knobs = tuple(Knob(f"bits{i}", 2, 8, integer=True, facts={"params": float(s)}) for i, s in enumerate(SIZES))
    return CompressionSpace(knobs, lambda values: {"bits": float(values @ SIZES / SIZES.sum())})


def make(space: CompressionSpace, target: dict[str, float], **options) -> LayerwiseEnv:
    options = {"evaluate": lambda plan: 1.0, **options}
    return LayerwiseEnv(space, target, **options)


def walk(env: gymnasium.Env, actions=None) -> tuple[Plan, list[float], list[np.ndarray]]:
    """(plan, rewards, observations) of one episode, of random actions unless some are given."""
    observation, _ = env.reset()
    rewards, observations, over, info = [], [observation], False, {}
    while not over:
        action = env.action_space.sample() if actions is None else np.array([actions[len(rewards)]], np.float32)
        observation, reward, over, cut, info = env.step(action)
        assert not cut
        assert env.observation_space.contains(observation)
        rewards.append(reward)
        observations.append(observation)
    return info["plan"], rewards, observations


CASES = {
    "ratios": (ratio_space(), {"params": 3_000.0, "macs": 6_000.0}),
    "bits": (bit_space(), {"bits": 4.0}),
    "one knob": (ratio_space(SIZES[:1]), {"params": 500.0}),
}


@pytest.fixture(params=CASES)
def case(request) -> tuple[CompressionSpace, dict[str, float]]:
    return CASES[request.param]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"shuffle": True}])
def test_it_keeps_gymnasiums_contract(case, options):
    space, target = case
    check_env(gymnasium.make(NAME, space=space, target=target, evaluate=lambda plan: 1.0, **options).unwrapped)
    check_env(gymnasium.make(NAME, **options).unwrapped)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_many_run_at_once(mode):
    envs = gymnasium.make_vec(NAME, num_envs=2, vectorization_mode=mode)
    envs.reset(seed=0)
    for step in range(6):
        _, rewards, over, _, _ = envs.step(np.zeros((2, 1), np.float32))
        assert over.tolist() == [step == 5] * 2
    assert rewards[0] == rewards[1] != 0
    envs.close()


def test_every_plan_meets_the_target(case):
    space, target = case
    env = make(space, target)
    env.action_space.seed(0)
    plans = [walk(env)[0] for _ in range(200)]
    assert all(space.meets(plan, target) for plan in plans)
    assert walk(env, [1.0] * len(space))[0] != walk(env, [-1.0] * len(space))[0]


def test_the_clip_is_the_highest_position_the_target_allows():
    # Keep ratios of 0..1 of two layers of 100 weights, 120 in all: 0.9 for the first leaves 0.3 for the second.
    knobs = (Knob("a", 0.0, 1.0), Knob("b", 0.0, 1.0))
    space = CompressionSpace(knobs, lambda values: {"params": float(values.sum() * 100)})
    env = make(space, {"params": 120.0})
    assert walk(env, [0.8, 1.0])[0] == pytest.approx({"a": 0.9, "b": 0.3})
    assert walk(env, [0.8, -0.6])[0] == pytest.approx({"a": 0.9, "b": 0.2})
    # At least 0.1 of the second must stay, so that the first gets 0.5 of 60 and not all.
    floor = CompressionSpace((knobs[0], Knob("b", 0.1, 1.0)), space.costs_of)
    assert walk(make(floor, {"params": 60.0}), [1.0, 1.0])[0] == pytest.approx({"a": 0.5, "b": 0.1})


def test_at_least_units_and_whole_bits_are_clipped_too():
    sparsity = CompressionSpace((Knob("a", 0.9, 0.0), Knob("b", 0.9, 0.0)), lambda v: {"sparsity": float(v.mean())})
    assert walk(make(sparsity, {"sparsity": 0.6}), [1.0, 1.0])[0] == pytest.approx({"a": 0.3, "b": 0.9})
    # 4 bits on average over 1000, 4000 and 2000 weights are 28000 bits; 8 * 1000 + 4 * 4000 + 2 * 2000 are just those.
    assert walk(make(bit_space(), {"bits": 4.0}), [1.0, 1.0, 1.0])[0] == {"bits0": 8.0, "bits1": 4.0, "bits2": 2.0}


def test_the_observation_tells_what_is_spent_remains_and_lies_ahead():
    space = CompressionSpace((Knob("a", 0.0, 1.0), Knob("b", 0.0, 1.0)), lambda v: {"params": float(v.sum() * 100)})
    observations = walk(make(space, {"params": 120.0}), [0.8, -0.6])[2]
    # share of steps, spent, remaining, what the rest could spend of all 200, last executed action
    assert np.array([o[-5:] for o in observations]) == pytest.approx(
        np.array([[0, 0, 1, 1, 0], [0.5, 0.75, 0.25, 0.5, 0.8], [1, 110 / 120, 10 / 120, 0, -0.6]]), abs=1e-6
    )


def test_static_observations_do_not_depend_on_the_actions():
    env = make(*CASES["ratios"], observe="static")
    check_env(env)
    low, high = (walk(env, [action] * 3)[2] for action in (-1.0, 1.0))
    assert np.array_equal(low, high)
    assert not np.array_equal(low[0], low[1])


def test_amcs_embedding_by_hand():
    shapes = ((8, 3, 32, 32, 1, 3, 100), (16, 8, 32, 32, 2, 3, 300), (10, 16, 1, 1, 0, 1, 200))
    facts = [dict(zip((*SHAPE, "macs"), shape, strict=True)) for shape in shapes]
    knobs = tuple(Knob(f"layer{i}", 0.0, 1.0, facts={"params": 1.0, **facts[i]}) for i in range(3))
    space = CompressionSpace(knobs, lambda values: {"params": float(values.sum() * 100)})
    env = make(space, {"params": 200.0}, observe="amc")
    check_env(env)
    observed = np.array(walk(env, [0.6, 0.0, 1.0])[2])
    # t, n, c, h, w, stride, k and FLOPs from the least to the largest of the three layers.
    assert observed[0, :8] == pytest.approx([0, 0, 0, 1, 1, 0.5, 1, 0])
    assert observed[1, :8] == pytest.approx([0.5, 1, 5 / 13, 1, 1, 1, 1, 1])
    assert observed[2, :8] == pytest.approx([1, 0.25, 1, 0, 0, 0, 0, 0.5])
    # Of all 300: what is reduced, and what the layers behind this one have; the last action. Kept: 0.8, 0.5, 0.7.
    assert observed[:, 8:] == pytest.approx(
        np.array([[0, 2 / 3, 0], [0.2 / 3, 1 / 3, 0.6], [0.7 / 3, 0, 0], [1 / 3, 0, 0.4]]), abs=1e-6
    )


def test_shapes_are_no_part_of_the_other_observations():
    plain = ratio_space()
    shaped = tuple(replace(knob, facts={**knob.facts, "n": 8.0, "k": 3.0}) for knob in plain.knobs)
    seen = [walk(make(s, {"params": 3_000.0}), [0.5] * 3)[2] for s in (plain, CompressionSpace(shaped, plain.costs_of))]
    assert np.array_equal(*seen)


def test_center_and_spread_say_where_an_action_leads():
    center = np.array([0.2, 0.5, 0.9])
    env = make(ratio_space(), {"params": 7_000.0}, center=center, spread=0.2)
    assert env.space.encode(walk(env, [0.0, 0.5, 1.0])[0]) == pytest.approx([0.2, 0.6, 1.0])


def test_any_plan_can_be_replayed_whatever_the_order():
    space, target = CASES["ratios"]
    plan = space.fit_to_target(space.decode(np.array([0.9, 0.1, 0.6])), target)
    env = make(space, target, center=np.full(3, 0.5), spread=0.1, shuffle=True)
    orders = set()
    for seed in range(8):
        env.reset(seed=seed)
        order, info = [], {}
        for _ in range(3):
            order.append(env.knob)
            info = env.step(env.action_for(space.encode(plan)[env.knob]))[-1]
        assert info["plan"] == pytest.approx(plan, abs=1e-6)
        assert sorted(order) == [0, 1, 2]
        orders.add(tuple(order))
    assert len(orders) > 1


def test_the_toys_optimum_is_its_reward_and_random_plans_stay_below():
    env = gymnasium.make(NAME).unwrapped
    plan, reward = env.optimum
    assert reward == 1.0
    env.reset()
    for _ in range(6):
        _, got, _, _, info = env.step(env.action_for(env.space.encode(plan)[env.knob]))
    assert got == pytest.approx(1.0, abs=1e-9)
    assert env.space.meets(info["plan"], env.target)
    env.action_space.seed(0)
    assert max(walk(env)[1][-1] for _ in range(1_000)) < 0.99


def test_the_reward_comes_once_with_the_plan_it_belongs_to():
    seen = []
    env = make(*CASES["ratios"], evaluate=lambda plan: seen.append(plan) or 0.25)
    plan, rewards, _ = walk(env)
    assert rewards == [0.0, 0.0, 0.25]
    assert seen == [plan]
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())


def test_an_error_of_the_evaluation_is_not_hidden():
    def broken(plan: Plan) -> float:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        walk(make(*CASES["ratios"], evaluate=broken))


def test_five_hundred_knobs_work():
    env = make(ratio_space(np.full(500, 100.0)), {"params": 10_000.0})
    env.action_space.seed(0)
    plan = walk(env)[0]
    assert 9_000 < env.space.costs(plan)["params"] <= 10_000


def test_a_free_knob_is_never_held_back():
    bound = ratio_space()
    space = bound.with_free((Knob("rate", 1e-4, 1e-1, scale="log", kind="setting", default=1e-2),))
    plan = walk(make(space, {"params": 500.0}), [1.0] * 4)[0]
    assert plan["rate"] == pytest.approx(0.1)
    assert bound.costs_of(np.array(list(plan.values())[:3]))["params"] <= 500


def test_what_cannot_work_is_refused():
    with pytest.raises(InfeasibleTarget, match=r"target\.params"):
        make(ratio_space(), {"params": 1.0})
    with pytest.raises(ValueError, match="none of them"):
        LayerwiseEnv(ratio_space())
    with pytest.raises(ValueError, match="3 knobs"):
        make(ratio_space(), {"params": 5_000.0}, center=np.zeros(2))
    env = make(ratio_space(), {"params": 5_000.0})
    env.reset()
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([np.nan], np.float32))
