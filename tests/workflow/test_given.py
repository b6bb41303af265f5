"""Model and data as objects: what is assumed and said, and faults in one line."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pfray.data._task_checks import check_task
from pfray.errors import DataError, PfrayError, TrainingFailed, UnsupportedModel, UserCodeFailed
from pfray.measure.evaluation import measure
from pfray.measure.metrics import MeanIoU
from pfray.nn.checks import check_evaluation
from pfray.nn.output_checks import check_output
from pfray.task import top1
from pfray.workflow.given import Given, Judging, given_run

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 3, 8, 8, generator=GENERATOR), torch.arange(40) % 4


def net(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


def given(model: nn.Module | None = None, data: object = (X, Y), **judged: object) -> Given:
    return given_run(model or net(), data, data, data, Judging(**judged))  # type: ignore[arg-type]


def loaded(found: Given) -> Given:
    """As a run checks it before anything is written."""
    check_output(found.model, found.task)
    check_evaluation(found.model, found.task)
    return found


def test_a_classifier_needs_no_word_about_loss_and_metric():
    found = loaded(given())
    assert (found.task.num_outputs, found.task.metric_name, found.task.score) == (4, "accuracy", top1)
    assert found.notes == ()
    assert found.is_trained


def test_what_is_held_out_and_what_is_quoted_is_said():
    found = given_run(net(), (X, Y), None, None, Judging())
    assert "4 of the 40 training samples are held out" in found.notes[0]
    assert "the results are those on the validation data" in found.notes[1]
    assert len(found.task.train) == 36
    assert found.task.test is found.task.validation


def test_the_model_is_a_copy_out_of_its_wrappers():
    model = net()
    found = given(nn.DataParallel(torch.compile(model)))  # type: ignore[arg-type]
    assert type(found.model) is nn.Sequential
    assert found.model[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_regression_is_judged_by_its_loss_or_a_metric_of_lower_is_better():
    target = X.mean((1, 2, 3))[:, None]
    found = loaded(given(net(1), (X, target), loss=F.mse_loss))
    assert (found.task.metric_name, found.task.higher_is_better) == ("loss", False)
    assert "models are compared by the loss" in found.notes[0]

    named = loaded(given(net(1), (X, target), loss=F.mse_loss, metric="mse"))
    by_loss, by_metric = (measure(each.model, each.task, each.task.test) for each in (found, named))
    assert by_metric.accuracy == pytest.approx(by_loss.accuracy, rel=1e-5)
    assert by_metric.accuracy == pytest.approx(-by_loss.loss, rel=1e-5)
    assert by_metric.accuracy < 0


def test_a_users_own_evaluation_is_the_metric():
    found = loaded(given(evaluate=lambda model: float(len(list(model.parameters())))))
    measured = measure(found.model, found.task, found.task.validation)
    assert measured.accuracy == 4.0
    assert measured.accuracy_error is None


def test_a_direction_that_nobody_said_is_remarked_on():
    def error(outputs, targets):
        return (outputs.argmax(1) != targets).float()

    words = "more is taken to be better for error; higher_is_better=False if not"
    assert given(metric=error).notes == (words,)
    assert given(metric=error, higher_is_better=False).notes == ()
    assert given(metric="accuracy").notes == given(metric=MeanIoU()).notes == ()
    assert given(evaluate=len).notes == (words.replace("error", "len"),)


def test_a_metric_may_see_all_batches_before_it_has_a_value():
    maps = nn.Conv2d(3, 4, 1)
    labels = torch.randint(4, (40, 8, 8), generator=GENERATOR)
    found = given(nn.Sequential(maps), (X, labels), metric=MeanIoU())
    wanted = MeanIoU()
    wanted.update(maps(X), labels)
    assert measure(found.model, found.task, found.task.test).accuracy == pytest.approx(wanted.compute(), abs=1e-6)


class Labelled(nn.Module):
    """Gives a mapping, as the models of transformers do, or a tuple."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.net, self.form = net(), form

    def forward(self, x):
        logits = self.net(x)
        return {"features": x, "logits": logits} if self.form == "mapping" else (x, logits)


def test_logits_are_found_in_a_mapping_and_chosen_from_a_tuple():
    found = loaded(given(Labelled("mapping")))
    assert found.task.output == "logits"
    assert found.notes == ("loss and metric read 'logits' of the model's outputs",)
    assert loaded(given(Labelled("tuple"), output=1)).task.num_outputs == 4


class OnlyInTraining(nn.Module):
    """An auxiliary output that evaluation does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        y = self.net(x)
        return (y, y) if self.training else y


def test_outputs_of_the_training_mode_are_tried_before_a_run():
    words = r"^loss=cross_entropy fails on outputs in training mode, a tuple of \[0\] float32 \(2, 4\)"
    with pytest.raises(UnsupportedModel, match=words) as caught:
        loaded(given(OnlyInTraining()))
    assert "output=" in str(caught.value)
    loaded(given(OnlyInTraining(), output=0))

    def both(outputs, targets):
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(F.cross_entropy(part, targets) for part in parts)

    loaded(given(OnlyInTraining(), loss=both, metric=lambda outputs, targets: top1(outputs, targets)))


class OfTheBatch(nn.Module):
    """Normalizes over the batch, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x - x.mean(0))


