from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import recipe
from pfray.config.schema import load
from tests.benchmarks.runs import closing

FINETUNE = [item for item, own in recipe.ITEMS.items() if all(word.startswith("finetune.") for word in own)]


@pytest.mark.parametrize("item", FINETUNE)
def test_an_items_row_is_the_experiment_of_the_base_with_one_change(item, monkeypatch):
    monkeypatch.chdir(recipe.ROOT)
    base, own = (load(recipe.EXPERIMENT, recipe.overrides(each, 8, 0, 500, ())) for each in ("base", item))
    assert own.data.settings["limit_train"] == 500
    assert (own.finetune.epochs, own.distill.weight, base.finetune.weight_decay) == (8, 0.9, 1e-4)
    before, after = base.finetune.model_dump(), own.finetune.model_dump()
    assert len([key for key in before if before[key] != after[key]]) == len(recipe.ITEMS[item])
    assert base.model_copy(update={"finetune": own.finetune}) == own


def test_finished_rows_are_read_and_a_failed_one_ends_with_its_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(recipe, "needed", lambda model: [tmp_path / "file"])
    accuracies = {"base": 0.85, "average ema": 0.8625, "2 rungs": 0.845}
    commands: list[list[str]] = []

    def finish(command: list[str], **options: Any) -> None:
        """A run: its summary."""
        commands.append(command)
        given = dict(word.split("=", 1) for word in command if "=" in word)
        item = "average ema" if given.get("finetune.average") else "2 rungs" if "finetune.rungs" in given else "base"
        if item not in accuracies:
            raise subprocess.CalledProcessError(2, command)
        folder = Path(given["storage"]) / given["name"]
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({
            "teacher": {"accuracy": 0.88}, "compressed": {"accuracy": accuracies[item]},
            "seconds": {"load": 3.0, "train compressed": 90.4},
        }))  # fmt: skip

    monkeypatch.setattr(subprocess, "run", finish)
    wanted = ["--storage", str(tmp_path), "--epochs", "2", "--items"]
    assert recipe.main([*wanted, "base", "average ema"]) == 0
    assert recipe.main([*wanted, "base", "average ema", "2 rungs"]) == 0
    output = capsys.readouterr().out
    # Each row is run once, under a name of its own.
    assert len(commands) == 3
    assert all("--resume" in command for command in commands)
    assert len({word for command in commands for word in command if word.startswith("name=")}) == 3
    rows = output.split("| item |")[-1].splitlines()[2:5]
    assert rows == [
        "| base |  | 85.00 | 3.00 |  | 90 |",
        "| average ema | `finetune.average=ema` | 86.25 | 1.75 | +1.25 | 90 |",
        "| 2 rungs | `finetune.rungs=2` | 84.50 | 3.50 | -0.50 | 90 |",
    ]
    assert closing(output)["value"] == pytest.approx(1.25)
    del accuracies["base"]
    assert recipe.main([*wanted, "base", "--seed", "1"]) == 1
    assert "error: recipe: base: exit code 2" in capsys.readouterr().err
