from __future__ import annotations

import importlib
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pfray.storage.identity as module
from pfray.config.schema import Experiment, plain
from pfray.measure.metrics import NAMED
from pfray.nn.fingerprint import model_parts
from pfray.storage.identity import code_differences, differences, identity
from pfray.task import Split, Task
from pfray.utils import cache
from tests.small import make_task

OUTPUTS = "what the model gives for the first inputs (forward() or the normalization)"


class Net(nn.Module):
    """forward: what comes after the layer."""

    activation = staticmethod(torch.relu)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * 8 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x.flatten(1)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def experiment(**changes: object) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": {"name": "lenet", "weights": "x.pt"}, "data": "digits", "learner": "weight_sparse",
        "target": {"sparsity": 0.5}, **changes,
    })  # fmt: skip


def found(model: nn.Module | None = None, task: Task | None = None, **changes: object) -> dict:
    given = experiment(**changes)
    return identity(plain(given), model or net(), task or make_task(), given.model.weights is not None)


def test_equal_models_have_equal_parts_and_the_random_generator_stays_where_it_was():
    one, other = net(), net()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert model_parts(one, make_task()) == model_parts(other, make_task())
    assert torch.rand(1) == expected


@pytest.mark.parametrize("activation", [torch.tanh, torch.nn.functional.relu6, torch.nn.functional.gelu])
def test_another_forward_has_other_parts_although_weights_and_printed_form_are_the_same(monkeypatch, activation):
    model, task = net(), make_task()
    with torch.no_grad():
        model.layer.weight.mul_(3)  # so that some outputs lie beyond 6
    before, known = model_parts(model, task), found(model, task)
    monkeypatch.setattr(Net, "activation", staticmethod(activation))
    after = model_parts(model, task)
    assert before[:3] == after[:3]
    assert before != after
    assert differences(known, found(model, task)) == [OUTPUTS]


def test_a_difference_in_the_last_bits_is_no_other_run():
    known = found()
    shifted = {**known, "outputs": [value * (1 + 1e-6) for value in known["outputs"]]}
    assert differences(known, shifted) == []
    other = {**known, "outputs": [value * 1.01 for value in known["outputs"]]}
    assert differences(known, other) == [OUTPUTS]


def test_other_weights_are_named():
    model = net()
    known = found(model)
    with torch.no_grad():
        model.layer.weight[0, 0] += 1e-4
    assert differences(known, found(model)) == ["the model's weights"]
    assert differences(known, found(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)))) == ["the model's architecture"]


def test_other_data_are_named_by_what_differs_first():
    task = make_task()
    known = found(task=task)
    inputs = task.train.inputs.clone()
    inputs[-1, 0, 0, 0] += 0.1
    values = replace(task, train=Split(inputs, task.train.targets))
    assert differences(known, found(task=values)) == ["the data's values"]
    fewer = replace(task, test=task.test.head(10))
    assert differences(known, found(task=fewer)) == [
        "test data float32 (10, 2, 8, 8), int64 (10,) instead of float32 (20, 2, 8, 8), int64 (20,)"
    ]
    assert differences(known, found(task=replace(task, num_outputs=4))) == ["the data's classes"]


def test_the_last_bits_of_data_that_threads_computed_are_no_other_data():
    task = make_task()
    known = found(task=task)
    inputs = task.train.inputs * (1 + 2e-7 * torch.randint(-1, 2, task.train.inputs.shape))
    assert not torch.equal(inputs, task.train.inputs)
    assert differences(known, found(task=replace(task, train=Split(inputs, task.train.targets)))) == []
    swapped = Split(task.train.inputs.flip(0), task.train.targets)
    assert "the data's values" in differences(known, found(task=replace(task, train=swapped)))
    other = replace(task, mean=(1e-7,))
    assert differences(known, found(task=other)) == []
    assert differences(known, found(task=replace(task, mean=(0.5,)))) == [OUTPUTS]
    assert differences({**known, "contents": {**known["contents"], "train targets": "x"}}, known) == [
        "the data's values"
    ]


def test_another_version_is_named(monkeypatch):
    known = found()
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "99.0")
    assert differences(known, found()) == [f"pfray 99.0 instead of {known['pfray']}"]


