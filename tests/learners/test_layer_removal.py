"""Layers and blocks taken out: the knobs, the student's initial weights, the second stage, and the export."""

from __future__ import annotations

import pytest
import torch

from learners.layer_removal import FILTERS, LayerRemoval, Settings
from pfray.data import digits
from pfray.errors import UnsupportedModel
from pfray.measure.cost import count_params, total_macs
from pfray.measure.evaluation import evaluate
from pfray.models.resnet18 import resnet18
from pfray.models.vgg import vgg11
from pfray.task import Task, example_input
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.loop import fit
from pfray.training.settings import Distill, Training
from tests.small import equal, state


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


@pytest.fixture(scope="module")
def teacher(task: Task) -> torch.nn.Module:
    """A narrow VGG-11 that has learned the digits."""
    torch.manual_seed(0)
    model = vgg11(in_channels=1, width=0.125)
    fit(model, task, Training(epochs=4, lr=0.05, batch_size=64), seed=0)
    return model.eval()


def plan_of(model: torch.nn.Module, task: Task, *gone: str) -> dict[str, float]:
    return {name: float(name not in gone) for name in LayerRemoval(model, task).space().names}


def student_of(model: torch.nn.Module, task: Task, *gone: str) -> torch.nn.Module:
    student = LayerRemoval(model, task).compress(plan_of(model, task, *gone)).model
    reestimate_batch_norm(student, task, 250, "float32")
    return student


def test_a_knob_describes_its_layer_as_the_paper_does(task):
    space = LayerRemoval(resnet18(in_channels=1, width=0.125), task).space()
    facts = {knob.name: knob.facts for knob in space.knobs}
    names = ("type", "kernel", "stride", "padding", "outputs", "skip_start", "skip_end", "block")
    assert [facts["layer2.0.conv1"][n] for n in names] == [0, 3, 2, 1, 16, 0, 0, 0]
    # Its block is the fifth layer's: the first convolution and two blocks of two come before, then a block of three.
    assert [facts["layer2.1"][n] for n in names] == [3, 3, 1, 1, 16, 9, 10, 0]
    inner = facts["layer2.1.conv1"]
    assert [inner[n] for n in names] == [0, 3, 1, 1, 16, 9, 10, space.names.index("layer2.1") + 1]
    assert all(knob.choices == (0.0, 1.0) for knob in space.knobs)


def test_the_student_starts_near_the_teacher_where_what_goes_does_little(teacher, task):
    before = evaluate(teacher, task, task.validation).accuracy
    curves = LayerRemoval(teacher, task).error_curves()
    least = min(curves, key=lambda name: curves[name][0])
    student = student_of(teacher, task, least)
    assert before > 0.85
    assert evaluate(student, task, task.validation).accuracy > before - 0.1
    assert count_params(student)[0] < count_params(teacher)[0]


def test_without_every_layer_that_can_go_it_still_learns(teacher, task):
    space = LayerRemoval(teacher, task).space()
    student = student_of(teacher, task, *space.names)
    assert count_params(student)[0] == space.costs(plan_of(teacher, task, *space.names))["params"] < 300
    before = evaluate(student, task, task.validation).loss
    fit(
        student, task, Training(epochs=2, lr=0.02, batch_size=64), seed=0, teacher=teacher, distill=Distill(weight=0.7)
    )
    assert evaluate(student, task, task.validation).loss < before


def test_it_exports_and_the_file_is_small(teacher, task):
    gone = LayerRemoval(teacher, task).space().names[2:]
    student = student_of(teacher, task, *gone).eval()
    program = torch.export.export(student, (example_input(task),)).module()
    inputs = task.normalize(task.test.inputs[:1])
    assert torch.allclose(program(inputs), student(inputs), atol=1e-5)
    held = sum(parameter.numel() for parameter in program.parameters())
    assert held == count_params(student)[0] < 0.3 * count_params(teacher)[0]


def test_the_second_stage_leaves_the_share_of_the_filters(teacher, task):
    algorithm = LayerRemoval(teacher, task, Settings(filters=0.5, filter_epochs=3, round_to=1))
    plan = plan_of(teacher, task, "features.18", "features.25")
    (first,) = algorithm.stages(plan)
    assert (first.plan[FILTERS], first.epochs) == (1.0, 3)
    whole = algorithm.finish(first.plan)
    half = algorithm.finish(plan, whole.model)
    for finished in (whole, half):
        again = algorithm.rebuild(finished.structure)
        again.load_state_dict(finished.model.state_dict())
        assert total_macs(again, example_input(task)) == total_macs(finished.model, example_input(task))
    widths = [
        [m.out_channels for m in each.model.modules() if isinstance(m, torch.nn.Conv2d)] for each in (whole, half)
    ]
    assert widths[1] == [width // 2 for width in widths[0]]
    assert LayerRemoval(teacher, task).stages(plan) == []


def test_the_model_of_an_earlier_stage_stays_as_it_is(teacher, task):
    algorithm, plan = LayerRemoval(teacher, task), plan_of(teacher, task, "features.25")
    start = algorithm.finish(plan).model
    with torch.no_grad():
        start.get_parameter("features.0.weight").mul_(2)  # as if a training had moved it
    before = state(start)
    assert not equal(state(algorithm.finish(plan, start).model), before)
    assert equal(state(start), before)


def test_skipped_layers_have_no_knob_and_unknown_ones_are_refused(teacher, task):
    names = LayerRemoval(teacher, task).space().names
    assert LayerRemoval(teacher, task, Settings(skip=tuple(names[1:]))).space().names == names[:1]
    with pytest.raises(UnsupportedModel, match=r"learner.skip: no removable layer or block 'features.0'. Allowed:"):
        LayerRemoval(teacher, task, Settings(skip=("features.0",))).space()
    with pytest.raises(UnsupportedModel, match=r"no layer that can be removed \(features.0: it reads the input"):
        LayerRemoval(teacher, task, Settings(skip=tuple(names))).space()
