"""Codebooks in training, by hand: how far ``weights``, ``clusters`` and ``both`` move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learners.non_uniform_quant import MovingCodewords, NonUniformQuant, Settings
from pfray.quantization.codebook import decode, encode
from pfray.quantization.fisher import fisher
from pfray.quantization.qparams import QParams, attach
from pfray.training.loop import fit
from pfray.training.settings import Training
from tests.small import chain, make_task


def start(latent: list[list[float]], words: list[list[float]], settings: Settings) -> tuple[nn.Linear, MovingCodewords]:
    layer = nn.Linear(len(latent[0]), len(latent), bias=False)
    kept = torch.tensor(latent)
    with torch.no_grad():
        layer.weight.copy_(kept)
    attach(layer, QParams(1, codebook=torch.tensor(words)))
    hook = MovingCodewords({"fc": layer}, {"fc": kept}, settings)
    hook(0)
    return layer, hook


def step(layer: nn.Linear, hook: MovingCodewords, gradient: list[list[float]], lr: float = 1.0) -> None:
    layer.weight.grad = torch.tensor(gradient)
    torch.optim.SGD(layer.parameters(), lr=lr).step()
    hook(1)


LATENT, WORDS = [[0.125, 0.25, 0.875, 1.25]], [[0.0, 1.0]]
# Changes of 0.5, 0.25, -0.5 and 0.125: of the first codeword's weights 0.75, of the second's -0.375.
GRADIENT = [[-0.5, -0.25, 0.5, -0.125]]


def test_weights_go_from_codeword_to_codeword_and_these_stay():
    layer, hook = start(LATENT, WORDS, Settings(tune="weights"))
    assert layer.weight.tolist() == [[0, 0, 1, 1]]
    step(layer, hook, GRADIENT)
    assert hook.latents["fc"].tolist() == [[0.625, 0.5, 0.375, 1.375]]
    assert layer.weight_codebook.tolist() == WORDS
    # 0.5 is as far from both; the lower one is taken.
    assert layer.weight.tolist() == [[1, 0, 0, 1]]


def test_clusters_move_by_the_sum_of_their_weights_changes_and_no_weight_leaves_its_own():
    layer, hook = start(LATENT, WORDS, Settings(tune="clusters", cluster_rate=0.5))
    step(layer, hook, GRADIENT)
    assert layer.weight_codebook.tolist() == [[0.375, 0.8125]]
    assert layer.weight.tolist() == [[0.375, 0.375, 0.8125, 0.8125]]
    assert hook.latents["fc"].tolist() == LATENT


def test_both_move_the_codewords_first_and_then_each_weight_to_the_nearest():
    layer, hook = start(LATENT, WORDS, Settings(tune="both", cluster_rate=0.5))
    step(layer, hook, GRADIENT)
    assert layer.weight_codebook.tolist() == [[0.375, 0.8125]]
    assert hook.latents["fc"].tolist() == [[0.625, 0.5, 0.375, 1.375]]
    # The border is 0.59375.
    assert layer.weight.tolist() == [[0.8125, 0.375, 0.375, 0.8125]]


def test_codewords_that_pass_each_other_keep_their_weights_and_the_codebook_rises():
    layer, hook = start(LATENT, WORDS, Settings(tune="clusters", cluster_rate=1.0))
    step(layer, hook, [[-1.0, -1.0, 0.0, 0.5]])
    assert layer.weight.tolist() == [[2.0, 2.0, 0.5, 0.5]]
    assert layer.weight_codebook.tolist() == [[0.5, 2.0]]
    # And so again: the codeword 2 moves by -3, past 0.5.
    step(layer, hook, [[1.0, 2.0, 0.0, 0.0]])
    assert layer.weight.tolist() == [[-1.0, -1.0, 0.5, 0.5]]
    assert layer.weight_codebook.tolist() == [[-1.0, 0.5]]


def test_each_buckets_codewords_move_by_their_own_weights():
    layer, hook = start([[0.0, 1.0], [10.0, 20.0]], [[0.0, 1.0], [10.0, 20.0]], Settings(cluster_rate=1.0))
    step(layer, hook, [[-0.25, 0.0], [0.0, 4.0]])
    assert layer.weight_codebook.tolist() == [[0.25, 1.0], [10.0, 16.0]]


def test_a_step_of_the_clusters_is_that_of_sgd_on_the_codebook_itself():
    torch.manual_seed(0)
    words, inputs = torch.tensor([[-0.5, 0.25]]), torch.randn(7, 6)
    layer, hook = start(torch.randn(5, 6).tolist(), words.tolist(), Settings(tune="clusters", cluster_rate=1.0))
    codes = encode(layer.weight, words)

    def loss(weight: Tensor) -> Tensor:
        return (inputs @ weight.T).tanh().square().sum()

    learned = words.clone().requires_grad_()
    loss(decode(codes, learned)).backward()
    loss(layer.weight).backward()
    step(layer, hook, layer.weight.grad.tolist(), lr=0.01)
    assert torch.allclose(layer.weight_codebook, words - 0.01 * learned.grad, atol=1e-6)


@pytest.mark.parametrize("buckets", ["tensor", "channel"])
@pytest.mark.parametrize("tune", ["weights", "clusters", "both"])
def test_in_training_each_bucket_shows_its_own_codewords_only(tune, buckets):
    task = make_task()
    plan = {"1.0": 3, "2.0": 2, "3.0": 1}
    compressed = NonUniformQuant(chain(), task, Settings(tune=tune, buckets=buckets)).compress(plan, 8)
    model, hook = compressed.model, compressed.hook
    words = {name: model.get_submodule(name).weight_codebook.clone() for name in plan}
    codes = {name: encode(model.get_submodule(name).weight, words[name]) for name in plan}

    def watch(step: int) -> None:
        hook(step)
        for name, width in plan.items():
            layer = model.get_submodule(name)
            book = layer.weight_codebook
            assert book.shape == ((1 if buckets == "tensor" else len(layer.weight)), 2**width)
            assert (book.diff(dim=1) >= 0).all()
            for bucket, part in zip(book, layer.weight.flatten().chunk(len(book)), strict=True):
                assert torch.isin(part, bucket).all()

    fit(model, task, Training(lr=0.05, batch_size=15), seed=0, hook=watch, steps=8)
    for name in plan:
        layer = model.get_submodule(name)
        assert torch.equal(layer.weight_codebook, words[name]) == (tune == "weights")
        still = torch.equal(encode(layer.weight, layer.weight_codebook), codes[name])
        assert still or tune != "clusters"


def test_a_start_of_the_codebook_can_be_chosen():
    task, teacher = make_task(), chain()
    for method in ("quantile", "uniform"):
        settings = Settings(codebook=method)
        qparams = NonUniformQuant(teacher, task, settings).prepared.levels["2.0"][2]
        if method == "uniform":
            steps = qparams.codebook.diff(dim=1)
            assert torch.allclose(steps, steps[:, :1], atol=1e-5)
        else:
            counts = encode(teacher[2][0].weight, qparams.codebook).flatten().bincount(minlength=4)
            assert counts.min() > 0.15 * counts.sum()


def test_by_default_a_codebook_lies_where_the_predictions_need_it():
    task, teacher = make_task(), chain()
    information = fisher(teacher, ["2.0"], task)["2.0"]
    weight = teacher.get_submodule("2.0").weight.detach()
    lost = {}
    for method in ("weighted", "kmeans"):
        qparams = NonUniformQuant(teacher, task, Settings(codebook=method)).prepared.levels["2.0"][2]
        lost[method] = (information.sqrt() * (qparams.quantize(weight) - weight).square()).sum().item()
    assert lost["weighted"] < lost["kmeans"]
    assert Settings().codebook == "weighted"
