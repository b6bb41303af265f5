"""DDPG as published for compression: what it stores, how it explores, its presets, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from pfray.search.critic import Critic
from pfray.search.critic import Settings as CriticSettings
from pfray.search.ddpg import DDPG, Settings
from tests.search.toy import LIMITS, SPACE, drive

FIRST = (("uniform", SPACE.uniform(LIMITS)),)
PRESETS = Path(__file__).resolve().parents[2] / "configs" / "search"
# Networks and steps for a landscape of six knobs.
QUICK = {"warmup": 20, "hidden": 64, "actor_rate": 1e-3, "gamma": 1.0, "updates": 4}


def search(**settings) -> DDPG:
    return DDPG(SPACE, LIMITS, Settings(**settings), seed=0, trials=60, first_plans=FIRST)


def test_the_environment_gives_the_reward_at_the_end_and_every_transition_of_the_episode_carries_it():
    searcher = search(warmup=3, hidden=8)
    env = searcher.environment(-0.4)
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[1] for _ in SPACE.knobs] == [0, 0, 0, 0, 0, -0.4]
    drive(searcher, 9)
    memory = {key: array[:54].reshape(9, 6, -1) for key, array in searcher.agent.memory.items()}
    scores = np.array([record["score"] for record in searcher.records])
    assert memory["reward"][..., 0] == pytest.approx(np.repeat(scores[:, None], 6, 1), abs=1e-6)
    assert memory["over"][..., 0].tolist() == [[0, 0, 0, 0, 0, 1]] * 9
    assert np.array_equal(memory["next"][:, :-1], memory["observation"][:, 1:])
    # The actions are the measured plan's: of 0.5 + 0.5 a of each knob's range.
    plans = np.array([SPACE.encode(record["plan"]) for record in searcher.records])
    assert 0.5 + 0.5 * memory["action"][..., 0] == pytest.approx(plans, abs=1e-5)


def test_the_baseline_follows_the_scores_and_a_failed_trial_has_the_worst_of_them():
    searcher = search(warmup=50)
    for score in (None, 0.5, 0.9, None):
        searcher.tell(FIRST[0][1], score)
    # The first failure has nothing to be compared with.
    assert len(searcher.agent) == 18
    assert searcher.agent.memory["reward"][:18:6, 0] == pytest.approx([0.5, 0.9, 0.5])
    assert searcher.agent.baseline == pytest.approx(0.95 * (0.95 * 0.5 + 0.05 * 0.9) + 0.05 * 0.5)


def test_exploration_is_constant_in_the_warm_up_and_then_decays():
    searcher = search(warmup=5, noise=1.0, noise_decay=0.5, hidden=8, updates=1)
    seen, moves = [], []
    for number in range(16):
        seen.append(searcher.noise)
        drive(searcher, 1)
        assert number == 0 or searcher.records[-1]["origin"] == ("ddpg, random start" if number < 5 else "ddpg")
        moves.append(SPACE.encode(searcher.records[-1]["plan"]))
    assert seen[:8] == pytest.approx([1, 1, 1, 1, 1, 1, 0.5, 0.25])
    # Plans of the warm-up lie all over the range, the last ones beside each other.
    assert np.std(moves[1:6], 0).mean() > 5 * np.std(moves[13:], 0).mean()


def test_nothing_is_trained_in_the_warm_up_and_one_step_for_each_transition_after_it():
    searcher = search(warmup=4, hidden=8)
    drive(searcher, 4)
    assert searcher.agent.optimizers["critic"].state_dict()["state"] == {}
    drive(searcher, 2)
    assert searcher.agent.optimizers["critic"].state_dict()["state"][0]["step"] == 2 * len(SPACE)


def test_with_noise_on_the_parameters_one_perturbed_actor_walks_a_whole_episode():
    searcher = search(warmup=2, hidden=8, noise_on="parameters", layer_norm=True, noise_decay=0.9)
    drive(searcher, 4)
    assert searcher.agent.parameter_noise.scale != 1.0
    # Nothing is drawn for single actions: from the same draws for the parameters comes the same plan.
    draws = searcher.agent.rng.bit_generator.state, searcher.rng.bit_generator.state
    plan = searcher.ask()
    searcher.agent.rng.bit_generator.state, searcher.rng.bit_generator.state = draws
    env, actor = searcher.environment(), searcher.agent.perturbed()
    observation, info = env.reset(seed=0)[0], {}
    for _ in SPACE.knobs:
        observation, _, _, _, info = env.step(searcher.agent.act(observation, actor=actor))
    assert info["plan"] == plan


@pytest.mark.parametrize("name", ["ddpg_amc", "ddpg_pocketflow"])
def test_a_preset_names_every_setting_but_the_environment(name):
    settings = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["search"]
    assert settings.pop("name") == "ddpg"
    assert settings.pop("trials") == 4 * settings["warmup"]
    assert (settings.pop("patience"), settings.pop("finetune_steps")) == (1, 0)  # as published: all trials, at once
    found = Settings(**settings)
    assert {**settings, "env": found.env} == found.__dict__
    assert (found.layer_norm, found.noise_on) == ((False, "actions") if name == "ddpg_amc" else (True, "parameters"))


@pytest.mark.parametrize(
    ("found", "settings"),
    [
        (DDPG, Settings(warmup=4, hidden=16)),
        (DDPG, Settings(warmup=4, hidden=16, noise_on="parameters", layer_norm=True, gamma=0.9)),
        (Critic, CriticSettings(warmup=4, hidden=16)),
    ],
)
def test_the_state_through_json_and_tensors_leads_to_the_same_plans(found, settings, tmp_path):
    searcher, restored = (found(SPACE, LIMITS, settings, seed=s, trials=60, first_plans=FIRST) for s in (0, 1))
    drive(searcher, 9)
    values, tensors = searcher.state()
    save_file(tensors, tmp_path / "tensors")
    restored.records = list(searcher.records)
    restored.load_state(json.loads(json.dumps(values)), load_file(tmp_path / "tensors"))
    assert drive(restored, 4) == drive(searcher, 4)


@pytest.mark.parametrize("settings", [
    QUICK, {**QUICK, "noise_on": "parameters", "layer_norm": True, "gamma": 0.9, "observe": "all"},
])  # fmt: skip
def test_its_last_plans_are_nearer_to_the_best_one_than_the_uniform_plan_and_those_of_the_warm_up(settings):
    # Far from where untrained networks lead, which end 1.1 times as far away as the uniform plan.
    wanted = SPACE.decode(np.array([0.9, 0.1, 0.8, 0.2, 0.7, 0.2]))
    best = SPACE.encode(SPACE.fit_to_target(wanted, LIMITS))
    shares = []
    for seed in range(2):
        searcher = DDPG(SPACE, LIMITS, Settings(**settings), seed=seed, trials=60, first_plans=FIRST)
        drive(searcher, 60, lambda entry: {"score": -float(((SPACE.encode(entry["plan"]) - best) ** 2).sum())})
        losses = np.array([-record["score"] for record in searcher.records])
        assert losses[-15:].mean() < 0.5 * losses[1:20].mean()
        shares.append(losses[-15:].mean() / losses[0])
    assert np.mean(shares) < 0.75, shares  # measured: 0.58 and 0.43
