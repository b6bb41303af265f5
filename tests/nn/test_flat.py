"""Forms of inputs and outputs that exporters know."""

from __future__ import annotations

import torch
from torch import nn

from pfray.nn.flat import Structured, has_list, is_plain, names, plain, two_samples, with_named_tensors
from pfray.nn.inputs import call, tensors
from tests.forms import FORMS, Detector, Found, Pair, form, images

ONE, TWO = torch.ones(2, 1), torch.zeros(2, 3)


def test_dataclasses_and_named_tuples_become_dicts_and_tuples():
    found = plain({"a": Found(ONE, TWO), "b": [Pair(ONE, 3)]})
    assert found == {"a": {"boxes": ONE, "classes": TWO, "loss": None}, "b": [(ONE, 3)]}
    assert type(found["b"][0]) is tuple
    assert is_plain(found)
    assert not is_plain([Pair(1, 2)])
    assert not is_plain({"a": Found(ONE, TWO)})
    assert not is_plain({3: ONE})


def test_names_are_keys_and_positions():
    assert names(ONE, "args") == ["args_0"]
    assert names((ONE, None, TWO), "args") == ["args_0", "args_2"]
    assert names({"ids": ONE, "more": (ONE, {"x": TWO})}, "args") == ["ids", "more_0", "more_1_x"]
    assert names({"a_0": ONE, "a": [TWO]}, "output") == ["a_0_0", "a_0_1"]


def test_two_samples_are_the_first_twice_but_once_in_a_list():
    twice = two_samples({"image": images(), "scale": torch.tensor(2.0), "flag": None})
    assert torch.equal(twice["image"], images()[[0, 0]])
    assert twice["scale"].dim() == 0
    assert not has_list(twice)
    assert [len(two_samples([ONE, TWO])), has_list((ONE, [TWO]))] == [1, True]


def test_a_model_is_called_with_tensors_by_name_and_copies_stay_as_they_are():
    for name in FORMS:
        model, inputs, given, made = form(name)
        expected = call(model, inputs)
        own, sample = with_named_tensors(form(name)[0], inputs, expected)
        outputs = own(**sample)
        assert [list(sample), list(outputs)] == [given, made]
        assert all(torch.equal(one, other) for one, other in zip(outputs.values(), tensors(expected), strict=True))


def test_the_structure_of_outputs_is_filled_with_other_tensors():
    outputs = call(Detector("dataclass"), images())
    filled = Structured(outputs)([ONE, TWO])
    assert isinstance(filled, Found)
    assert (filled.boxes is ONE, filled.classes is TWO, filled.loss) == (True, True, None)


def test_a_patched_model_keeps_its_own_forward_pass_where_it_has_one():
    model = nn.Linear(3, 3)
    model.forward = lambda values: (2 * values,)  # type: ignore[method-assign]
    own, sample = with_named_tensors(model, ONE, model(ONE))
    assert torch.equal(own(**sample)["output_0"], 2 * ONE)
