"""Base of every section of an experiment file: frozen, strict, and no unknown keys."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    # A component's own settings may be infinite; in JSON mode that would be dumped as null.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


SomeSection = TypeVar("SomeSection", bound=Section)


def as_written(section: type[SomeSection], raw: Any) -> SomeSection:
    """The section of plain data, no scalar of which is converted: no ``true``, ``'5'`` or ``5.0`` where 5 is wanted.

    Raises pydantic's ValidationError.
    """
    # As JSON, where being strict is about scalars; of Python's values it would ask for a Section within a section.
    return section.model_validate_json(json.dumps(raw), strict=True)
