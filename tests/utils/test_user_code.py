"""The line of a user's own code that an error came from."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import torch

from pfray.utils import files
from pfray.utils.user_code import place_in, place_of

OWN = """import torch

def fails(x):
    return torch.nn.functional.linear(x, torch.zeros(3, 4))
"""


def raised(tmp_path: Path) -> BaseException:
    """An error that a library raised for a user's file."""
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    module: dict = {"__name__": "mine"}
    exec(compile(OWN, str(path), "exec"), module)
    with pytest.raises(RuntimeError) as caught:
        module["fails"](torch.zeros(1, 5))
    return caught.value


def test_the_innermost_line_of_ones_own_code_is_named(tmp_path):
    error = raised(tmp_path)
    assert place_of(error) == f" ({tmp_path / 'mine.py'}, line 4)"
    text = "\n".join(["ray::work_alone() (pid=7, ip=127.0.0.1)", *traceback.format_exception(error)])
    assert place_in(text) == place_of(error)


def test_libraries_and_pfray_are_nobodys_own_code():
    text = (
        "Traceback (most recent call last):\n"
        f'  File "{files.__file__}", line 12, in write\n    raise\n'
        f'  File "{torch.__file__}", line 7, in linear\n    raise\n'
        '  File "<frozen importlib._bootstrap>", line 3, in load\nValueError: broke\n'
    )
    assert place_in(text) == ""
    assert place_in("") == ""
