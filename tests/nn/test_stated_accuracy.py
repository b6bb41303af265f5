"""The accuracy that a weights file states, as training scripts write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pfray.nn.stated_accuracy import stated_accuracy

STATE = nn.Linear(2, 2).state_dict()


@pytest.mark.parametrize(("entries", "share"), [
    ({"best_acc1": torch.tensor(71.5), "acc1": 70.0}, 0.715),
    ({"acc": 0.93, "epoch": 5}, 0.93),
    ({"acc": 93}, 0.93),
    ({"accuracy": "69.758 %"}, 0.69758),
    ({"top1": np.float64(70.5)}, 0.705),
    ({"acc1": 1.0}, 1.0),
    ({}, None),
    ({"epoch": 5, "loss": 0.4, "acc_history": [1, 2]}, None),
    # No shares: several numbers, none at all, and what is out of range.
    ({"acc": torch.tensor([70.0, 71.0])}, None),
    ({"acc": "high"}, None),
    ({"acc": True}, None),
    ({"acc": float("nan")}, None),
    ({"acc": 0.0}, None),
    ({"acc": 701.0}, None),
    ({"acc": None, "val_acc": 0.5}, 0.5),
])  # fmt: skip
def test_the_accuracy_beside_a_state_dict_is_a_share(entries: dict[str, Any], share: float | None, tmp_path: Path):
    torch.save({"state_dict": STATE, **entries}, tmp_path / "w.pth")
    assert stated_accuracy(tmp_path / "w.pth") == (None if share is None else pytest.approx(share))


def test_a_state_dict_alone_states_none(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    assert stated_accuracy(tmp_path / "w.pth") is None
    # The weights of a layer with such a name.
    torch.save({"acc": torch.tensor([[1.0, 2.0]])}, tmp_path / "w.pth")
    assert stated_accuracy(tmp_path / "w.pth") is None


def test_safetensors_state_it_in_their_metadata(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors", {"format": "pt", "accuracy": "71.3%"})
    assert stated_accuracy(tmp_path / "w.safetensors") == pytest.approx(0.713)
    save_file(STATE, tmp_path / "w.safetensors")
    assert stated_accuracy(tmp_path / "w.safetensors") is None
