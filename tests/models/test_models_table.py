"""The guide's table of models lists all of them, with the costs that pfray counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pfray.config.catalog import listing
from pfray.config.registry import find_function
from pfray.measure.cost import total_macs

GUIDE = (Path(__file__).parents[2] / "docs/guide.md").read_text()
ROW = re.compile(
    r"^\| `(\w+)` \| (\d+)(?:, 32)? \| ([\d.]+) M \| ([\d.]+) MB \| ([\d.]+) M \|(?: torchvision's `(\w+)`)?", re.M
)
ROWS = {row[0]: row[1:] for row in ROW.findall(GUIDE)}


def test_every_model_has_a_row() -> None:
    models = listing().partition("\nmodels:\n")[2].partition("\n\n")[0]
    names = re.findall(r"(?:^  |, )([a-z]\w+)(?=,|  | [A-Z]|$)", models, re.M)
    assert len(names) >= 18
    assert set(names) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_models_costs(name: str) -> None:
    pixels, params, size, macs, _ = ROWS[name]
    with torch.device("meta"):
        model = find_function("model", name)(num_outputs=10 if pixels == "32" else 1000)
        counted = total_macs(model, torch.zeros(1, 3, int(pixels), int(pixels)))
    count = sum(each.numel() for each in model.parameters())
    assert (f"{count / 1e6:.2f}", f"{4 * count / 1e6:.1f}", f"{counted / 1e6:.1f}") == (params, size, macs)
