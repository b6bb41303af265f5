"""Keys that change with what code does, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from pfray.utils.code_key import code_key

TEXT = """
import functools, math
import torch
weight, path, seen, count = 0.5, "a", [], 0

def helper(x, power=2):
    return x ** power if x in {"a", "b", "c"} else again(x)

def again(x):
    return helper(x) + weight

class Base:
    rate = 3

class Mine(Base):
    def __init__(self, x):
        self.x = x
    @property
    def twice(self):
        return 2 * self.x
    @staticmethod
    def still(x):
        return math.sqrt(x)
    def __call__(self, x):
        return helper(x)

def make(factor):
    return lambda x: factor * x

@torch.no_grad()
def evaluate(model):
    global count
    count += 1
    seen.append(path)
    return model(1) * 5

FUNCTIONS = [helper, Mine, Mine(1), Mine(1).__call__, functools.partial(helper, power=3), make(4), evaluate]
"""


def keys(text: str) -> list[str]:
    names: dict[str, Any] = {"__name__": "script"}
    exec(text, names)
    return [code_key(function, "script") for function in names["FUNCTIONS"]]


def changed(old: str, new: str) -> set[int]:
    assert old in TEXT
    return {place for place, (a, b) in enumerate(zip(keys(TEXT), keys(TEXT.replace(old, new)), strict=True)) if a != b}


def test_what_the_code_does_counts_with_what_it_calls():
    calling = {0, 1, 2, 3, 4}
    assert changed("+ weight", "- weight") == calling
    assert changed("weight, path, seen, count = 0.5", "weight, path, seen, count = 0.6") == calling
    assert changed("power=2", "power=4") == calling
    assert changed("power=3", "power=4") == {4}
    assert changed("rate = 3", "rate = 4") == {1, 2, 3}
    assert changed("2 * self.x", "3 * self.x") == {1, 2, 3}
    assert changed("math.sqrt", "math.exp") == {1, 2, 3}
    assert changed("factor * x", "factor + x") == {5}
    assert changed("make(4)", "make(5)") == {5}
    assert changed("* 5", "* 6") == {6}


def test_comments_lines_texts_and_what_grows_do_not_count():
    assert changed("def again", "# more\n\n\ndef again") == set()
    assert changed('"a", [], 0', '"b", [1], 7') == set()
    assert changed("FUNCTIONS", "resume = True\nFUNCTIONS") == set()


def test_a_key_is_the_same_in_every_process(tmp_path: Path):
    script = "import sys\nfrom tests.utils.test_code_key import TEXT, keys\nprint(*keys(TEXT))"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "HOME": str(tmp_path)}
    for seed in ("1", "2"):
        out = subprocess.run([sys.executable, "-c", script], env={**environment, "PYTHONHASHSEED": seed},
                             capture_output=True, text=True, check=True)  # fmt: skip
        assert out.stdout.split() == keys(TEXT)
