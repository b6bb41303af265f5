"""The cache by structure: one call a model object, and another after the model or the input's shape has changed."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

from pfray.nn.inputs import map_tensors
from pfray.nn.structure_cache import once_for_structure


def test_a_result_is_found_once_and_again_after_a_change_of_shape():
    calls = []

    def find(model: nn.Module, example: torch.Tensor) -> int:
        calls.append(model)
        return len(calls)

    known: WeakKeyDictionary = WeakKeyDictionary()
    model = nn.Linear(3, 2)
    assert [once_for_structure(known, model, torch.zeros(1, 3), find) for _ in range(2)] == [1, 1]
    nn.init.zeros_(model.weight)
    assert once_for_structure(known, model, torch.zeros(1, 3), find) == 1
    assert once_for_structure(known, model, torch.zeros(2, 3), find) == 2
    model.weight = nn.Parameter(torch.zeros(1, 3))
    assert once_for_structure(known, model, torch.zeros(2, 3), find) == 3
    assert once_for_structure(known, nn.Linear(3, 2), torch.zeros(1, 3), find) == 4


def test_flags_and_types_of_the_example_are_part_of_what_a_result_is_for():
    known: WeakKeyDictionary = WeakKeyDictionary()
    model, calls = nn.Linear(3, 2), []
    x = torch.zeros(1, 3)
    examples = [(x, True), (x, False), (x.long(), False), {"x": x, "scale": 1.0}, {"x": x, "scale": 2.0}]
    for example in examples:
        once_for_structure(known, model, example, lambda _, own: calls.append(own))
        # The values of a tensor are no part of it.
        other = map_tensors(lambda own: own + 1, example)
        once_for_structure(known, model, other, lambda _, own: calls.append(own))
    assert len(calls) == len(examples)
