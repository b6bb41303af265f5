"""Settings of learners and searchers with all defaults, as ``--show`` prints them and a run folder keeps them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from pfray.config.registry import component_modules
from pfray.config.schema import Experiment, dump, plain
from pfray.learner.pipeline import Pipeline
from pfray.workflow.components import resolve, with_defaults


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5},
        **changes,
    })  # fmt: skip


@pytest.mark.parametrize("name", [name for name in component_modules("learner") if name != "pipeline"])
def test_every_setting_of_a_learner_is_there_and_is_read_back(name):
    given = experiment(learner=name)
    whole = with_defaults(given)
    settings = resolve(given).learner_settings
    assert list(whole.learner.settings) == [field.name for field in dataclasses.fields(settings)]
    assert resolve(whole).learner_settings == settings
    assert with_defaults(whole) == whole
    assert Experiment.model_validate(yaml.safe_load(dump(whole))) == whole


@pytest.mark.parametrize("name", list(component_modules("search")))
def test_every_setting_of_a_searcher_is_there_and_is_read_back(name):
    given = experiment(search={"name": name})
    whole = with_defaults(given)
    settings = resolve(given).search_settings
    assert list(whole.search.settings) == [field.name for field in dataclasses.fields(settings)]
    assert resolve(whole).search_settings == settings
    assert with_defaults(whole) == whole


def test_what_is_given_stays_and_the_rest_is_filled_in():
    shown = plain(with_defaults(experiment(learner={"name": "weight_sparse", "interval": 7})))
    assert shown["learner"]["interval"] == 7
    assert "skip" in shown["learner"]
    assert shown["search"]["name"] == "tpe"
    assert "startup" in shown["search"]


def test_each_learner_of_a_pipeline_is_filled_in():
    steps = ["channel_pruned", {"name": "litert_quant", "images": 50, "finetune": {"epochs": 1}}]
    whole = with_defaults(experiment(learner=steps))
    first, second = plain(whole)["learner"]
    assert first["name"] == "channel_pruned"
    assert len(first) > 1
    assert (second["images"], second["finetune"]) == (50, {"epochs": 1})
    components = resolve(whole)
    assert issubclass(components.learner, Pipeline)
    assert components.learner_settings == resolve(experiment(learner=steps)).learner_settings
    assert with_defaults(whole) == whole
