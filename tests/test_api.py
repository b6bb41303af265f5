"""Requests from Python; tests/test_guide.py runs a whole script."""

from __future__ import annotations

import pytest
import torch

import pfray
from pfray import api
from pfray.errors import ConfigError, DataError, RunExists, UserCodeFailed


def test_every_mistake_of_the_request_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        pfray.compress(
            torch.nn.Linear(2, 2), (torch.zeros(4, 2), torch.zeros(4)), target={"mac": "0.5x"}, learner="chanel_pruned",
            finetune={"epochs": -1},
        )  # fmt: skip
    lines = str(caught.value).splitlines()
    assert any(line.startswith("target.mac: unknown key") for line in lines)
    assert any("finetune.epochs: -1 is not allowed" in line for line in lines)
    assert any("chanel_pruned" in line and "Did you mean 'channel_pruned'" in line for line in lines)


def test_a_mistake_of_the_data_is_one_line():
    with pytest.raises(DataError, match="train: a str"):
        pfray.compress(torch.nn.Linear(2, 2), "images/", target={"macs": "0.5x"})


def test_the_remedies_are_arguments():
    with pytest.raises(RunExists, match="resume=True to continue it, force=True to replace it"), api._in_python_words():
        raise RunExists("a run. Remedy: --resume to continue it, --force to replace it")


    with (
        pytest.raises(RunExists, match=r'name=... with search=\{"warm_start": "my runs/x"\} to learn from'),
        api._in_python_words(),
    ):
        raise RunExists("Remedy: --force, or name=... with --warm-start my runs/x to learn from its trials")


def fails():
    raise KeyError("label")


def test_what_fails_in_the_users_own_code_in_the_middle_of_a_run_is_one_line():
    with pytest.raises(UserCodeFailed) as caught, api._in_python_words():
        fails()
    assert str(caught.value) == (
        f"KeyError: 'label' ({__file__}, line {fails.__code__.co_firstlineno + 1}). Remedy: mend the code there, then "
        "begin anew with force=True"
    )


def test_to_continue_and_to_replace_exclude_each_other(tmp_path):
    kept = tmp_path / "linear-channel_pruned" / "kept"
    kept.parent.mkdir()
    kept.write_text("x")
    data = (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match=r"^resume=True and force=True exclude each other. Remedy: give one of them"):
        pfray.compress(
            torch.nn.Linear(2, 2), data, data, target={"macs": "0.5x"}, storage=tmp_path, resume=True, force=True
        )
    assert kept.read_text() == "x"


def test_a_name_is_made_of_the_model_and_the_learners():
    model = torch.nn.Linear(2, 2)
    assert api._run_name(model, "weight_sparse") == "linear-weight_sparse"
    assert api._run_name(model, [{"name": "channel_pruned"}, "mine:Mine"]) == "linear-channel_pruned-Mine"


class Mine:
    pass


def test_a_learners_class_is_its_import_path():
    class Inner:
        pass

    assert api._named(Mine) == f"{__name__}:Mine"
    assert api._plain([Mine, {"name": "x", "skip": ("a",)}]) == [f"{__name__}:Mine", {"name": "x", "skip": ["a"]}]
    with pytest.raises(ConfigError, match="made inside a function"):
        api._named(Inner)


def test_the_batch_size_is_the_loaders_unless_another_is_asked_for():
    raw = {"teacher": {"batch_size": 7}}
    api._add_batch_size(raw, torch.utils.data.DataLoader([1, 2], batch_size=2))
    assert raw == {"teacher": {"batch_size": 7}, "finetune": {"batch_size": 2}}


def test_a_result_shows_itself(tmp_path):
    result = pfray.Result(
        torch.nn.Linear(2, 2), tmp_path, {}, tmp_path / "report.html", None, tmp_path / "model.pt2", "half & half",
        ("max_drop: missed",),
    )  # fmt: skip
    assert repr(result).splitlines() == ["half & half", "missed: max_drop: missed", f"report: {tmp_path}/report.html"]
    shown = result._repr_html_()
    assert "half &amp; half" in shown
    assert "model.pt2" in shown
