from __future__ import annotations

import pytest

from pfray.config.schema import dump, load
from pfray.run import main
from pfray.units import Amount
from tests.config.written import BASE, mistakes


def test_five_lines_are_enough_and_the_rest_has_defaults(file):
    experiment = load(file(BASE))
    assert (experiment.name, experiment.search.name, experiment.seed) == ("exp", "tpe", 0)
    assert experiment.target.costs() == {"sparsity": Amount(0.5)}


def test_plain_units_are_read(file):
    assert load(file({**BASE, "target": {"sparsity": "75%", "max_drop": "1%"}})).target.model_dump() == {
        "sparsity": 0.75, "params": None, "macs": None, "bits": None, "size_bytes": None,
        "latency_ms": None, "max_drop": 0.01,
    }  # fmt: skip
    assert load(file({**BASE, "target": {"params": "800k"}})).target.params == Amount(800_000)
    assert load(file({**BASE, "target": {"params": "0.4x"}})).target.params == Amount(0.4, relative=True)


@pytest.mark.parametrize(("target", "plain"), [
    ({"params": "1.5k", "bits": 4}, {"params": 1500.0, "bits": 4.0}),
    ({"macs": " 0.40x ", "latency_ms": "2x"}, {"macs": "0.40x", "latency_ms": "2x"}),
    ({"size_bytes": "0.00001x"}, {"size_bytes": "0.00001x"}),
    ({"sparsity": "92.5%", "max_drop": "0.7%"}, {"sparsity": 0.925, "max_drop": 0.007}),
    ({"latency_ms": 1.25, "macs": None}, {"latency_ms": 1.25}),
])  # fmt: skip
def test_amounts_are_dumped_as_numbers_and_relative_ones_as_texts_and_read_back(file, tmp_path, target, plain):
    experiment = load(file({**BASE, "target": target}))
    assert experiment.target.model_dump(exclude_none=True) == plain
    saved = tmp_path / "again.yaml"
    saved.write_text(dump(experiment))
    assert load(saved) == experiment


def test_overrides_reach_into_sections_and_short_names(file):
    experiment = load(file(BASE), ["search.trials=60", "learner.interval=5", "seed=3", "target.sparsity=90%"])
    assert experiment.search.trials == 60
    assert (experiment.learner.name, experiment.learner.settings) == ("weight_sparse", {"interval": 5})
    assert (experiment.seed, experiment.target.sparsity) == (3, Amount(0.9))


def test_overrides_reach_into_a_pipeline_by_name_and_by_place(file):
    path = file({**BASE, "learner": ["weight_sparse", {"name": "uniform_quant", "fold": False}]})
    changed = load(path, ["learner.weight_sparse.interval=5", "learner.1.buckets=tensor"])
    assert changed.learner.settings["steps"] == [
        {"name": "weight_sparse", "interval": 5}, {"name": "uniform_quant", "fold": False, "buckets": "tensor"},
    ]  # fmt: skip
    imported = file({**BASE, "learner": ["learners.weight_sparse:WeightSparse", "uniform_quant"]}, "imported.yaml")
    assert load(imported, ["learner.WeightSparse.interval=5"]).learner.settings["steps"][0]["interval"] == 5
    replaced = load(path, ["learner.uniform_quant=litert_quant"])
    assert replaced.learner.settings["steps"] == ["weight_sparse", "litert_quant"]


@pytest.mark.parametrize(("override", "words"), [
    ("learner.litert_quant.images=9", "learner has no entry 'litert_quant'. Allowed: weight_sparse, weight_sparse"),
    ("learner.2.begin=0", "learner has no entry '2'. Allowed: weight_sparse, weight_sparse, or 0 to 1"),
    ("learner.weight_sparse.begin=0", "learner has several entries named 'weight_sparse'"),
])  # fmt: skip
def test_an_override_of_no_entry_of_a_list_names_the_entries(file, override, words):
    assert words in mistakes(file({**BASE, "learner": ["weight_sparse", "weight_sparse"]}), override)[0]


@pytest.mark.parametrize("learner", ["weight_sparse", [{"name": "weight_sparse", "interval": 5}, "uniform_quant"]])
def test_the_resolved_experiment_reads_back_as_itself(file, tmp_path, learner):
    search = {"name": "tpe", "startup": 4, "validation_images": 50, "gamma": float("inf"), "when": "2001-01-01"}
    experiment = load(file({**BASE, "learner": learner, "search": search, "target": {"max_drop": "0.7%", "bits": 4}}))
    assert experiment.target.max_drop == 0.007
    saved = tmp_path / "again.yaml"
    saved.write_text(dump(experiment))
    assert load(saved) == experiment
    if isinstance(learner, list):
        assert load(saved, ["learner.0.interval=7"]).learner.settings["steps"][0]["interval"] == 7


