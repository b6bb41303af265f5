from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from learners.weight_sparse import WeightSparse
from pfray.components import check_arguments, find_class, find_function, load_object, nearest, parse_settings
from pfray.errors import ConfigError
from pfray.learner import Learner
from pfray.models.resnet import resnet20
from pfray.search.base import PlanSearcher
from pfray.search.tpe import TPE


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a user's module, and make it importable while the test runs."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_short_names_are_modules_and_functions_of_pfray():
    assert find_class("learner", "weight_sparse", Learner) is WeightSparse
    assert find_class("search", "tpe", PlanSearcher) is TPE
    assert find_function("model", "resnet20") is resnet20
    assert find_function("data", "digits").__module__ == "pfray.data.digits"


def test_helpers_and_base_classes_are_not_offered():
    for kind, name in (("model", "_conv_bn"), ("model", "MobileNetV1"), ("data", "arrays"), ("data", "track")):
        with pytest.raises(ConfigError, match=f"{kind}: unknown name '{name}'"):
            find_function(kind, name)
    known = "allocate, critic, ddpg, given, gp, heuristic, policy_gradient, random, tpe, uniform"
    with pytest.raises(ConfigError, match=rf"search: unknown name 'base'\. Allowed: {known}"):
        find_class("search", "base", PlanSearcher)


def test_an_import_path_finds_a_users_function_and_class(module):
    module("mine_found", (
        "from learners.weight_sparse import WeightSparse\n"
        "def net(width=1): return width\n"
        "class Mine(WeightSparse): pass\n"
        "number = 3\n"
    ))  # fmt: skip
    assert find_function("model", "mine_found:net")(width=4) == 4
    assert issubclass(find_class("learner", "mine_found:Mine", Learner), WeightSparse)
    assert load_object("data", "mine_found:number") == 3
    with pytest.raises(ConfigError, match="model: 'mine_found:number' is not callable"):
        find_function("model", "mine_found:number")
    with pytest.raises(ConfigError, match=r"learner: 'mine_found:net' is not a subclass of pfray.learner.Learner"):
        find_class("learner", "mine_found:net", Learner)
    with pytest.raises(ConfigError, match=r"has no 'nett'\. Did you mean 'net'\?"):
        find_function("model", "mine_found:nett")


def test_a_users_module_that_breaks_while_it_is_imported_is_told_with_its_error(module):
    module("mine_broken", "1 / 0\n")
    with pytest.raises(ConfigError, match=r"cannot import 'mine_broken' \(ZeroDivisionError: division by zero\)"):
        find_function("data", "mine_broken:build")
    module("mine_syntax", "def f(:\n")
    with pytest.raises(ConfigError, match=r"cannot import 'mine_syntax' \(SyntaxError"):
        find_function("data", "mine_syntax:build")


def test_arguments_are_checked_without_calling():
    def build(width: int, depth: int = 3) -> None:
        raise AssertionError("called")

    assert check_arguments("model", build, {"width": 2}) == []
    assert check_arguments("model", build, {"widht": 2, "zzz": 1}) == [
        "model.widht: unknown setting. Allowed: width, depth. Did you mean 'width'?",
        "model.zzz: unknown setting. Allowed: width, depth.",
    ]
    assert check_arguments("model", lambda: None, {"a": 1}) == ["model.a: unknown setting. Allowed: none."]
    assert check_arguments("model", lambda **settings: None, {"anything": 1}) == []


@dataclass(frozen=True)
class Settings:
    rate: Annotated[float, Field(gt=0)] = 0.5
    names: tuple[str, ...] = ()
    count: int = field(default=3)


def test_settings_become_the_dataclass_with_plain_yaml_values_converted():
    assert parse_settings("learner", Settings, {}) == Settings()
    assert parse_settings("learner", Settings, {"rate": 1, "names": ["a", "b"]}) == Settings(1.0, ("a", "b"))


def test_every_mistake_in_settings_is_a_line_of_its_own():
    with pytest.raises(ConfigError) as caught:
        parse_settings("search", Settings, {"rate": -1, "count": "many", "cuont": 1}, beside=["trials"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "search.cuont: unknown key. Allowed: trials, rate, names, count. Did you mean 'count'?"
    assert lines[1] == "search.rate: -1 is not allowed: input should be greater than 0"
    assert lines[2].startswith("search.count: 'many' is not allowed: input should be a valid integer")
    assert len(lines) == 3


def test_the_nearest_name_is_offered_only_where_one_is_near():
    assert nearest("lent", ["lenet", "resnet20"]) == " Did you mean 'lenet'?"
    assert nearest("qqq", ["lenet", "resnet20"]) == ""
