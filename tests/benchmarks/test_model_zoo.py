"""What counts as shipped, and that every goal is judged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from benchmarks import model_zoo, zoo_networks
from tests.small import chain, make_task


def refuse(*_: object) -> None:
    raise ValueError("no group")


def test_a_network_that_cannot_be_pruned_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_networks, "network", lambda *_: (nn.Flatten(), SimpleNamespace()))
    for name in ("_groups", "removed_share", "_prune"):
        monkeypatch.setattr(model_zoo, name, refuse)
    record = model_zoo.examine(["timm", "none", 0])
    assert record["errors"] == dict.fromkeys(("graph", "torch-pruning", "prune"), "ValueError: no group")
    assert set(record["seconds"]) == {"build", "graph", "torch-pruning", "prune"}
    assert model_zoo.judged([record])[0][0] == 0


def test_the_files_are_those_of_the_pruned_network(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = []
    monkeypatch.setattr(zoo_networks, "network", lambda *_: (chain(), make_task()))
    monkeypatch.setattr(model_zoo, "removed_share", lambda *_: 0.9)
    monkeypatch.setattr(model_zoo, "_time", lambda *_: None)
    for name in ("_float_file", "_int8_file"):
        monkeypatch.setattr(model_zoo, name, lambda model, *_: shipped.append(model))
    record = model_zoo.examine(["own", "chain", 8])
    assert record["errors"] == {}
    assert record["exact"]
    assert record["peer share"] == 0.9
    assert 0.3 < record["pruned"] <= 0.5
    assert len(shipped) == 2
    assert sum(p.numel() for p in shipped[0].parameters()) < sum(p.numel() for p in chain().parameters())


def test_every_goal_has_its_value() -> None:
    good = {"float distance": 1e-6, "int8 distance": 0.2, "exact": True, "share": 0.9, "peer share": 0.8}
    bad = {"exact": False, "share": 0.7, "peer share": 0.8}  # neither file passed its check
    records = [
        {**good, "seconds": {"graph": 3.0}}, {**bad, "seconds": {"int8": 61.5}}, {"seconds": {}, "peer share": 0.2},
    ]  # fmt: skip
    assert [value for value, _, _ in model_zoo.judged(records)] == [1, 1, 61.5, 1, 2]


def test_a_row_of_the_table_has_every_value_or_a_dash() -> None:
    record = {
        "piece": ["timm", "net", 64], "macs": 2.5e6, "groups": 3, "share": 0.98, "peer share": 0.9, "pruned": 0.5,
        "float distance": 1e-6, "seconds": {"graph": 1.0, "prune": 2.25},
    }  # fmt: skip
    head, rule, row = model_zoo.table([record], markdown=True).splitlines()
    assert row == "| net, 64 | 2.5 | 3 | 98.0% | 90.0% | 0.50 | 1.0e-06 | - | - | - | 1.0, 2.2, 0.0, 0.0 |"
    assert head.count("|") == rule.count("|") == row.count("|")
    assert "|" not in model_zoo.table([record], markdown=False)
