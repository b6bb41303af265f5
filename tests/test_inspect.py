from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pfray
from pfray.errors import ConfigError, UnsupportedModel
from pfray.workflow.inspection import main

ROOT = Path(__file__).resolve().parents[1]
DEMO = str(ROOT / "experiments" / "mobilenet_sparse.yaml")


def rows(text: str) -> dict[str, list[str]]:
    """The columns of each table row, by the first of them."""
    found = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith("  "))
    return {columns[0]: columns[1:] for columns in found}


def test_the_groups_of_a_mobilenet_are_shown_with_their_shares_and_what_stays_whole(capsys):
    assert main([DEMO]) == 0
    text = capsys.readouterr().out
    assert "MobileNetV1: 11,448,832 MACs for an input of 1x32x32, 3,216,650 parameters" in text
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
    labels = torch.tensor([0, 1])

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 3)

        def forward(self, first: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.head(first * mask)

    one, two = torch.zeros(2, 16), {"first": torch.zeros(2, 16), "mask": torch.ones(2, 16)}
    found = [pfray.inspect(nn.Sequential(nn.Linear(16, 3)), (one, labels)), pfray.inspect(Both(), (two, labels)),
             pfray.inspect(Both(), ((one, one), labels))]  # fmt: skip
    assert [repr(each).splitlines()[0] for each in found] == [
        "Sequential: 48 MACs for an input of 16, 51 parameters",
        "Both: 48 MACs for inputs of first 16, mask 16, 51 parameters",
        "Both: 48 MACs for inputs of [0] 16, [1] 16, 51 parameters",
    ]
    assert found[1].inputs == {"first": (16,), "mask": (16,)}


def test_a_model_of_ones_own_is_inspected_as_an_object_that_prints_itself():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = pfray.inspect(model, train=[(torch.zeros(3, 8, 8), 0), (torch.ones(3, 8, 8), 1)])
    first, second = found.groups
    # 3 x 3 kernels at 64 places: 3 to 8 and 8 to 4 channels; then 256 numbers to 2 classes.
    assert found.macs == 64 * 9 * (3 * 8 + 8 * 4) + 512
    assert (first.name, first.channels, first.units, first.layers) == ("0", "8", 8, ("0", "2"))
    assert first.macs == 64 * 9 * (3 * 8 + 8 * 4)
    assert second.params == 4 * (9 * 8 + 1) + 512
    assert found.whole == {"4": "its channels are an output of the model"}
    assert rows(repr(found))["2"][:3] == ["4", f"{second.macs / found.macs:.1%}", f"{second.params / found.params:.1%}"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_inspected_is_one_line():
    with pytest.raises(UnsupportedModel, match="fails on"):
        pfray.inspect(nn.Sequential(nn.Linear(5, 2)), (torch.zeros(4, 3), torch.zeros(4).long()))
    with pytest.raises(ConfigError, match=r"^tain: unknown key. Allowed: model, train, adapt. Did you mean 'train'\?"):
        pfray.inspect(nn.Linear(5, 2), (torch.zeros(4, 5), torch.zeros(4).long()), tain=3)


def test_the_command_leaves_the_function_its_name():
    code = "import pfray, pfray.__main__ as m; m.main(['inspect', '--help'])"
    check = f"try:\n    {code}\nexcept SystemExit:\n    pass\nassert callable(pfray.inspect)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, check=True)
