from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from pfray.inspect import main, show
from pfray.pruning.channels.graph import channel_graph

ROOT = Path(__file__).resolve().parents[1]
DEMO = str(ROOT / "experiments" / "mobilenet_sparse.yaml")


def rows(text: str) -> dict[str, list[str]]:
    """The columns of each table row, by the first of them."""
    found = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith("  "))
    return {columns[0]: columns[1:] for columns in found}


def test_the_groups_of_a_mobilenet_are_shown_with_their_shares_and_what_stays_whole(capsys):
    assert main([DEMO]) == 0
    text = capsys.readouterr().out
    assert "MobileNetV1: 11,448,832 MACs for an input of shape (1, 1, 32, 32), 3,216,650 parameters" in text
    table = rows(text)
    assert [name for name in table if name.startswith("features.")][:14] == [f"features.{i}.0" for i in range(0, 27, 2)]
    # 32 channels at 16 x 16: 9 x 32 weights, 9 x 32 depthwise, 32 x 64 to the next layer: 671,744 MACs of 11,448,832.
    # 2,624 weights and 4 x 32 of two batch norms: 2,752 of 3,216,650 parameters.
    assert table["features.0.0"] == [
        "32", "5.9%", "0.1%", "features.0.0, features.0.1, features.1.0, features.1.1, features.2.0",
    ]  # fmt: skip
    assert table["classifier"] == ["its channels are an output of the model"]


def test_an_override_chooses_another_model(capsys):
    assert main([DEMO, "model=resnet20"]) == 0
    text = capsys.readouterr().out
    assert "CifarResNet: 40,256,128 MACs" in text
    table = rows(text)
    assert table["layer3.2.conv1"][:3] == ["64", "11.7%", "27.4%"]
    assert "and 24 more" in text
    assert table["layer2.0.conv2"] == ["16 of 32 channels: sliced and zero-padded on the way to the next layers"]


@pytest.mark.parametrize(("arguments", "message"), [
    ([DEMO, "model=resnet21"], "error: model: unknown name 'resnet21'"),
    ([DEMO, "model.weights=none.pt"], "error: model.weights: no file none.pt. Remedy: check the path"),
    ([DEMO, "model"], "error: override 'model': not of the form key=value"),
    (["none.yaml"], "error: none.yaml: cannot be read"),
])  # fmt: skip
def test_a_wrong_request_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


def flat(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, num_outputs))


def test_a_model_with_nothing_to_prune_says_so(capsys):
    assert main([DEMO, "model=tests.test_inspect:flat"]) == 0
    text = capsys.readouterr().out
    assert "no channel groups: nothing can be pruned" in text
    assert rows(text)["1"] == ["its channels are an output of the model"]


def test_it_runs_as_a_module_and_explains_itself():
    command = [sys.executable, "-m", "pfray.inspect", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "key=value" in done.stdout
    assert "channel groups" in done.stdout


def test_inputs_of_several_tensors_are_shown_by_name():
    tokens = {"ids": torch.zeros(1, 16, dtype=torch.int64), "mask": torch.ones(1, 16)}
    console = Console(record=True, width=120)
    model = nn.Linear(4, 3)
    for example in (torch.zeros(1, 4), tokens, (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5))):
        show(model, example, channel_graph(model, torch.zeros(1, 4)), console)
    lines = [line for line in console.export_text().splitlines() if "MACs for" in line]
    assert lines == [
        f"Linear: 12 MACs for {shapes}, 15 parameters"
        for shapes in (
            "an input of shape (1, 4)", "inputs of shapes ids int64 (1, 16), mask (1, 16)",
            "inputs of shapes [0] (1, 3, 8, 8), [1] (1, 5)",
        )
    ]