def test_the_experiment_is_frozen(file):
    experiment = load(file(BASE))
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 1  # type: ignore[misc]


def test_all_mistakes_are_reported_together_with_path_allowed_values_and_nearest_name(file):
    found = mistakes(file({
        "modle": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 1.5},
        "search": {"trials": -3}, "seed": "x",
    }), "data=digitz")  # fmt: skip
    assert len(found) == 6
    assert "data: unknown name 'digitz'. Allowed: cifar10, cifar100, digits" in "\n".join(found)
    text = "\n".join(found)
    assert "model: missing" in text
    assert "modle: unknown key. Allowed: name, model, data" in text
    assert "Did you mean 'model'?" in text
    assert "target.sparsity: 1.5 is not allowed: a share is above 0 and below 1" in text
    assert "search.trials: -3 is not allowed" in text


@pytest.mark.parametrize(("change", "words"), [
    ({"model": "resnet21"}, "model: unknown name 'resnet21'. Allowed: googlenet, lenet, mobilenet_v1, "),
    ({"model": "resnet_20"}, "Did you mean 'resnet20'?"),
    ({"model": {"name": "mobilenet_v1", "widht": 0.5}}, "model.widht: unknown setting"),
    ({"model": "no_such_pkg.models:build"}, "model: cannot import 'no_such_pkg.models'"),
    ({"model": "pfray.models.lenet:lenett"}, "has no 'lenett'. Did you mean 'lenet'?"),
    ({"data": "digit"}, "data: unknown name 'digit'. Allowed: cifar10, cifar100, digits"),
    ({"data": {"factory": "pfray.models:nothing"}}, "data: module 'pfray.models' has no 'nothing'"),
    ({"learner": "weight_spars"}, "Did you mean 'weight_sparse'?"),
    ({"learner": "pfray.config.schema:Section"}, "is not a subclass of pfray.learner.base.Algorithm"),
    ({"learner": {"name": "weight_sparse", "intervall": 5}}, "learner.intervall: unknown key"),
    ({"learner": {"name": "weight_sparse", "interval": 0}}, "learner.interval: 0 is not allowed"),
    ({"learner": {"name": "weight_sparse", "begin": 0.5, "end": 0.5}}, "begin must be below end"),
    ({"search": "tpee"}, "search: unknown name 'tpee'. Allowed: allocate, critic, ddpg, given, gp, heuristic"),
    ({"search": {"name": "tpe", "trails": 9}}, "search.trails: unknown key"),
    ({"search": {"name": "random", "spread": 20}}, "search.spread: 20 is not allowed"),
    ({"search": {"scheduler": "asha"}}, "scheduler asha needs rounds"),
    ({"search": {"rounds": 3}}, "set search.finetune_steps"),
    ({"search": {"trials": -1}}, "search.trials: -1 is not allowed: input should be greater than or equal to 1"),
    ({"resources": {"address": "TOKEN@host:6379"}}, "resources.address: the address has a user, a password or"),
    ({"search": {"thresholds": {"accuracy": 1.5}}}, "search.thresholds.accuracy: 1.5 is not allowed: input should be"),
    ({"search": {"thresholds": {"latency": 0}}}, "search.thresholds.latency: 0 is not allowed: input should be"),
    ({"search": {"name": "policy_gradient", "student": 3}}, "Did you mean 'students'?"),
    ({"finetune": {"epochs": -1}}, "finetune.epochs: -1 is not allowed"),
    ({"epochs": 3}, "epochs: unknown key. Allowed: name, model, data"),
    ({"epochs": 3}, "Did you mean 'finetune.epochs' or 'teacher.epochs'?"),
    ({"search": {"epochs": 3}}, "Did you mean 'finetune.epochs' or 'teacher.epochs'?"),
    ({"finetune": {"trials": 3}}, "Did you mean 'search.trials'?"),
    ({"finetune": {"learning_rate": 3}}, "Did you mean 'lr'?"),
    ({"macs": "0.5x"}, "Did you mean 'target.macs'?"),
    ({"finetune": 3}, "finetune: 3 is not a mapping. Allowed: a mapping of epochs, lr, batch_size"),
    ({"target": "0.5x"}, "target: '0.5x' names no unit. Allowed: a mapping of sparsity, params, macs, bits"),
    ({"target": "0.5x"}, """latency_ms and max_drop. Remedy: target: {"macs": "0.5x"}"""),
    ({"target": "75%"}, """Remedy: target: {"sparsity": "75%"}"""),
    ({"target": "8bit"}, """Remedy: target: {"bits": "8bit"}"""),
    ({"target": 0.5}, """target: 0.5 names no unit."""),
    ({"target": {"flops": "1M"}}, "target.flops: unknown key. Allowed: sparsity, params, macs"),
    ({"target": {"FLOPs": "1M"}}, "Did you mean 'macs'? 1 MAC is 2 FLOPs"),
    ({"target": {"latency": 1}}, "Did you mean 'latency_ms'?"),
    ({"target": {}}, "target: no cost is named"),
    ({"target": {"bits": 0}}, "target.bits: 0 is not allowed"),
    ({"target": {"bits": 33}}, "target.bits: 33 is not allowed"),
    ({"target": {"params": "lots"}}, "target.params: 'lots' is not an amount: write 0.4x (of the teacher's) or a"),
    ({"target": {"params": "75%"}}, "target.params: '75%' is not an amount"),
    ({"target": {"params": "..x"}}, "target.params: '..x' is not an amount"),
    ({"target": {"params": float("inf")}}, "target.params: inf is not allowed: an amount is above 0, and finite"),
    ({"target": {"sparsity": "0.4x"}}, "target.sparsity: '0.4x' is not allowed: a share is above 0 and below 1"),
    ({"target": {"bits": "0.5x"}}, "target.bits: '0.5x' is not allowed: bits are a number from 1 to 32"),
    ({"target": {"sparsity": 0.5, "max_drop": "2x"}}, "target.max_drop: '2x' is not allowed"),
    ({"target": {"params": "0x"}}, "above 0"),
    ({"resources": {"trial": {"cpus": 1}}}, "resources.trial.cpus: unknown key. Allowed: cpu, gpu."),
    ({"name": "a/b"}, "name: 'a/b' is not allowed"),
    ({"search": {"trials": True}}, "search.trials: True is not allowed: input should be a valid integer"),
    ({"search": {"trials": "5"}}, "'5' is not allowed: input should be a valid integer. Remedy: 5 without quotes"),
    ({"search": {"trials": 5.0}}, "search.trials: 5.0 is not allowed: input should be a valid integer"),
    ({"search": {"thresholds": {"accuracy": True}}}, "search.thresholds.accuracy: True is not allowed"),
    ({"search": {"warm_start": 3}}, "search.warm_start: 3 is not allowed: input should be a valid string"),
    ({"finetune": {"lr": "0.1"}}, "valid number. Remedy: 0.1 without quotes"),
    ({"resources": {"trial": {"cpu": True}}}, "resources.trial.cpu: True is not allowed"),
    ({"export": {"tflite": 1}}, "export.tflite: 1 is not allowed: input should be a valid boolean"),
    ({"distributed": {"bits": True}}, "distributed.bits: True is not allowed"),
    ({"target": {"sparsity": True}}, "target.sparsity: True is not allowed"),
    ({"target": {"params": True}}, "target.params: True is not an amount"),
    ({"target": {"params": [1]}}, "target.params: [1] is not an amount"),
    ({"target": {"params": "9" * 400 + "x"}}, "an amount is above 0"),
    ({"learner": {"name": "weight_sparse", "interval": True}}, "learner.interval: True is not allowed"),
    ({"learner": ["channel_pruned", {"name": "litert_quant", "finetune": {"epochs": True}}]},
     "learner.1.finetune.epochs: True is not allowed"),
    ({"search": {"name": "random", "spread": "2"}}, "search.spread: '2' is not allowed"),
    ({"search": {"space": {"finetune.lr": "uniform(0, 1e999)"}}}, "an end is infinite"),
    ({"model": "builtins:dict"}, "model: 'builtins:dict' cannot be used: no signature found"),
    ({"model": "x" * 10**5}, "Allowed: googlenet, lenet"),
    ({"model": "\x1b[31m:\u202e"}, r"model: cannot import '\x1b[31m'"),
    ({"x" * 10**5: 1}, "unknown key. Allowed: name"),
    ({"seed": [list(range(100))] * 20}, "seed: [[0, 1, 2"),
    ({"include": {"a": 1}}, "include is {'a': 1}, not a list of file names"),
])  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_it(file, change, words):
    found = mistakes(file({**BASE, **change}))
    assert len(found) == 1
    assert words in found[0]
    assert len(found[0]) < 600
    assert found[0].isprintable()


