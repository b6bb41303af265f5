from __future__ import annotations

import sys

import pytest

from pfray.data._track import track


def test_progress_is_one_plain_line_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture) -> None:
    assert list(track(range(5), 5, "decoding x", delay=0)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == "decoding x ...\n"
    assert list(track(range(5), 5, "decoding x", delay=1e9)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(range(5), 5, "decoding x", delay=0)) == [0, 1, 2, 3, 4]
    assert "decoding x ..." not in capsys.readouterr().err
