from __future__ import annotations

from pfray.config.catalog import listing, unknown_names
from pfray.config.component import Component
from pfray.config.registry import PACKAGES, component_modules, find_function


def lines() -> dict[str, str]:
    """The line of each name."""
    found = {}
    for line in listing().splitlines():
        names, _, about = line.strip().partition("  ")
        found.update({name: about.strip() or line for name in names.split(", ")})
    return found


def test_every_component_has_a_line_of_words():
    text = listing()
    for kind in PACKAGES:
        for name in component_modules(kind):
            if kind in ("learner", "search"):
                assert len(lines()[name].split()) > 1, name
    for name in ("lenet", "mobilenet_v1", "resnet56", "vgg16", "digits", "cifar100"):
        assert name in text
    assert max(map(len, text.splitlines())) <= 112


def test_helpers_are_not_listed():
    text = listing()
    assert not any(line.strip().startswith("_") for line in text.splitlines())
    assert "base " not in text


def test_names_that_do_not_exist_are_told_with_the_nearest_and_import_paths_are_left_to_others():
    components = {
        "model": Component(name="lenett"), "data": Component(name="digits"),
        "learner": Component(name="tests.none:Mine"), "search": Component(name="tp"),
    }  # fmt: skip
    model, search = unknown_names(components)
    assert model.startswith("model: unknown name 'lenett'. Allowed: ")
    assert model.endswith("Did you mean 'lenet'?")
    assert "Did you mean 'tpe'?" in search


def test_the_catalog_knows_the_names_that_an_experiment_can_use():
    for name in ("resnet20", "resnet18", "vgg7"):
        assert unknown_names({"model": Component(name=name)}) == []
        assert callable(find_function("model", name))
