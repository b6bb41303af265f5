"""Errors of the commands in the words of Python."""

from __future__ import annotations

import pytest

from pfray.errors import ConfigError, RunExists
from pfray.python_words import in_python, python_words


@pytest.mark.parametrize(("text", "words"), [
    ("--resume to continue it, --force to replace it", "resume=True to continue it, force=True to replace it"),
    ("name=... with --warm-start my runs/x to learn", 'name=... with search={"warm_start": "my runs/x"} to learn'),
    ("'ray stop', or --address local for a Ray", """'ray stop', or resources={"address": "local"} for a Ray"""),
    ("Remedy: target.macs=0.5x, or export.tflite=true", 'Remedy: target={"macs": "0.5x"}, or export={"tflite": True}'),
    ("Remedy: search.finetune_steps=60 or more", 'Remedy: search={"finetune_steps": 60} or more'),
    ("distill.weight=0", 'distill={"weight": 0}'), ("finetune.lr=0.02. Next", 'finetune={"lr": 0.02}. Next'),
    ("Remedy: search=uniform, or a searcher", 'Remedy: search="uniform", or a searcher'),
    ("python -m pfray.inspect lists all", "pfray.inspect(model, train) lists all"),
    ("a: unknown key. Did you mean 'search.trials'?", 'a: unknown key. Did you mean search={"trials": ...}?'),
    ("cannot be searched. Did you mean 'finetune.lr'?", "cannot be searched. Did you mean 'finetune.lr'?"),
    ("search.trials: -1 is not allowed", "search.trials: -1 is not allowed"),
])  # fmt: skip
def test_options_and_overrides_are_keywords(text, words):
    assert in_python(text) == words


def test_the_kind_of_an_error_and_its_cause_stay():
    cause = ValueError()
    with pytest.raises(RunExists, match=r"^resume=True$") as caught, python_words():
        raise RunExists("--resume") from cause
    assert caught.value.__cause__ is cause
    first = ConfigError("as it is")
    with pytest.raises(ConfigError) as caught_same, python_words():
        raise first
    assert caught_same.value is first
