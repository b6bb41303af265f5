"""The pages' tables list all that there is, and their links lead somewhere."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args

import pytest

from pfray.api import Result, compress
from pfray.config.catalog import entries
from pfray.config.schema import Experiment
from pfray.config.sections import Search
from pfray.data import imagefolder
from pfray.learner.base import Algorithm, Compressed
from pfray.space import CompressionSpace, Knob
from pfray.task import Task
from pfray.units import UNITS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def quoted(text: str) -> set[str]:
    """All names in backticks; ``resnet20/32`` is resnet20 and resnet32."""
    spans = " ".join(re.findall(r"`([^`]+)`", text))
    several = [(stem, numbers.split("/")) for stem, numbers in re.findall(r"([a-z_]+)((?:\d+/)+\d+)", spans)]
    return set(re.findall(r"\w+", spans)) | {f"{stem}{number}" for stem, numbers in several for number in numbers}


def row(section: str) -> str:
    """The guide's row of a section of the experiment file."""
    table = PAGES["guide"].partition("## The experiment file")[2].partition("\n## ")[0].splitlines()
    return next((line for line in table if line.startswith("| `") and f"`{section}`" in line.split("|")[1]), "")


# Models have a table of their own, which tests/models/test_models_table.py reads.
PLACES = {
    "data": ("the row `data` of the first table", row("data")),
    "learner": ("the row `learner` of the first table", row("learner")),
    "search": ("the lists of 'The search'", PAGES["guide"].partition("\n## The search")[2].partition("\n## ")[0]),
}


@pytest.mark.parametrize("kind", PLACES)
def test_every_component_is_in_the_guide(kind):
    place, text = PLACES[kind]
    missing = [name for names, _ in entries(kind) for name in names if name not in quoted(text)]
    assert not missing, f"docs/guide.md: add {', '.join(f'`{name}`' for name in missing)} to {place}"


@pytest.mark.parametrize("section", Experiment.model_fields)
def test_every_section_of_an_experiment_and_every_key_of_it_is_in_the_guide(section):
    annotation = Experiment.model_fields[section].annotation
    keys = {key for kind in (annotation, *get_args(annotation)) for key in getattr(kind, "model_fields", {})}
    missing = {section, *keys} - {"settings"} - quoted(row(section))
    assert not missing, f"docs/guide.md: add {sorted(missing)} to the row `{section}` of the first table"


def test_every_unit_of_a_target_is_in_the_guide():
    missing = UNITS.keys() - quoted(row("target"))
    assert not missing, f"docs/guide.md: add {sorted(missing)} to the row `target` of the first table"


def listed(page: str, name: str) -> dict[str, str]:
    """Default of ``name`` by field, from the table whose heading begins with ``name``."""
    heading = next(line for line in PAGES[page].splitlines() if line.startswith(f"| {name}"))
    column = [cell.strip() for cell in heading.split("|")].index("default")
    rows = PAGES[page].split(heading)[1].split("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", row) for row in rows]
    return {key: row[column].strip() for row in cells for key in re.findall(r"`(\w+)`", row[1])}


@pytest.mark.parametrize(("page", "heading", "kind"), [
    ("your_data", "field |", Task), ("your_learner", "field of `Compressed`", Compressed),
    ("your_learner", "field of `CompressionSpace`", CompressionSpace), ("your_learner", "field of `Knob`", Knob),
])  # fmt: skip
def test_every_field_is_listed_with_its_default(page, heading, kind):
    found = listed(page, heading)
    assert set(found) == {field.name for field in fields(kind)}
    for field in fields(kind):
        required = field.default is MISSING and field.default_factory is MISSING
        assert (found[field.name] == "required") == required, field.name


def test_every_keyword_of_compress_is_listed():
    groups = [listed("from_python", name) for name in ("data", "how models are judged", "the run")]
    assert {"model"}.union(*groups) == set(inspect.signature(compress).parameters)
    assert all(f"| `{field.name}`" in PAGES["from_python"] for field in fields(Result))


def test_every_setting_of_image_folders_is_listed():
    assert set(listed("your_data", "setting |")) == set(inspect.signature(imagefolder.build).parameters)


def test_every_method_and_attribute_of_a_learner_is_listed():
    page = PAGES["your_learner"]
    own = [name for name in vars(Algorithm) if not name.startswith("_") and name != "device"]
    assert [name for name in own if f"| `{name}" not in page] == []


def test_every_key_of_the_search_that_is_taken_is_named():
    taken = PAGES["your_searcher"].partition("several together.")[2].partition("are taken")[0]
    assert set(re.findall(r"`(\w+)`", taken)) == set(Search.model_fields) - {"name", "settings"}


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target
