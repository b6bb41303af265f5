"""A network in 8 bits mimics the features of its teacher, although its modules have become a graph."""

from __future__ import annotations

import pytest
import torch

from learners.litert_quant import LitertQuant
from pfray.models.resnet import resnet20
from pfray.task import Split, Task
from pfray.training.features import Features, find_stages, repeated_blocks
from pfray.training.loop import fit
from pfray.training.settings import Distill, Training
from tests.zoo import randomize


def test_a_network_in_8_bits_has_the_stages_of_its_teacher():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    split = Split(images, torch.arange(8) % 10)
    task, teacher = Task("images", split, split, split, 10), randomize(resnet20()).eval()
    algorithm = LitertQuant(teacher, task)
    student = algorithm.finish(algorithm.space().uniform({"bits": 8})).model
    # The last block of a resolution is rounded together with the shortcut that pads it.
    own = [name for name in repeated_blocks(teacher) if name not in ("layer1.2", "layer2.2")]
    assert [stage.name for stage in find_stages(student, teacher, images)] == own

    # Rounding to 8 bits is all that sets the two apart.
    features = Features(student, teacher, images, 0)
    own, theirs = [], []
    with torch.no_grad(), features.of(student, own):
        student.eval()(images)
    with torch.no_grad(), features.of(teacher, theirs):
        teacher(images)
    assert 1e-7 < features.error(own, theirs).item() < 0.02
    assert not features.adapters

    losses = []
    fit(
        student, task, Training(epochs=1, lr=1e-3, batch_size=8), seed=0, teacher=teacher,
        distill=Distill(features=1e3), on_epoch=lambda epoch, loss, optimizer: losses.append(loss),
    )  # fmt: skip
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(teacher(images), split.targets).item()
    assert losses[0] == pytest.approx(plain + 1e3 * features.error(own, theirs).item(), rel=0.3)
