"""The fragments of configs/data: each names classes that there are, and its file says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfray.config.merge import read_with_includes
from pfray.data import cifar10, cifar100, imagenet
from pfray.data._subset import check_classes
from pfray.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "data"
DATA = {path.stem: read_with_includes(path)["data"] for path in sorted(FOLDER.glob("*.yaml"))}
BUILD = {"cifar10": cifar10.build, "cifar100": cifar100.build, "imagenet": imagenet.build}


@pytest.mark.parametrize("name", DATA)
def test_its_classes_are_those_of_the_data_set(name: str) -> None:
    """Unknown names are refused before any file is looked for."""
    settings = {key: value for key, value in DATA[name].items() if key not in ("name", "path")}
    with pytest.raises(DataError, match=r"^/nowhere"):
        BUILD[DATA[name]["name"]](path="/nowhere", **settings)


def test_the_subsets_are_those_of_pahwa_et_al() -> None:
    """Section 4.1: six superclasses go by their names, ``fruits`` is short for one."""
    superclasses = {name: data["superclass"] for name, data in DATA.items() if "superclass" in data}
    named = ("insects", "trees", "vehicles_1", "vehicles_2", "people", "reptiles")
    assert superclasses == {
        **{f"cifar100_{name}": name for name in named}, "cifar100_fruits": "fruit_and_vegetables"
    }  # fmt: skip
    parts = {part: DATA[f"cifar10_{part}"]["classes"] for part in ("animals", "vehicles")}
    assert parts == {
        "animals": ["bird", "cat", "deer", "dog", "frog", "horse"],
        "vehicles": ["airplane", "automobile", "ship", "truck"],
    }
    every = [number for own in parts.values() for number in check_classes(own, cifar10.NAMES)]
    assert sorted(every) == list(range(10))
