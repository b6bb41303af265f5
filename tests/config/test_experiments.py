"""The experiment files: all are valid, and those of the papers have the papers' settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pfray.config.schema import load
from pfray.workflow import components

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_is_valid(path):
    assert components.resolve(load(path)).learner is not None


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_the_paper_of_layer_removal_is_followed_to_its_settings(name):
    """Pahwa et al. 2019, sections 3.3, 3.5 and 4.3."""
    paper = load(ROOT / "experiments" / f"{name}_cifar10_layers_paper.yaml")
    students = paper.search.settings["students"]
    assert (paper.search.trials, students) == (100 * 5, 5)
    # 20 epochs of the 45,000 images in batches of 128, the last one smaller.
    assert paper.search.finetune_steps == 20 * -(-45_000 // paper.finetune.batch_size)
    assert (paper.finetune.lr, paper.finetune.momentum) == (0.001, 0.9)
    assert (paper.distill.weight, paper.distill.temperature) == (0.7, 1.0)
    wanted = paper.search.thresholds
    assert (wanted.accuracy, wanted.latency, wanted.compression) == (0.9, 0.3, 0.6)
    assert paper.model.settings["width"] == 1.0


def test_the_experiments_on_imagenet_have_pocketflows_settings():
    """PocketFlow's nets/mobilenet_at_ilsvrc12.py, nets/resnet_at_ilsvrc12.py and the options of its learners."""

    def experiment(name: str):
        return load(ROOT / "experiments" / f"{name}.yaml")

    channel, sparse = experiment("mobilenet_v1_imagenet_channel"), experiment("mobilenet_v1_imagenet_sparse")
    pruned18, bits4 = experiment("resnet18_imagenet_channel"), experiment("resnet18_imagenet_bits4")
    int8 = [experiment("mobilenet_v2_imagenet_int8"), experiment("resnet50_imagenet_int8")]
    for each in (channel, sparse, pruned18, bits4):
        assert (each.search.name, each.search.trials, each.search.settings["warmup"]) == ("ddpg", 200, 50)
        assert each.search.objective == "accuracy"
    for each in (channel, sparse):
        assert each.teacher.model_dump(exclude={"expect"}) == each.finetune.model_dump(exclude={"rungs"})
        assert (each.finetune.epochs, each.finetune.lr / each.finetune.batch_size) == (100, 0.045 / 96)
        assert each.finetune.weight_decay == 4e-5
    assert (pruned18.finetune.epochs, pruned18.finetune.lr / pruned18.finetune.batch_size) == (100, 0.1 / 256)
    assert {each.finetune.weight_decay for each in (pruned18, bits4, int8[1])} == {1e-4}
    # 1.5 log10(1 + share), the lower bound of the agent's actions; a fifth of the epochs after a group.
    assert channel.learner.settings["min_keep"] == round(1.5 * math.log10(1.5), 2)
    assert channel.learner.settings["group_epochs"] == 0.2 * channel.finetune.epochs
    assert channel.learner.settings["images"] == 60 * 64
    assert (sparse.learner.settings["begin"], sparse.learner.settings["end"]) == (0.1, 0.5)
    assert (sparse.learner.settings["interval"], sparse.search.finetune_steps) == (500, 400)
    # Cross entropy + 4 soft cross entropy, against (1 - weight) of the one and weight T^2 of the other.
    weight, temperature = sparse.distill.weight, sparse.distill.temperature
    assert weight * temperature**2 / (1 - weight) == pytest.approx(4)
    assert (bits4.search.finetune_steps, bits4.finetune.epochs, bits4.learner.settings["min_bits"]) == (2000, 60, 2)
    rates = [each.finetune.lr / each.finetune.batch_size for each in int8]
    assert rates == pytest.approx([0.045e-2 / 96, 0.1e-2 / 256])
    expected = [experiment.teacher.expect for experiment in (pruned18, bits4, *int8)]
    assert expected == [0.6976, 0.6976, 0.7188, 0.7613]
    assert all(each.model.weights is not None for each in (pruned18, bits4, *int8))
