"""Checks of a task in use."""

from __future__ import annotations

import pytest
import torch

from pfray.data._split_checks import check_labels
from pfray.data._task_checks import without_class_order
from pfray.errors import DataError
from pfray.task import Split, Task


def task(targets: torch.Tensor) -> Task:
    split = Split(torch.arange(len(targets)).float()[:, None], targets)
    return Task("mine", split, split, split.head(8), int(targets.max()) + 1)


def test_a_split_of_one_class_after_the_other_is_shuffled_with_its_inputs():
    targets = torch.tensor([2, 0, 1]).repeat_interleave(20)
    changed, remarks = without_class_order(task(targets))

    assert remarks == [f"the {name} split has its classes one after the other, and is shuffled"
                       for name in ("train", "validation")]  # fmt: skip
    train = changed.train.head(None)
    assert len(set(train.targets[:12].tolist())) == 3
    assert torch.equal(targets[train.inputs[:, 0].long()], train.targets)


def test_other_splits_stay_as_they_are():
    for targets in (torch.arange(60) % 3, torch.arange(60), torch.zeros(60, dtype=torch.int64)):
        given = task(targets)
        changed, remarks = without_class_order(given)
        assert changed is given
        assert remarks == []


def test_a_batch_alone_does_not_tell_how_classes_are_numbered():
    """Four of five classes are in it by chance."""
    with pytest.raises(DataError, match=r"run from 0 to 4; allowed are 0 to 3. Remedy: correct the labels or leave "
                                        r"these samples out, or num_outputs=5$"):  # fmt: skip
        check_labels("targets", torch.tensor([0, 1, 2, 4]), 4, True, None)
