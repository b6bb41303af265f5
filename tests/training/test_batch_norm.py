from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pfray.training.batch_norm import reestimate_batch_norm
from tests.small import make_task
from tests.training.toy import equal, net


def test_batch_norm_statistics_become_the_plain_average_over_batches(task):
    model = net().train()
    model[0].eval()
    model[1].momentum = 0.25
    modes = [module.training for module in model.modules()]
    weight = model[0].weight.detach().clone()
    reestimate_batch_norm(model, task, 20, "float32", batch_size=10)
    with torch.no_grad():
        # (2 batches, 10, 4 channels, 3 x 3)
        seen = model[0](task.normalize(task.train.inputs[:20])).unflatten(0, (2, 10))
    assert torch.allclose(model[1].running_mean, seen.mean((0, 1, 3, 4)), atol=1e-6)
    assert torch.allclose(model[1].running_var, seen.var((1, 3, 4)).mean(0), atol=1e-6)
    assert model[1].momentum == 0.25
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[0].weight, weight)


def test_batch_norm_statistics_forget_what_they_were_and_do_not_depend_on_being_run_twice(task):
    one, other = net(), net()
    other[1].running_mean.fill_(100.0)
    for model in (one, other, other):
        reestimate_batch_norm(model, task, 40, "float32", batch_size=16)
    assert equal(one, other)
    reestimate_batch_norm(other, task, 0, "float32")
    assert equal(one, other)


def test_no_batch_of_a_single_image_is_left_over_for_the_statistics(task):
    # On 1x1 feature maps, as at the end of a mobilenet, such a batch has no variance and torch refuses it.
    model = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 40))
    reestimate_batch_norm(model, task, 21, "float32", batch_size=10)
    with torch.no_grad():
        seen = model[0](task.normalize(task.train.inputs[:21])).view(3, 7, 4)
    assert torch.allclose(model[1].running_var, seen.var(1).mean(0), atol=1e-6)


def test_reestimating_batch_norm_remembers_nothing_for_gradients():
    seen = []
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    model[1].register_forward_hook(lambda _, inputs, output: seen.append(output.requires_grad))
    reestimate_batch_norm(model, make_task(), 40, "float32")
    assert seen == [False]


def test_augmented_statistics_are_those_of_the_images_that_a_training_sees():
    task = replace(make_task(), augment=lambda inputs, generator: inputs + 10)
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(2))
    model.register_parameter("device", nn.Parameter(torch.zeros(1)))
    means = {}
    for augmented in (False, True):
        reestimate_batch_norm(model, task, 60, "float32", augmented=augmented)
        means[augmented] = model[1].running_mean.clone()
    assert torch.allclose(means[True], means[False] + 10, atol=1e-4)
