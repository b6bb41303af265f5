from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from learners.weight_sparse import WeightSparse
from pfray.config.registry import find_class, find_function, load_object, parse_settings
from pfray.errors import ConfigError, nearest
from pfray.learner.base import Algorithm
from pfray.models.resnet import resnet20
from pfray.search.base import PlanSearcher
from pfray.search.tpe import TPE
from pfray.utils.signatures import call, check_arguments


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
    assert find_class("learner", "weight_sparse", Algorithm) is WeightSparse
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
    assert issubclass(find_class("learner", "mine_found:Mine", Algorithm), WeightSparse)
    assert load_object("data", "mine_found:number") == 3
    with pytest.raises(ConfigError, match="model: 'mine_found:number' is not callable"):
        find_function("model", "mine_found:number")
    with pytest.raises(ConfigError, match=r"'mine_found:net' is not a subclass of pfray\.learner\.base\.Algorithm"):
        find_class("learner", "mine_found:net", Algorithm)
    with pytest.raises(ConfigError, match=r"has no 'nett'\. Did you mean 'net'\?"):
        find_function("model", "mine_found:nett")


def test_a_users_module_that_breaks_while_it_is_imported_is_told_with_its_error(module):
    module("mine_broken", "1 / 0\n")
    with pytest.raises(ConfigError, match=r"cannot import 'mine_broken' \(ZeroDivisionError: division by zero\)"):
        find_function("data", "mine_broken:build")
    module("mine_syntax", "def f(:\n")
    with pytest.raises(ConfigError, match=r"cannot import 'mine_syntax' \(SyntaxError"):
        find_function("data", "mine_syntax:build")


@pytest.mark.parametrize(("path", "words"), [
    ("mine_exits:x", "cannot import 'mine_exits' (SystemExit: 3) (.../mine_exits.py, line 2)"),
    ("mine_odd:x", "'mine_odd:x' cannot be looked up: RuntimeError: explodes (.../mine_odd.py, line 3)"),
    ("mine_nothing:x", "cannot be looked up: vars() argument must have __dict__ attribute"),
    ("mine_classes:Plain", "the settings_type of 'mine_classes:Plain' is <class 'dict'>, not a dataclass"),
    ("mine_classes:Odd", "cannot be used: Unable to generate pydantic-core schema for <class 'torch.dtype'>"),
    ("mine_classes:Raises", "cannot be used: KeyError: 'no settings' (.../mine_classes.py, line 4)"),
    (":", "cannot import '' (ValueError: Empty module name)"),
    ("..a:b", "cannot import '..a' (TypeError: the 'package' argument is required"),
])  # fmt: skip
def test_whatever_a_users_code_raises_is_one_line_with_its_file_and_line(module, tmp_path, path, words):
    module("mine_exits", "import sys\nsys.exit(3)\n")
    module("mine_odd", "def __getattr__(name):\n    if name == 'x':\n        raise RuntimeError('explodes')\n")
    module("mine_nothing", "import sys\nsys.modules[__name__] = 3\n")
    module("mine_classes", (
        "from pfray.learner.base import Algorithm\n"
        "class Meta(type(Algorithm)):\n"
        "    @property\n"
        "    def settings_type(cls): raise KeyError('no settings')\n"
        "class Raises(Algorithm, metaclass=Meta): pass\n"
        "from dataclasses import dataclass\n"
        "import torch\n"
        "class Plain(Algorithm): settings_type = dict\n"
        "class Odd(Algorithm):\n"
        "    @dataclass\n"
        "    class settings_type: kind: torch.dtype = torch.float32\n"
    ))  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        find_class("learner", path, Algorithm)
    text = str(caught.value)
    assert words.replace("...", str(tmp_path)) in text
    assert "\n" not in text
    assert len(text) < 700


