"""Errors of a request from Python."""

from __future__ import annotations

import pytest

from pfray.errors import ConfigError, RunExists
from pfray.workflow.keywords import python_words


def test_the_kind_of_an_error_and_its_cause_stay():
    cause = ValueError()
    with pytest.raises(RunExists, match=r"^resume=True$") as caught, python_words():
        raise RunExists("--resume") from cause
    assert caught.value.__cause__ is cause
    first = ConfigError("as it is")
    with pytest.raises(ConfigError) as caught_same, python_words():
        raise first
    assert caught_same.value is first
