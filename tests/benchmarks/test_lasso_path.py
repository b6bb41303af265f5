from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import lasso_path, result


def test_both_ways_of_choosing_channels_see_the_same_and_agree_on_it(capsys):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 12 * 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(12 * 4, 5, generator=generator, dtype=torch.float64)
    layer = lasso_path.Layer("layer", rows - rows.mean(0), weight, 12)
    assert np.allclose(lasso_path.contributions(layer).sum(1), (layer.rows @ weight).flatten())
    found = lasso_path.compare(layer)
    assert len(found.same) == len(found.errors) == 11  # of 20 ratios of 12 channels, 1 to 11
    assert sum(found.same) >= 10
    errors = np.array(found.errors)
    assert (np.diff(errors, axis=0) < 0).all()
    assert 0 < errors[-1, 0] < errors[0, 0] < 1
    lasso_path.report([found, lasso_path.Result(1.0, 0.0, [False] * 11, [(0.1, 0.2), (0.3, 0.2)])])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1]["value"] == pytest.approx(sum(found.same) / 22, rel=1e-5)
    assert [line["goal"] for line in lines] == [">= 20", ">= 0.95", ">= 0.95"]


def test_data_that_selection_needs_and_does_not_find_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lasso_path, "needed", lambda model: [tmp_path / "nowhere" / model])
    assert lasso_path.main([]) == result.SKIPPED
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "nowhere/resnet56 is missing. Remedy" in output
