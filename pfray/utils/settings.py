"""Bases of settings: an experiment file's sections, frozen and without unknown keys, and empty settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class NoSettings:
    """Empty settings."""


class Section(BaseModel):
    # A component's own settings may be infinite, which JSON mode would dump as null.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


SomeSection = TypeVar("SomeSection", bound=Section)


def as_written(section: type[SomeSection], raw: Any) -> SomeSection:
    """The section of plain data, without conversions: ``true``, ``'5'`` and ``5.0`` are no 5.

    Raises pydantic's ValidationError.
    """
    # Strict validation of Python values would demand Section objects within a section; of JSON it is about scalars.
    return section.model_validate_json(json.dumps(raw), strict=True)
