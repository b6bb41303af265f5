"""The promises of every way of exchanging gradients, on two processes without Ray."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pfray.training.loop import fit
from pfray.training.settings import Distributed
from tests.two_ranks import (
    TRAINING,
    averaged,
    learned,
    normalized,
    on_two_ranks,
    planned,
    small_digits,
    train,
    with_norms,
)

HOOKS = ("none", "fp16", "ecq")
# With quantized gradients, the harder case; plain ones for a mask and a codebook, too.
LEARNERS = {
    "weight_sparse": {"interval": 2},
    "channel_pruned": {"images": 100, "round_to": 1},
    "filter_ranked": {"round_to": 1},
    "dis_chn_pruned": {"round_to": 1, "losses": 1, "steps": 2, "images": 64, "per_step": 16, "inner_steps": 0},
    "uniform_quant": {"activation_bits": 4, "images": 100, "interval": 2},
    "non_uniform_quant": {},
    "litert_quant": {"images": 100},
}
TRAINED = [*((name, "ecq") for name in LEARNERS), ("weight_sparse", "none"), ("non_uniform_quant", "none")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    cases = {hook: partial(train, Distributed(comm_hook=hook)) for hook in HOOKS}
    cases |= {"shared norms": partial(normalized, True), "own norms": partial(normalized, False)}
    cases |= {f"{name} {hook}": partial(learned, name, LEARNERS[name], hook) for name, hook in TRAINED}
    folder = tmp_path_factory.mktemp("ranks")
    cases |= {"scaled": partial(planned, folder, 0.05, True), "as given": partial(planned, folder, 0.1, False)}
    cases |= {f"average {kind}": partial(averaged, folder, kind) for kind in ("none", "ema", 0.25)}
    return on_two_ranks(cases, folder)


@pytest.mark.parametrize("hook", HOOKS)
def test_all_ranks_have_the_same_weights_bit_by_bit(results, hook):
    one, other = results[hook]
    assert torch.equal(one["weights"], other["weights"])


@pytest.mark.parametrize("hook", HOOKS)
def test_a_training_continued_from_half_way_is_the_same_bit_by_bit(results, hook):
    for rank in results[hook]:
        assert torch.equal(rank["weights"], rank["resumed"])


@pytest.mark.parametrize(("hook", "fewer"), [("none", 1), ("fp16", 2), ("ecq", 10)])
def test_the_bytes_sent_are_counted(results, hook, fewer):
    for rank in results[hook]:
        assert rank["sent_bytes"] * fewer <= rank["bytes_of_float32"]
        assert hook == "ecq" or rank["sent_bytes"] * fewer == rank["bytes_of_float32"]


@pytest.mark.parametrize("hook", HOOKS)
def test_all_learn_what_is_learned_without_compression(results, hook):
    accuracies = {name: results[name][0]["accuracy"] for name in ("none", hook)}
    assert accuracies["none"] > 0.9
    # 359 test images: two points are about two standard errors of the difference.
    assert abs(accuracies[hook] - accuracies["none"]) <= 0.02


def test_shared_batch_norms_are_those_of_one_process_with_the_whole_batch(results):
    task, model = small_digits(), with_norms()
    fit(model, task, TRAINING, seed=0, steps=3)
    shared, own = results["shared norms"], results["own norms"]
    for name, value in model.state_dict().items():
        assert torch.allclose(shared[0][name], value, rtol=1e-4, atol=1e-4), name
        assert torch.equal(shared[0][name], shared[1][name])
    assert not torch.allclose(own[0]["1.running_mean"], own[1]["1.running_mean"], rtol=1e-4, atol=1e-4)


def test_the_learning_rate_is_scaled_by_the_workers_on_request(results):
    assert all(torch.equal(*pair) for pair in zip(results["scaled"], results["as given"], strict=True))


def test_averaged_weights_and_their_batch_norms_are_the_same_on_both_ranks(results):
    for kind in ("ema", "0.25"):
        one, other = results[f"average {kind}"]
        assert torch.equal(one, other)
    assert not torch.equal(results["average ema"][0], results["average none"][0])


@pytest.mark.parametrize(("name", "hook"), TRAINED)
def test_masks_levels_and_codebooks_of_every_learner_stay_the_same_on_all_ranks(results, name, hook):
    one, other = results[f"{name} {hook}"]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