@pytest.mark.parametrize(("content", "words"), [
    ("", "the file is empty"),
    ("- a\n- b\n", "holds a list, not a mapping"),
    ("just words", "holds a str, not a mapping"),
    ("model: [lenet\n", "not valid YAML at line 2"),
])  # fmt: skip
def test_a_file_that_is_no_experiment_ends_with_exit_code_2_and_one_line(file, capsys, content, words):
    assert main([str(file(content))]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert "Remedy" in errors


def test_a_missing_file_ends_with_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("override", "words"), [
    ("search.trials=true", "search.trials: True is not allowed"),
    ("learner.interval=true", "learner.interval: True is not allowed"),
    ("search={trials: 1, trials: 2}", "the key 'trials' is given twice"),
    ("seed=!!bool maybe", "'maybe' is no bool"),
    ("seed=[", "not valid YAML at line 1, column 2"),
    (".".join("a" * 3000) + "=1", "more than 30 keys inside one another"),
    ("search.x=" + "y" * 10**5, "search.x: unknown key"),
])  # fmt: skip
def test_an_override_is_read_as_strictly_as_the_file(file, override, words):
    found = mistakes(file(BASE), override)
    assert words in found[0]
    assert len(found[0]) < 600


def test_a_section_that_is_an_alias_of_another_can_be_changed_alone(file):
    text = "model: lenet\ndata: digits\nlearner: weight_sparse\ntarget: {sparsity: 75%}\n"
    changed = load(file(f"{text}teacher: &t {{epochs: 3, lr: 1e-3}}\nfinetune: *t\n"), ["finetune.epochs=1"])
    assert (changed.teacher.epochs, changed.finetune.epochs) == (3, 1)
    assert changed.teacher.lr == changed.finetune.lr == 1e-3


