"""Experiment files made of several: includes, fragments, and which value wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfray.config.merge import merge, read_with_includes
from pfray.config.schema import load
from pfray.errors import ConfigError
from pfray.workflow import components
from tests.config.written import BASE, mistakes

ROOT = Path(__file__).resolve().parents[2]


def test_files_that_include_others_again_and_again_are_refused(file):
    for i in range(1, 9):
        file({"include": [f"{i - 1}.yaml"] * 3} if i > 1 else {}, f"{i}.yaml")
    with pytest.raises(ConfigError, match="more than 100 files are included"):
        load(file({**BASE, "include": ["8.yaml"]}))


def test_fragments_are_merged_in_order_with_the_file_on_top(file):
    file({"search": {"name": "random", "trials": 5}, "seed": 1}, "a.yaml")
    file({"search": {"trials": 7}}, "b.yaml")
    raw = read_with_includes(file({**BASE, "include": ["a.yaml", "b.yaml"], "seed": 2}))
    assert raw["search"] == {"name": "random", "trials": 7}
    assert raw["seed"] == 2


def test_a_factory_on_top_replaces_a_name_below_it_and_both_at_once_are_refused(file):
    experiment = load(file(BASE), ["data.factory=my_pkg:build"])
    assert experiment.data.name == "my_pkg:build"
    raw = merge({"model": {"name": "resnet20", "width": 1}}, {"model": {"factory": "my_pkg:net"}})
    assert raw == {"model": {"factory": "my_pkg:net", "width": 1}}
    assert "both name and factory" in mistakes(file({**BASE, "data": {"name": "digits", "factory": "a:b"}}))[0]


def test_a_circle_of_includes_is_refused(file):
    file({"include": ["exp.yaml"]}, "a.yaml")
    with pytest.raises(ConfigError, match="includes itself"):
        load(file({**BASE, "include": ["a.yaml"]}))


FRAGMENTS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "cluster"]


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda p: p.stem)
def test_every_fragment_is_valid_on_top_of_a_whole_experiment(path, file):
    raw = merge(BASE, read_with_includes(path))
    assert components.resolve(load(file(raw))).model is not None
