"""Exceptions of a user's own code: one line with file and line, wherever in a run they come from."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from learners.weight_sparse import Settings, WeightSparse
from pfray.errors import ConfigError, UserCodeFailed
from pfray.learner.context import Context, Recipe
from pfray.learner.scoring import Scorer, Scoring
from pfray.training.settings import Training
from pfray.utils.command import run_command
from pfray.utils.user_code import failing_user_code, place_of, user_code
from pfray.workflow import launch
from tests.userland import Regressor, brightness

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
import torch

def loss(outputs, targets):
    return torch.nn.functional.mse_loss(outputs, targets.flatten().reshape(7, 11))

def memory(*_):
    raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")

def end():
    raise SystemExit(3)

def text():
    raise KeyError("label")
"""


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    """A user's module: ``loss`` fails in line 5."""
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    module = ModuleType("mine")
    exec(compile(SOURCE, str(path), "exec"), module.__dict__)
    return module


def test_the_innermost_line_of_the_users_own_is_named(mine, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        mine.loss(torch.zeros(2, 1), torch.zeros(2, 1))
    assert place_of(caught.value) == f" ({tmp_path}/mine.py, line 5)"


def test_generated_code_is_nobodys_own():
    @dataclass
    class Two:
        a: int

        def __post_init__(self) -> None:
            raise ValueError("below a generated __init__")

    with pytest.raises(ValueError, match="below a generated") as caught:
        Two(1)
    assert place_of(caught.value).startswith(f" ({__file__}, line ")


def test_an_exception_of_no_users_code_passes_unchanged():
    source = "with failing_user_code():\n    1 / 0"
    for package in ("pfray", "learners", "envs"):
        code = compile(source, str(ROOT / package / "module.py"), "exec")
        with pytest.raises(ZeroDivisionError):
            exec(code, {"failing_user_code": failing_user_code, "__name__": "__main__"})


@pytest.mark.parametrize(("name", "text"), [("end", "SystemExit: 3"), ("text", "KeyError: 'label'")])
def test_exceptions_in_the_middle_of_a_run_are_one_line_with_exit_code_1(mine, tmp_path, capsys, name, text):
    line = SOURCE.split("\n").index(f"def {name}():") + 2
    assert run_command(getattr(mine, name), []) == 1
    assert capsys.readouterr().err == (
        f"error: {text} ({tmp_path}/mine.py, line {line}). Remedy: mend the code there, then begin anew with --force\n"
    )


def test_memory_that_runs_out_in_the_users_code_is_not_its_fault(mine):
    with pytest.raises(RuntimeError, match="out of memory"), failing_user_code():
        mine.memory()


def test_a_wrong_request_keeps_its_own_kind(mine, tmp_path):
    with pytest.raises(ConfigError) as caught, failing_user_code(), user_code("data", "mend it"):
        mine.text()
    assert str(caught.value) == f"data: KeyError: 'label' ({tmp_path}/mine.py, line 14). Remedy: mend it"


def failing(loss: Any) -> tuple[Context, Recipe]:
    """A task that was checked, whose loss fails from now on."""
    training = Training(epochs=1, batch_size=32, lr=0.01)
    task = brightness(60)
    object.__setattr__(task, "loss", loss)
    return Context(task, Regressor(4)), Recipe(WeightSparse, Settings(), training)


def test_a_trial_says_where_it_failed(mine, tmp_path):
    context, recipe = failing(mine.loss)
    result = Scorer(context, recipe, Scoring(bn_images=0), torch.device("cpu")).score({"conv": 0.5, "head": 0.5})
    assert result["error"].startswith("UserCodeFailed: loss=loss fails on outputs float32 (")
    assert f"({tmp_path}/mine.py, line 5). Remedy: mend it" in result["error"]


def test_a_training_says_where_it_failed_and_the_error_reaches_the_driver(mine, tmp_path, monkeypatch):
    context, recipe = failing(mine.loss)
    monkeypatch.setattr(launch, "task_device", lambda: torch.device("cpu"))
    config = {"candidate": recipe.candidate({"conv": 0.5, "head": 0.5}), "context": context, "folder": tmp_path}
    with pytest.raises(UserCodeFailed) as caught:
        launch.work_alone(config, 1)
    assert f"({tmp_path}/mine.py, line 5). Remedy: mend the code there" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