def test_the_users_code_is_named_where_it_says_something_else_and_not_for_a_comment(tmp_path: Path, monkeypatch):
    path = tmp_path / "userlearner.py"
    path.write_text("class Mine:\n    rate = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("userlearner")
    choice = {"learner": [{"name": "userlearner:Mine"}]}
    known = found(**choice)
    assert set(known["code"]) == {"userlearner"}
    path.write_text("# mine\nclass Mine:\n\n    rate = 1  # a rate\n")
    assert differences(known, found(**choice)) == []
    path.write_text("class Mine:\n    rate = 2\n")
    assert differences(known, found(**choice)) == ["the code of userlearner"]
    del sys.modules["userlearner"]


def test_no_content_of_an_identity_is_a_traceback():
    known = found()
    for entry in (None, 5, "text", [], {}, [None]):
        changed = differences(dict.fromkeys(known, entry), known)
        assert changed


class Strict(Net):
    """Takes no inputs larger than the data's."""

    largest = float(make_task().normalize(make_task().train.inputs[:2]).abs().max())

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > self.largest:
            raise ValueError("not a pixel")
        return super().forward(x)


def test_a_model_that_takes_no_other_inputs_than_the_datas_has_an_identity_too():
    sizes = [model_parts(model, make_task())[2] for model in (Strict(), net())]
    assert sizes == [6, 12]
    assert len(found(Strict())["outputs"]) == 6


def test_the_code_behind_a_partial_function_is_the_users():
    def wrapped(task: Task) -> Task:
        return replace(task, augment=partial(partial(shifted, by=1), by=2))

    assert list(found(task=wrapped(make_task()))["code"]) == [__name__]


def shifted(inputs: Tensor, generator: torch.Generator, by: int) -> Tensor:
    return inputs.roll(by, -1)


def test_the_moments_of_many_values_are_summed_in_parts(monkeypatch):
    task = make_task()
    values = task.train.inputs.double().flatten()
    places = torch.arange(1, len(values) + 1) / len(values)
    expected = [values.mean().item(), values.square().mean().item(), (values * places).mean().item()]
    for chunk in (module.CHUNK, 1000):  # all at once; eight parts
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert found(task=task)["contents"]["train inputs"] == pytest.approx(expected, rel=1e-6)


def script(monkeypatch, text: str) -> types.ModuleType:
    """The module of a script or notebook with this text and no file."""
    found = types.ModuleType("__main__")
    exec(text, vars(found))
    monkeypatch.setitem(sys.modules, "__main__", found)
    return found


LOSS = """
import torch
scale, calls = 2.0, 0
def part(outputs):
    return outputs * scale
def loss(outputs, targets):
    return part(outputs).sum()
class Learner:
    rate = 1
    def plan(self):
        return self.rate
"""


def test_a_scripts_functions_and_classes_count_by_their_own_code(monkeypatch):
    def of(text: str) -> dict:
        task = replace(make_task(), loss=script(monkeypatch, text).loss)
        return found(task=task, learner=[{"name": "__main__:Learner"}])

    known = of(LOSS)
    assert set(known["functions"]) == {"loss", "Learner"}
    assert known["code"] == {}
    assert differences(known, of("# once more\n" + LOSS + "compress(resume=True) if calls else None\n")) == []
    assert differences(known, of(LOSS.replace(".sum()", ".mean()"))) == ["the code of loss"]
    assert differences(known, of(LOSS.replace("* scale", "+ scale"))) == ["the code of loss"]
    assert differences(known, of(LOSS.replace("2.0", "3.0"))) == ["the code of loss"]
    changed = of(LOSS.replace("rate = 1", "rate = 2"))
    assert differences(known, changed) == ["the code of Learner"]
    assert code_differences(known, {"learner": "__main__:Learner"}) == ["the code of Learner"]
    # Kept by an earlier version, as a hash of the whole file.
    assert differences({**known, "code": {"__main__": "0123"}}, known) == []


def test_another_loss_or_metric_is_named_and_an_earlier_versions_run_knows_none():
    task = make_task()
    known = found(task=task)
    assert differences(known, found(task=replace(task, loss=F.l1_loss))) == [
        "loss torch.nn.functional.l1_loss instead of torch.nn.functional.cross_entropy"
    ]
    metric = replace(task, score=NAMED["mae"].score, metric_name="mae", higher_is_better=False)
    assert differences(known, found(task=metric)) == ["metric mae instead of accuracy"]
    earlier = {key: value for key, value in known.items() if key not in ("task", "functions")}
    assert differences(earlier, found(task=metric)) == []
