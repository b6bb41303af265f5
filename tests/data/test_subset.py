"""Some classes of a data set: which samples stay, how they are numbered, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfray.data import cifar10, digits
from pfray.data._subset import check_classes, keep_classes
from pfray.errors import ConfigError, WeightsError
from pfray.models.lenet import lenet
from pfray.nn.weights import load_weights


def test_only_the_named_classes_stay_numbered_in_the_order_given() -> None:
    whole, some = digits.build(), digits.build(classes=[7, "1", 4])
    assert some.num_outputs == 3
    assert some.classes == (7, 1, 4)
    for name in ("train", "validation", "test"):
        before, after = getattr(whole, name), getattr(some, name)
        for number, digit in enumerate((7, 1, 4)):
            assert torch.equal(after.inputs[after.targets == number], before.inputs[before.targets == digit])
        assert len(after) == sum(int((before.targets == digit).sum()) for digit in (7, 1, 4))
    assert (some.mean, some.std) == (whole.mean, whole.std)
    assert some.fingerprint() != whole.fingerprint()


def test_cutting_never_moves_a_sample_to_another_split() -> None:
    task = digits.build()
    again = keep_classes(task, range(10))
    assert again.classes == tuple(range(10))
    assert replace(again, classes=None).fingerprint() == task.fingerprint()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["bird", "cta"], r"unknown class 'cta'. Did you mean 'cat'\? Allowed: airplane, .*truck"),
        (["bird"], r"\['bird'\] leaves nothing to tell apart. Remedy: name two classes or more"),
        ([], "leaves nothing to tell apart"),
        (["bird", "cat", "bird"], "'bird' is given twice"),
        ("bird", "'bird' is not a list of class names"),
        (3, "3 is not a list"),
        ([["bird"], "cat"], "unknown class"),
    ],
)
def test_what_is_no_choice_of_classes_is_refused_by_name(classes: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"data.classes: .*{message}") as caught:
        check_classes(classes, cifar10.NAMES)
    assert "\n" not in str(caught.value)


def test_names_are_checked_before_any_file_is_read() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'frog'"):
        cifar10.build(path="/nowhere", classes=["frogs", "cat"])


def test_the_head_of_weights_for_all_classes_is_cut(tmp_path: Path) -> None:
    whole = lenet(in_channels=1)
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    model = lenet(num_outputs=3, in_channels=1)
    load_weights(model, tmp_path / "whole.pt", (7, 1, 4))
    inputs = torch.randn(2, 1, 32, 32)
    assert torch.allclose(model.eval()(inputs), whole.eval()(inputs)[:, [7, 1, 4]], atol=1e-6)
    with pytest.raises(WeightsError, match=r"of another shape: fc3\.weight"):
        load_weights(model, tmp_path / "whole.pt")


def test_weights_for_the_classes_themselves_are_taken_as_they_are(tmp_path: Path) -> None:
    own, model = (lenet(num_outputs=3, in_channels=1) for _ in range(2))
    torch.save(own.state_dict(), tmp_path / "own.pt")
    load_weights(model, tmp_path / "own.pt", (2, 0, 1))
    assert torch.equal(model.fc3.weight, own.fc3.weight)