@pytest.mark.parametrize(("code", "words"), [
    ("from pfray.learner.trainable import Learner\nclass Mine(Learner):\n    settings_type = dict",
     "'mine_old:Mine' is not a subclass of pfray.learner.base.Algorithm with a settings_type. "
     "Remedy: name one that is, or class Mine(Algorithm)"),
    ("class Mine: pass", "is not a subclass of pfray.learner.base.Algorithm with a settings_type. Remedy: name one"),
    ("from pfray.learner.base import Algorithm as Mine", "'mine_old:Mine' is not a subclass of pfray.learner.base.A"),
    ("from learners.weight_sparse import WeightSparse\nclass Mine(WeightSparse):\n"
     "    @staticmethod\n    def compress(model, plan, settings, cache, steps): pass",
     "learner: Mine.compress is a static function. Remedy: def compress(self, ...), which finds self.model, "),
    ("from learners.full_precision import FullPrecision\nclass Mine(FullPrecision):\n    def finish(self, plan): pass",
     "learner: Mine has a finish of its own. Remedy: has_finish = True in the class"),
])  # fmt: skip
def test_a_learner_of_another_kind_is_one_line_with_the_remedy(module, code, words):
    module("mine_old", code)
    with pytest.raises(ConfigError) as caught:
        find_class("learner", "mine_old:Mine", Algorithm)
    assert words in str(caught.value)
    assert str(caught.value).count("Remedy") == 1
    assert "\n" not in str(caught.value)


def test_a_component_that_ends_the_program_is_a_mistake_and_ctrl_c_is_none():
    def ends(error: BaseException) -> None:
        raise error

    line = ends.__code__.co_firstlineno + 1
    with pytest.raises(ConfigError, match=rf"^data: SystemExit: 3 \({__file__}, line {line}\)\. Remedy: correct"):
        call("data", ends, {"error": SystemExit(3)})
    with pytest.raises(KeyboardInterrupt):
        call("data", ends, {"error": KeyboardInterrupt()})


def test_only_arguments_that_can_be_given_by_name_are_settings():
    def build(first: int, /, second: int, *rest: int, third: int = 3) -> None: ...

    assert check_arguments("model", build, {"second": 1, "third": 2}) == []
    assert check_arguments("model", build, {"first": 1, "rest": 2}) == [
        "model.first: unknown setting. Allowed: second, third.",
        "model.rest: unknown setting. Allowed: second, third.",
    ]


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


@pytest.mark.parametrize(("key", "value"), [
    ("rate", True), ("rate", "0.5"), ("count", True), ("count", 3.0), ("count", "3"), ("names", [1]), ("names", "ab"),
])  # fmt: skip
def test_settings_are_taken_as_they_are_written(key, value):
    with pytest.raises(ConfigError, match=f"^learner.{key}(.0)?: .* is not allowed: input should be a valid"):
        parse_settings("learner", Settings, {key: value})


def test_every_mistake_in_settings_is_a_line_of_its_own():
    with pytest.raises(ConfigError) as caught:
        parse_settings("search", Settings, {"rate": -1, "count": "many", "cuont": 1}, other_keys=["trials"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "search.cuont: unknown key. Allowed: trials, rate, names, count. Did you mean 'count'?"
    assert lines[1] == "search.rate: -1 is not allowed: input should be greater than 0"
    assert lines[2].startswith("search.count: 'many' is not allowed: input should be a valid integer")
    assert len(lines) == 3


def test_the_nearest_name_is_offered_only_where_one_is_near():
    assert nearest("lent", ["lenet", "resnet20"]) == " Did you mean 'lenet'?"
    assert nearest("qqq", ["lenet", "resnet20"]) == ""
    assert nearest("lenett", ["LeNet", "lenet"]) == " Did you mean 'lenet'?"
    assert nearest("acc", ["accuracy", "top5", "mse"]) == " Did you mean 'accuracy'?"
    assert nearest("ac", ["accuracy", "top5", "mse"]) == ""
    assert nearest("epochs", ["export", "search", "teacher"]) == ""


@pytest.mark.parametrize(("name", "meant"), [
    ("prune", "channel_pruned"), ("pruning", "channel_pruned"), ("Channel-Pruned", "channel_pruned"),
    ("sparsity", "weight_sparse"), ("quantize", "litert_quant"), ("distillation", "distilled"),
    ("layers", "layer_removal"), ("dis_chn_prune", "dis_chn_pruned"), ("unifrom_quant", "uniform_quant"),
])  # fmt: skip
def test_a_learner_is_offered_by_a_word_of_its_name_before_one_that_is_spelled_alike(name, meant):
    with pytest.raises(ConfigError) as caught:
        find_class("learner", name, Algorithm)
    assert str(caught.value).endswith(f"Did you mean '{meant}'?")
