"""What a model's function is given from its task, under the name that it has for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pfray.errors import ConfigError
from pfray.nn.build import build

KNOWN = {"num_outputs": 4, "in_channels": 2}


class Net(nn.Module):
    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(in_chans, num_classes)


def classes_only(num_classes: int = 10, width: int = 1) -> nn.Module:
    return nn.Linear(3, num_classes)


def forwards(size: int = 1, **settings: Any) -> nn.Module:
    torch.rand(5)  # an attempt that is refused may have drawn numbers
    return Net(**settings)


def takes_none(**settings: Any) -> nn.Module:
    return nn.Linear(3, 3, **settings)


def own_fault(num_outputs: int, **settings: Any) -> nn.Module:
    return Net(num_outputs=num_outputs)  # type: ignore[call-arg]


def made(function: Any, **settings: Any) -> tuple[Any, list[str]]:
    notes: list[str] = []
    return build("model", function, KNOWN, settings, notes.append), notes


def test_an_argument_goes_by_the_name_that_the_function_has():
    model, notes = made(classes_only)
    assert model.out_features == 4
    assert notes == ["model: its function is given num_classes=4 from the task"]
    assert made(classes_only, num_classes=6)[0].out_features == 6


def test_a_function_of_any_keywords_is_given_those_that_it_does_not_refuse():
    torch.manual_seed(0)
    model, notes = made(forwards)
    assert (model.layer.out_features, model.layer.in_features) == (4, 2)
    assert notes == ["model: its function is given num_classes=4, in_chans=2 from the task"]
    torch.manual_seed(0)
    assert torch.equal(forwards(num_classes=4, in_chans=2).layer.weight, model.layer.weight)
    model, notes = made(takes_none)
    assert model.out_features == 3
    assert notes == ["model: its function is given nothing from the task"]


def test_pfrays_own_names_need_no_note():
    assert made(lambda num_outputs: nn.Linear(2, num_outputs))[1] == []
    assert made(lambda: nn.Linear(2, 2))[1] == []
    assert made(lambda **known: nn.Linear(known["in_channels"], known["num_outputs"]))[1] == []


@pytest.mark.parametrize(("function", "settings", "words"), [
    (own_fault, {}, "unexpected keyword argument 'num_outputs' ("),
    (forwards, {"widht": 3}, "unexpected keyword argument 'widht'"),
    (takes_none, {"dtype": "x"}, "which is given nothing from the task"),
])  # fmt: skip
def test_what_else_the_function_refuses_is_an_error(function, settings, words):
    with pytest.raises(ConfigError) as caught:
        made(function, **settings)
    assert words in str(caught.value)
    assert "Remedy: correct the settings of 'model'" in str(caught.value)


def test_torchvisions_factories_are_given_the_number_of_classes():
    from benchmarks import torchvision_ops

    torchvision_ops.load()
    models = pytest.importorskip("torchvision.models")
    model, notes = made(models.squeezenet1_1)
    assert model.classifier[1].out_channels == 4
    assert notes == ["model: its function is given num_classes=4 from the task"]
