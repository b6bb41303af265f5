from __future__ import annotations

import json

import pytest
import yaml

from learners.weight_sparse import WeightSparse
from pfray.config.schema import Experiment, dump
from pfray.data import digits
from pfray.errors import ConfigError
from pfray.search.tpe import TPE
from pfray.space import CompressionSpace, Knob
from pfray.workflow.decided import Decided, decide
from pfray.workflow.warm_start import read_earlier

SPACE = CompressionSpace((Knob("a", 0.1, 1.0), Knob("b", 0.1, 1.0)), lambda v: {"params": float(v.sum())})
LIMITS = {"params": 1.0}
TASK = digits.build()
TRIALS = [({"a": 0.5, "b": 0.5}, 0.8), ({"a": 0.9, "b": 0.9}, 0.95), ({"b": 0.2, "a": 0.4}, None)]


def experiment(**search) -> Experiment:
    return Experiment.model_validate({
        "name": "x", "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"params": "0.5x"},
        "search": {"name": "random", **search},
    })  # fmt: skip


def decided(of: Experiment) -> Decided:
    return decide(of, WeightSparse, WeightSparse.settings_type(), TPE, TASK)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "search").mkdir()
    measured = [{"accuracy": score, "agreement": -0.1} for _, score in TRIALS]
    lines = [
        json.dumps({
            "trial": i, "origin": "random", "plan": plan, "score": score, "standard_error": None, "cost": {},
            "measurement": measured[i], "seconds": 0.1, "finished_at": None, "rounds": 1,
            "error": None if score is not None else "ValueError: broke",
        })
        for i, (plan, score) in enumerate(TRIALS)
    ]
    (tmp_path / "search" / "trials.jsonl").write_text("\n".join(lines) + '\n{"trial": 3, "pl')
    (tmp_path / "experiment.yaml").write_text(dump(experiment()))
    return tmp_path


def test_the_trials_that_meet_this_target_are_taken_over_failed_ones_too(run):
    before = (run / "search" / "trials.jsonl").read_bytes()
    found = read_earlier(experiment(warm_start=str(run)), SPACE, LIMITS, "accuracy", decided)
    assert found == [({"a": 0.5, "b": 0.5}, 0.8), ({"a": 0.4, "b": 0.2}, None)]
    # Nothing of the other run is touched, a line that is half-written included.
    assert (run / "search" / "trials.jsonl").read_bytes() == before


def test_scores_of_another_kind_are_refused(run):
    again = experiment(warm_start=str(run), finetune_steps=30)
    with pytest.raises(ConfigError, match=r"these differ: search.finetune_steps. Remedy"):
        read_earlier(again, SPACE, LIMITS, "accuracy", decided)
    other = again.model_copy(update={"model": again.model.model_copy(update={"name": "resnet20"})})
    with pytest.raises(ConfigError, match=r"these differ: model. Remedy"):
        read_earlier(other, SPACE, LIMITS, "accuracy", decided)


def test_what_a_score_was_is_seen_from_the_trials_where_the_file_does_not_say(run):
    # Its scores are the accuracies, whatever the default is now.
    with pytest.raises(ConfigError, match=r"these differ: search.objective. Remedy"):
        read_earlier(experiment(warm_start=str(run)), SPACE, LIMITS, "agreement", decided)
    same = experiment(warm_start=str(run), objective="accuracy")
    assert read_earlier(same, SPACE, LIMITS, "accuracy", decided)


def test_a_run_from_python_whose_model_and_data_have_no_names_learns_from_another(run):
    def of(kind: str, **search) -> Experiment:
        found = experiment(**search)
        names = {"model": kind, "data": "DataLoader"}
        parts = {key: getattr(found, key).model_copy(update={"name": name}) for key, name in names.items()}
        return found.model_copy(update=parts)

    (run / "experiment.yaml").write_text(dump(of("Net")))
    found = read_earlier(of("Net", warm_start=str(run)), SPACE, LIMITS, "accuracy", decided)
    assert [score for _, score in found] == [0.8, None]
    with pytest.raises(ConfigError, match=r"these differ: model. Remedy"):
        read_earlier(of("Other", warm_start=str(run)), SPACE, LIMITS, "accuracy", decided)


def test_another_space_another_target_and_no_run_are_refused(run, tmp_path):
    other = CompressionSpace((Knob("a", 0.1, 1.0), Knob("c", 0.1, 1.0)), SPACE.costs_of)
    with pytest.raises(ConfigError, match=r"searched another space .2 knobs differ, such as 'b'"):
        read_earlier(experiment(warm_start=str(run)), other, LIMITS, "accuracy", decided)
    with pytest.raises(ConfigError, match=r"none of the 3 trials of .* meets this run's target"):
        read_earlier(experiment(warm_start=str(run)), SPACE, {"params": 0.3}, "accuracy", decided)
    with pytest.raises(ConfigError, match="holds no run that can be read"):
        read_earlier(experiment(warm_start=str(tmp_path / "none")), SPACE, LIMITS, "accuracy", decided)
    trials = run / "search" / "trials.jsonl"
    trials.write_text(trials.read_text().replace('"score": 0.95', '"score": "high"'))
    with pytest.raises(ConfigError, match=r"read \(line 2: no record of a trial \(score: .*\)\)\. Remedy"):
        read_earlier(experiment(warm_start=str(run)), SPACE, LIMITS, "accuracy", decided)
    trials.unlink()
    with pytest.raises(ConfigError, match=r"no run that can be read \(.*No such file"):
        read_earlier(experiment(warm_start=str(run)), SPACE, LIMITS, "accuracy", decided)
    (run / "experiment.yaml").write_text(yaml.safe_dump(["no mapping"]))
    with pytest.raises(ConfigError, match="holds no run that can be read"):
        read_earlier(experiment(warm_start=str(run)), SPACE, LIMITS, "accuracy", decided)