class Late(list):
    """A label out of range that is not among the first samples that are read."""

    def __init__(self) -> None:
        super().__init__((X[index % 40], int(Y[index % 40])) for index in range(400))
        head = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:64].tolist()
        last = next(index for index in range(400) if index not in head)
        self[last] = (X[0], 4)


class Locked(list):
    """Samples beside an open lock, which cannot be pickled."""

    def __init__(self) -> None:
        super().__init__((x, int(y)) for x, y in zip(X, Y, strict=True))
        self.lock = threading.Lock()


def untyped(model):
    raise KeyError("no such file")


class Vector(MeanIoU):
    def compute(self):
        return torch.ones(3)


FAULTS = {
    "an evaluation that fails": (lambda: loaded(given(evaluate=untyped)), UnsupportedModel, "no such file"),
    "a metric of several numbers": (
        lambda: loaded(given(metric=Vector())), UnsupportedModel, "its compute() gives float32 (3,), not one number",
    ),
    "a score that is no number": (
        lambda: loaded(given(metric=lambda outputs, targets: outputs[:, 0] * float("nan"))), UnsupportedModel,
        ") has a mean of nan, not a finite number",
    ),
    "a data set that workers cannot get": (
        lambda: check_task(given(data=Locked()).task), DataError, "the train data cannot be sent to workers",
    ),
    "labels out of range": (lambda: given(data=(X, Y + 1)), DataError, "hold the label 4"),
    "labels out of range in a loader": (
        lambda: given(data=[(x, int(y) + 1) for x, y in zip(X, Y, strict=True)]), DataError, "hold the label 4",
    ),
    "inputs that the model does not take": (
        lambda: given(data=(X[:, :1], Y)), UnsupportedModel, "fails on a batch of the training data, float32 (2, 1",
    ),
    "a batch of arguments that the model does not take": (
        lambda: given(data=((X, X), Y)), UnsupportedModel, "Remedy: adapt=fn(batch)",
    ),
    "float targets without a loss": (lambda: given(data=(X, Y.float())), DataError, "the targets are float32"),
    "outputs that depend on the batch": (
        lambda: loaded(given(OfTheBatch())), UnsupportedModel, "gives a sample other outputs alone than beside",
    ),
    "a missing output": (lambda: given(Labelled("mapping"), output="scores"), UnsupportedModel, "have no 'scores'"),
    "a metric of one number": (
        lambda: loaded(given(metric=lambda o, t: (o.argmax(1) == t).float().mean())), UnsupportedModel,
        ") gives float32 (), not a tensor of one number a sample, (2,). Remedy: no mean over the samples",
    ),
    "a model that is none": (lambda: given(SimpleNamespace()), PfrayError, "not a torch.nn.Module"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_with_a_remedy(fault):
    make, kind, words = FAULTS[fault]
    with pytest.raises(kind) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Remedy: " in str(caught.value)


def odd(outputs, targets):
    if len(targets) > 2:
        raise RuntimeError("an odd batch")
    return top1(outputs, targets)


class Odd(MeanIoU):
    def update(self, outputs, targets):
        odd(outputs, targets)
        super().update(outputs, targets)


def odd_loss(outputs, targets):
    return odd(outputs, targets).mean() + F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(("judged", "begin"), [
    ({"metric": odd}, "score=odd fails on"), ({"metric": Odd()}, "score=Odd fails on"),
    ({"loss": odd_loss, "metric": top1}, "loss=odd_loss fails on"),
])  # fmt: skip
def test_what_fails_on_whole_batches_alone_is_named_when_it_does(judged, begin):
    found = loaded(given(**judged))
    line = odd.__code__.co_firstlineno + 2
    with pytest.raises(UserCodeFailed) as caught:
        measure(found.model, found.task, found.task.test)
    assert str(caught.value) == (
        f"{begin} outputs float32 (40, 4) and targets int64 (40,): RuntimeError: an odd batch ({__file__}, line "
        f"{line}). Remedy: mend it, then begin anew with --force"
    )


def test_a_label_that_is_found_late_is_named_for_a_metric_of_the_users_too():
    found = loaded(given(data=Late(), metric=odd))
    with pytest.raises(DataError) as caught:
        list(found.task.batches(found.task.validation, 100, torch.device("cpu")))
    words = "task Sequential: the targets of a batch of the validation split hold the label 4 ("
    assert str(caught.value).startswith(words)


def test_a_metric_that_is_not_a_number_is_named():
    def unfinished(outputs, targets):
        return torch.full((len(targets),), float("nan"))

    found = given(metric=unfinished)
    with pytest.raises(TrainingFailed, match="the metric unfinished is nan on 40 samples"):
        measure(found.model, found.task, found.task.test)