@pytest.mark.parametrize(("written", "value"), [(0.71, 0.71), ("71%", 0.71), ("71.5 %", 0.715), (28.4, 28.4)])
def test_what_is_expected_of_a_teacher_is_a_share_or_a_number(file, tmp_path, written, value):
    experiment = load(file({**BASE, "teacher": {"expect": written, "epochs": 3}}))
    assert (experiment.teacher.expect, experiment.teacher.epochs) == (value, 3)
    (tmp_path / "again.yaml").write_text(dump(experiment))
    assert load(tmp_path / "again.yaml") == experiment


@pytest.mark.parametrize("written", [0, -0.5, "-5%", "0%", "2x", "high", True, [0.5], float("inf")])
def test_an_expectation_of_another_form_is_refused(file, written):
    (line,) = mistakes(file({**BASE, "teacher": {"expect": written}}))
    assert line.startswith("teacher.expect: ")
    assert "finetune" not in line


def test_only_a_teacher_is_expected_to_have_a_metric(file):
    (line,) = mistakes(file({**BASE, "finetune": {"expect": 0.5}}))
    assert line.startswith("finetune.expect: unknown key")


def test_a_malformed_override_shows_the_form(file):
    assert "not of the form key=value" in mistakes(file(BASE), "trials")[0]
    assert "seed is 0, not a mapping" in mistakes(file({**BASE, "seed": 0}), "seed.x=1")[0]


def test_one_worker_has_nobody_to_send_compressed_gradients_to(file):
    [mistake] = mistakes(file({**BASE, "distributed": {"comm_hook": "ecq"}}))
    assert "distributed.comm_hook is ecq, but one worker has nobody to send gradients to" in mistake
    assert "Remedy: resources.workers=2 or more" in mistake
    two = load(file({**BASE, "distributed": {"comm_hook": "ecq", "bits": 4}, "resources": {"workers": 2}}))
    assert (two.distributed.bits, two.distributed.group_size) == (4, 64)
    assert len(mistakes(file({**BASE, "distributed": {"comm_hook": "fp8", "bits": 3, "group_size": 30}}))) == 3


def test_settings_of_the_retraining_that_are_not_given_keep_its_own_defaults(file):
    whole, part = (load(file({**BASE, **changes})).finetune for changes in ({}, {"finetune": {"epochs": 3}}))
    assert (whole.epochs, whole.lr, part.epochs, part.lr) == (10, 0.02, 3, 0.02)
