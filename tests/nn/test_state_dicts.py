"""Checkpoints as people have them: what is taken, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfray.errors import WeightsError
from pfray.nn.weights import load_weights

State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def others(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
FORMS: dict[str, tuple[Any, list[str]]] = {
    "plain": (lambda s: s, []),
    "model": (lambda s: {"model": s, "epoch": 5, "optimizer": OPTIMIZER}, ["its entry 'model' is taken"]),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 5}, ["its entry 'state_dict' is taken"]),
    "model_state_dict": (lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)},
                         ["its entry 'model_state_dict' is taken"]),
    "net": (lambda s: {"net": s, "acc": 0.9}, ["its entry 'net' is taken"]),
    "any name": (lambda s: {"classifier": s}, ["its entry 'classifier' is taken"]),
    "deeper": (lambda s: {"ema": {"module": s}}, ["its entry 'ema.module' is taken"]),
    "averaged weights too": (lambda s: {"state_dict_ema": others(s), "state_dict": s},
                             ["its entry 'state_dict' is taken, and 'state_dict_ema' left out"]),
    "DataParallel": (lambda s: prefixed(s, "module."), ["the prefix 'module.' of its names is left out"]),
    "torch.compile": (lambda s: prefixed(s, "_orig_mod."), ["the prefix '_orig_mod.' of its names is left out"]),
    "both": (lambda s: prefixed(s, "module._orig_mod."), ["the prefix 'module._orig_mod.' of its names is left out"]),
    "Lightning": (
        lambda s: {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(3)}, "hyper_parameters": {}},
        ["its entry 'state_dict' is taken", "the prefix 'model.' of its names is left out",
         "'criterion.weight' left out"],
    ),
    "swa_utils": (lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(3)},
                  ["the prefix 'module.' of its names is left out", "'n_averaged' left out"]),
    "a wrapper inside": (lambda s: {name.replace("0.", "0._orig_mod."): value for name, value in s.items()},
                         ["0._orig_mod.weight is read as 0.weight"]),
    "no counts": (lambda s: {name: value for name, value in s.items() if "num_batches" not in name},
                  ["has no num_batches_tracked of batch norms"]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_state_dict_is_found_and_what_was_done_is_said(form, tmp_path):
    make, words = FORMS[form]
    torch.manual_seed(0)
    trained, model = network(), network()
    torch.save(make(dict(trained.state_dict())), tmp_path / "w.pt")
    notes = load_weights(model, tmp_path / "w.pt")
    assert len(notes) == len(words)
    for note, expected in zip(notes, words, strict=True):
        assert note.startswith(f"model.weights: {tmp_path / 'w.pt'}")
        assert expected in note
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())


def test_names_are_found_for_a_model_that_is_itself_wrapped(tmp_path):
    trained, model = network(), nn.DataParallel(network())
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    (note,) = load_weights(model, tmp_path / "w.pt")
    assert "0.weight is read as module.0.weight" in note
    assert torch.equal(model.module[0].weight, trained[0].weight)


def failure(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(network(), path)
    assert str(caught.value).isprintable()
    assert "Remedy" in str(caught.value)
    return str(caught.value)


def test_two_sets_of_weights_under_prefixes_are_not_chosen_between(tmp_path):
    state = dict(network().state_dict())
    torch.save({**prefixed(state, "student."), **prefixed(others(state), "teacher.")}, tmp_path / "w.pt")
    assert "its names fit with each of the prefixes 'student.', 'teacher.'; missing" in failure(tmp_path / "w.pt")


def test_the_prefix_whose_shapes_fit_is_taken(tmp_path):
    trained, model = network(), network()
    wider = {name: torch.zeros(2, *value.shape) for name, value in trained.state_dict().items()}
    torch.save({**prefixed(wider, "big."), **prefixed(trained.state_dict(), "small.")}, tmp_path / "w.pt")
    notes = load_weights(model, tmp_path / "w.pt")
    assert "the prefix 'small.' of its names is left out" in notes[0]
    assert torch.equal(model[0].weight, trained[0].weight)


def test_an_entry_of_another_architecture_is_named_with_what_does_not_fit(tmp_path):
    torch.save({"model": {"0.weight": torch.zeros(4, 1, 3, 3), "head.weight": torch.zeros(1)}}, tmp_path / "w.pt")
    text = failure(tmp_path / "w.pt")
    assert f"{tmp_path / 'w.pt'}, entry 'model' is of another architecture (missing: 0.bias" in text
    assert "unknown: head.weight" in text


def test_half_precision_inside_a_checkpoint_is_said_as_well(tmp_path):
    trained, model = network(), network()
    half = {k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    torch.save({"model": prefixed(half, "module.")}, tmp_path / "w.pt")
    notes = load_weights(model, tmp_path / "w.pt")
    assert [note.partition("w.pt")[2] for note in notes] == [
        ": its entry 'model' is taken", ": the prefix 'module.' of its names is left out",
        " is float16; the model is float32 and has it converted",
    ]  # fmt: skip
    assert torch.allclose(model[0].weight, trained[0].weight, atol=1e-3)
