"""Experiment files that chance has changed: each is an experiment, or ends in short lines."""

from __future__ import annotations

import importlib
import random
import re
from pathlib import Path

import pytest

from pfray.config.schema import dump, load
from pfray.errors import ConfigError
from pfray.workflow.components import component_mistakes

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "builtins", "os", "sys", "collections", "typing", "pfray.learner.base", "pfray.learner.trainable",
    "learners.weight_sparse",
)  # fmt: skip
SECTIONS = ("model", "data", "learner", "target", "search", "finetune", "resources", "seed", "storage", "include")
VALUES = (
    "!!bool maybe", "!!int x", "!!timestamp x", "2001-99-99", "!!binary x", "!!set {a}", "0b_", "1:99:1", ".inf",
    ".nan", "1e999", "9" * 5000, "0x" + "f" * 5000, "true", "on", "~", "''", "'5'", "5.0", r'"\e[31m"', r'"\0"',
    r'"\ud800"', r'"\u202e"', r'"\n"', "a" * 20_000, "[]", "{}", "[[[1]]]", "{a: {b: 1}}", "&x [*x]", "&x 1", "*x",
    "!x y", "uniform(0, 1)", "75%", "..%", "0.4x", "..x", "9k", "s3://[", "{? [a] : 1}", "{1: 2}", "{a: 1, a: 2}",
    "{<<: 3}", "{name: [1]}", "{name: lenet, factory: 3}", "{settings: 3}", "[weight_sparse, 2]",
    "[{name: weight_sparse, finetune: 3}, 3]", "[" * 3000, "- " * 300,
)  # fmt: skip
CHARACTERS = "[]{}:,&*!|>'\"%@`#-? \t\x00\x1b\x7f\u2028\u202e\ufeff"


def mutated(text: str, chance: random.Random) -> str:
    lines = text.splitlines()

    def value() -> str:
        if chance.random() < 0.6:
            return chance.choice(VALUES)
        module = chance.choice(MODULES)
        return f"'{module}:{chance.choice(dir(importlib.import_module(module)))}'"

    for _ in range(chance.choice((1, 1, 2))):
        place, kind = chance.randrange(len(lines)), chance.random()
        values = list(re.finditer(r"(?<=: )[^,{}\[\]]+", lines[place]))
        if kind < 0.5 and values:
            found = chance.choice(values)
            lines[place] = lines[place][: found.start()] + value() + lines[place][found.end() :]
        elif kind < 0.8:
            lines.append(f"{chance.choice(SECTIONS)}: {value()}")
        else:
            at = chance.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:at] + chance.choice(CHARACTERS) + lines[place][at:]
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(4))
def test_every_changed_file_is_an_experiment_or_ends_in_short_lines(tmp_path, seed):
    chance, path, outcomes = random.Random(seed), tmp_path / "exp.yaml", [0, 0]
    texts = (file.read_text() for file in sorted((ROOT / "experiments").glob("*.yaml")))
    own = [text for text in texts if "include" not in text]
    for _ in range(75):
        path.write_text(mutated(chance.choice(own), chance), encoding="utf-8")
        try:
            experiment = load(path, check=component_mistakes)
        except ConfigError as error:
            outcomes[0] += 1
            lines = str(error).split("\n")
            assert len(lines) < 12
            assert all(line.isprintable() and len(line) < 1200 for line in lines)
        else:
            outcomes[1] += 1
            path.write_text(dump(experiment))
            assert load(path) == experiment
    assert min(outcomes) > 0
