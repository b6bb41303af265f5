"""The environment of layer removal: Gymnasium's contract, masks, the target, and the toy teacher's useless layers."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from envs.layer_removal import RemovalEnv, toy
from pfray.errors import InfeasibleTarget
from pfray.space import CompressionSpace, Knob, Plan

NAME = "envs:pfray/Removal-v0"
SIZES = np.array([100.0, 400.0, 200.0])


def removal_space(sizes: np.ndarray = SIZES, **facts: list[float]) -> CompressionSpace:
    """Layers of so many parameters to keep or remove; ``facts`` has one value a layer."""
    knobs = tuple(
        Knob(f"layer{i}", 0.0, 1.0, choices=(0.0, 1.0), facts={"params": s, **{k: v[i] for k, v in facts.items()}})
        for i, s in enumerate(sizes)
    )
    return CompressionSpace(knobs, lambda values: {"params": float(values @ sizes)})


def make(space: CompressionSpace, params: float, **options) -> RemovalEnv:
    return RemovalEnv(space, {"params": params}, options.pop("evaluate", lambda plan: 1.0), **options)


def walk(env: gymnasium.Env, actions: list[int]) -> tuple[Plan, list[list[int]]]:
    """(plan, the mask before each action) of one episode."""
    _, info = env.reset()
    masks = []
    for action in actions:
        masks.append(info["action_mask"].tolist())
        observation, _, _, _, info = env.step(action)
        assert env.observation_space.contains(observation)
    return info["plan"], masks


@pytest.mark.filterwarnings("error")
def test_it_keeps_gymnasiums_contract():
    check_env(gymnasium.make(NAME).unwrapped)
    space = removal_space()
    check_env(gymnasium.make(NAME, space=space, target={"params": 500.0}, evaluate=lambda plan: 1.0).unwrapped)


def test_zero_removes_and_one_keeps():
    assert walk(make(removal_space(), 700.0), [1, 0, 1])[0] == {"layer0": 1.0, "layer1": 0.0, "layer2": 1.0}


def test_keeping_what_would_leave_the_target_out_of_reach_is_masked_and_not_done():
    plan, masks = walk(make(removal_space(), 350.0), [1, 1, 1])
    assert masks == [[1, 1], [1, 0], [1, 1]]
    assert plan == {"layer0": 1.0, "layer1": 0.0, "layer2": 1.0}


def test_every_layer_cannot_be_removed():
    plan, masks = walk(make(removal_space(), 700.0), [0, 0, 0])
    assert masks == [[1, 1], [1, 1], [0, 1]]
    assert plan == {"layer0": 0.0, "layer1": 0.0, "layer2": 1.0}
    # But where the target asks for it.
    assert walk(make(removal_space(), 50.0), [1, 1, 1])[0] == dict.fromkeys(plan, 0.0)


def test_inside_a_removed_block_nothing_is_left_to_remove():
    env = make(removal_space(block=[0.0, 1.0, 0.0]), 700.0)
    assert walk(env, [0, 0, 1]) == ({"layer0": 0.0, "layer1": 1.0, "layer2": 1.0}, [[1, 1], [0, 1], [1, 1]])
    assert walk(env, [1, 0, 1])[0]["layer1"] == 0.0


def test_the_executed_action_is_told():
    env = make(removal_space(), 350.0)
    env.reset()
    assert [env.step(1)[-1]["action"] for _ in range(3)] == [1, 0, 1]
    with pytest.raises(ResetNeeded):
        env.step(1)


def test_the_observation_describes_the_layer_then_the_place_and_the_last_decision():
    facts = {"type": [0.0, 3.0, 2.0], "kernel": [3.0, 7.0, 1.0], "stride": [1.0, 2.0, 1.0], "padding": [1.0, 3.0, 0.0],
             "outputs": [1.0, 63.0, 4095.0], "skip_start": [0.0, 2.0, 0.0], "skip_end": [0.0, 4.0, 0.0]}  # fmt: skip
    env = make(removal_space(**facts), 700.0)
    seen = [env.reset()[0], *(env.step(action)[0] for action in (1, 0, 1))]
    described = np.array([row[:7] for row in seen])
    assert described[:3] == pytest.approx(
        np.array([[0, 0, 0, 0, 1 / 12, 0, 0], [1, 1, 1, 1, 0.5, 0.5, 1], [2 / 3, -0.5, 0, -0.5, 1, 0, 0]])
    )
    assert not described[3].any()
    assert np.array([row[-2:] for row in seen]) == pytest.approx(np.array([[0, 0], [1 / 3, 1], [2 / 3, 0], [1, 1]]))


def test_any_plan_can_be_replayed():
    env = make(removal_space(), 700.0)
    for values in itertools.product((0.0, 1.0), repeat=3):
        env.reset()
        for value in values:
            info = env.step(env.action_for(value))[-1]
        assert sum(values) == 0 or tuple(info["plan"].values()) == values


def test_knobs_of_other_kinds_have_levels():
    bits = Knob("bits", 2, 8, integer=True)
    ratio = Knob("ratio", 0.25, 1.0, choices=(0.25, 0.5, 0.75, 1.0))
    space = CompressionSpace((bits, ratio, *removal_space().knobs[:1]), lambda values: {"params": float(values.sum())})
    env = make(space, 9.5, levels=4)
    plan, masks = walk(env, [3, 2, 1])
    assert masks == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert plan == {"bits": 8.0, "ratio": 0.75, "layer0": 0.0}


def test_the_toys_optimum_removes_the_useless_layers_alone():
    space, target, evaluate, (best, reward) = toy()
    every = (dict(zip(space.names, map(float, bits), strict=True)) for bits in itertools.product((0, 1), repeat=12))
    assert max(((evaluate(plan), plan) for plan in every), key=lambda pair: pair[0]) == (reward, best)
    assert [name for name, value in best.items() if value] == [f"layer{stage}.0" for stage in range(4)]
    assert space.meets(best, target)
    env = gymnasium.make(NAME).unwrapped
    assert walk(env, [1, 0, 0] * 4)[0] == best
    env.reset()
    assert [env.step(action)[1] for action in [1, 0, 0] * 4] == [0.0] * 11 + [reward]


def test_what_cannot_work_is_refused():
    with pytest.raises(InfeasibleTarget, match=r"target\.params"):
        make(removal_space(), -1.0)
    with pytest.raises(ValueError, match="none of them"):
        RemovalEnv(removal_space())
    with pytest.raises(ValueError, match="1 levels"):
        make(removal_space(), 700.0, levels=1)
    env = make(removal_space(), 700.0)
    env.reset()
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
        env.step(2)
