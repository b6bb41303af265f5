"""Requests from Python; tests/test_guide.py runs a whole script."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import pfray
from pfray import api
from pfray.errors import ConfigError, DataError, PfrayError, UserCodeFailed
from pfray.workflow.keywords import python_words


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


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.Flatten(),
        torch.nn.Linear(256, 3),
    )  # fmt: skip


IMAGES = (torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3)


@pytest.mark.parametrize(("keywords", "lines"), [
    ({"finetun": {}, "target": {"macs": "0.5x"}}, [r"finetun: unknown key. Allowed: .*Did you mean 'finetune'\?"]),
    ({"epochs": 3, "target": {"macs": "0.5x"}},
     [r'epochs: unknown key. .*Did you mean finetune=\{"epochs": ...\} or teacher=\{"epochs": ...\}\?']),
    ({"data": 3, "val": 4}, [
        r"data: unknown key. .*Did you mean 'train'\?", r"val: unknown key. .*Did you mean 'validation'\?",
        r'target: missing. Remedy: target=\{"macs": "0.5x"\}',
    ]),
])  # fmt: skip
@pytest.mark.parametrize("call", [pfray.compress, pfray.check])
def test_an_unknown_or_missing_keyword_is_one_line_with_what_is_meant(call, keywords, lines):
    with pytest.raises(ConfigError) as caught:
        call(net(), IMAGES, **keywords)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    for line, pattern in zip(found, lines, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize(("target", "words"), [
    ("0.5x", """target: '0.5x' names no unit."""), ("0.5x", """Remedy: target={"macs": "0.5x"}"""),
    ({}, """for example target={"macs": "0.5x"}"""),
    ({"macs": "0.001x"}, "target.macs: '0.001x' ("),
])  # fmt: skip
def test_a_target_of_another_form_is_one_line(target, words):
    with pytest.raises(PfrayError) as caught:
        pfray.check(net(), IMAGES, IMAGES, target=target, quiet=True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_check_prints_itself_on_stdout_and_the_progress_goes_to_stderr(tmp_path, capsys):
    request = {"target": {"macs": "0.5x"}, "storage": tmp_path, "name": "mine", "learner": "weight_sparse"}
    request["target"] = {"sparsity": "75%"}
    checked = pfray.check(net(), IMAGES, IMAGES, **request)
    print(checked)
    captured = capsys.readouterr()
    assert captured.out == "mine is valid: 3 knobs, and the target can be reached\n"
    assert "[load] started" in captured.err
    assert (checked.limits, checked.whole, checked.refusal) == ({"sparsity": 0.75}, {"sparsity": 0.0}, None)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "experiment.yaml").write_text("{}")
    checked = pfray.check(net(), IMAGES, IMAGES, quiet=True, **request)
    assert repr(checked).splitlines()[1] == (
        f"note: a run would be refused: {tmp_path}/mine holds a run, unfinished. Remedy: resume=True to continue it, "
        "force=True to replace it, or name=..."
    )
    assert pfray.check(net(), IMAGES, IMAGES, quiet=True, force=True, **request).refusal is None
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_check_has_the_signature_of_the_run():
    assert list(inspect.signature(pfray.check).parameters) == list(inspect.signature(pfray.compress).parameters)


def fails():
    raise KeyError("label")


def test_what_fails_in_the_users_own_code_in_the_middle_of_a_run_is_one_line():
    with pytest.raises(UserCodeFailed) as caught, python_words():
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
        ("max_drop: missed",), ("close to chance",),
    )  # fmt: skip
    assert repr(result).splitlines() == [
        "half & half", "missed: max_drop: missed", "note: close to chance", f"report: {tmp_path}/report.html",
    ]  # fmt: skip
    shown = result._repr_html_()
    assert "half &amp; half" in shown
    assert "model.pt2" in shown
