from __future__ import annotations

from pfray.config.catalog import listing
from pfray.config.registry import PACKAGES, component_modules


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
