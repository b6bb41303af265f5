"""The declarations of an algorithm's class."""

from __future__ import annotations

import pytest

from pfray.errors import ConfigError
from pfray.learner.base import Algorithm


@pytest.mark.parametrize("method", ["finish", "error_curves"])
def test_a_class_with_a_method_of_its_own_says_so(method):
    body = {method: getattr(Algorithm, method)}
    with pytest.raises(ConfigError, match=rf"Own has a {method} of its own. Remedy: has_{method} = True in the class"):
        type("Own", (Algorithm,), body)
    assert getattr(type("Own", (Algorithm,), {**body, f"has_{method}": True}), f"has_{method}")


def test_stages_without_a_finish_that_goes_on_from_them_are_refused():
    with pytest.raises(ConfigError, match=r"Own has stages and no finish\. Remedy: a finish that goes on from start"):
        type("Own", (Algorithm,), {"stages": Algorithm.stages})
