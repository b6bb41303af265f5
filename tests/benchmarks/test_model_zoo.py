"""What counts as shipped, and that every goal is judged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from benchmarks import model_zoo
from tests.small import chain, make_task


def refuse(*_: object) -> None:
    raise ValueError("no group")


def test_a_network_that_cannot_be_pruned_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_zoo, "_network", lambda *_: (nn.Flatten(), SimpleNamespace()))
    for name in ("_groups", "_peer", "_prune"):
        monkeypatch.setattr(model_zoo, name, refuse)
    record = model_zoo.examine(["timm", "none", 0])
    assert record["errors"] == dict.fromkeys(("graph", "torch-pruning", "prune"), "ValueError: no group")
    assert set(record["seconds"]) == {"build", "graph", "torch-pruning", "prune"}
    assert model_zoo.judged([record])[0][0] == 0


def test_the_files_are_those_of_the_pruned_network(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = []
    monkeypatch.setattr(model_zoo, "_network", lambda *_: (chain(), make_task()))
    monkeypatch.setattr(model_zoo, "_peer", lambda *_: None)
    monkeypatch.setattr(model_zoo, "_time", lambda *_: None)
    for name in ("_float_file", "_int8_file"):
        monkeypatch.setattr(model_zoo, name, lambda model, *_: shipped.append(model))
    record = model_zoo.examine(["own", "chain", 8])
    assert record["errors"] == {}
    assert record["exact"]
    assert 0.3 < record["pruned"] <= 0.5
    assert len(shipped) == 2
    assert sum(p.numel() for p in shipped[0].parameters()) < sum(p.numel() for p in chain().parameters())


def test_every_goal_has_its_value() -> None:
    good = {"float distance": 1e-6, "int8 distance": 0.05, "exact": True, "share": 0.9, "peer share": 0.8}
    bad = {"float distance": 0.1, "int8 distance": 0.3, "exact": False, "share": 0.7, "peer share": 0.8}
    records = [
        {**good, "seconds": {"graph": 3.0}}, {**bad, "seconds": {"int8": 61.5}}, {"seconds": {}, "peer share": 0.2},
    ]  # fmt: skip
    assert [value for value, _, _ in model_zoo.judged(records)] == [1, 1, 61.5, 1, 2]
