"""Components by the name that an experiment file gives: a short name of pfray's own, or an import path of the user's.

A short name is a module in the folder of its kind (``learner: weight_sparse`` is ``learners/weight_sparse.py``). A new
component is one new file, and no list is kept.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pfray.config.component import PIPELINE
from pfray.config.messages import describe_errors, unknown_key
from pfray.config.schema import elsewhere
from pfray.errors import ConfigError, PfrayError, first_line, nearest, short, shown
from pfray.models import _hub
from pfray.utils.user_code import place_of, user_code

# Packages of the short names, by kind. Kept as texts, because the framework imports no particular learner.
PACKAGES = {"data": "pfray.data", "learner": "learners", "search": "pfray.search", "model": "pfray.models"}
# Components inside the framework: the learner that a list of learners becomes.
FRAMEWORK = {"learner": {PIPELINE: "pfray.learner.pipeline"}}
_REMEDY_FACTORY = "name a function or class, with a signature, that builds the {kind}"


def load_object(kind: str, name: str) -> Any:
    """The object at an import path ``package.module:attribute``. Raises ConfigError naming the part that fails."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (PfrayError, KeyboardInterrupt):
        raise
    except BaseException as error:  # importing a module runs its code, which may raise anything, SystemExit too
        raise ConfigError(
            f"{kind}: cannot import {shown(module_name)} ({type(error).__name__}: {first_line(error)})"
            f"{place_of(error)}. Remedy: run where the module can be imported, or install it"
        ) from error
    with user_code(f"{kind}: {shown(name)} cannot be looked up", "mend the module's __getattr__"):
        if hasattr(module, attribute):
            return getattr(module, attribute)
        public = [n for n in vars(module) if not n.startswith("_")]
    raise ConfigError(
        f"{kind}: module {shown(module_name)} has no {shown(attribute)}.{nearest(attribute, public)}"
    )


def find_function(kind: str, name: str) -> Callable[..., Any]:
    """The factory of a model or data set. Raises ConfigError.

    ``data``: the function ``build`` of the module with that name. ``model``: the function of that name in any module of
    pfray/models, or a model of timm or transformers (``timm:resnet18``). Either may be an import path.
    """
    if kind == "model" and (found := _hub.find(kind, name)) is not None:
        return found
    if ":" in name:
        found = load_object(kind, name)
        with user_code(f"{kind}: {shown(name)} cannot be used", _REMEDY_FACTORY.format(kind=kind)):
            if not callable(found):
                raise ConfigError(f"{kind}: {shown(name)} is not callable. Remedy: {_REMEDY_FACTORY.format(kind=kind)}")
            inspect.signature(found)
        return found
    known = _functions(kind)
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]


def find_class(kind: str, name: str, base: type) -> type:
    """The learner or searcher class of that name: the only subclass of ``base`` in its module. Raises ConfigError."""
    if ":" in name:
        found = load_object(kind, name)
    else:
        known = component_modules(kind)
        if name not in known:
            raise unknown_name(kind, name, known)
        module = importlib.import_module(known[name])
        own = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
        found = next((value for value in own if inspect.isclass(value) and issubclass(value, base)), None)
    with user_code(f"{kind}: {shown(name)} cannot be used", "mend the class"):
        derived = inspect.isclass(found) and issubclass(found, base) and found is not base
        if not (derived and hasattr(found, "settings_type")):
            raise ConfigError(
                f"{kind}: {shown(name)} is not a subclass of {base.__module__}.{base.__name__} with a settings_type. "
                f"Remedy: name one that is, or class Mine({base.__name__})"
            )
        settings_type = found.settings_type
        if not (inspect.isclass(settings_type) and dataclasses.is_dataclass(settings_type)):
            raise ConfigError(
                f"{kind}: the settings_type of {shown(name)} is {shown(settings_type)}, not a dataclass. "
                "Remedy: @dataclass(frozen=True)"
            )
        TypeAdapter(settings_type)  # raises where pydantic knows no way to check a field
    return found


def parse_settings(path: str, settings_type: type, settings: Mapping[str, Any], other_keys: Iterable[str] = ()) -> Any:
    """A learner's or searcher's settings from plain data, validated without conversions (``as_written``).

    other_keys: allowed keys of the same section that are not the component's. Raises ConfigError with one line for
    every mistake.
    """
    fields = [field.name for field in dataclasses.fields(settings_type)]
    allowed = [*other_keys, *fields]
    mistakes = [
        unknown_key(f"{path}.{short(key)}", key, allowed, elsewhere(key)) for key in settings if key not in fields
    ]
    parsed: Any = None
    with user_code(f"{path}: the settings cannot be checked", "mend the settings_type"):
        own = json.dumps({key: value for key, value in settings.items() if key in fields})
        try:
            parsed = TypeAdapter(settings_type).validate_json(own, strict=True)
        except ValidationError as error:
            mistakes += describe_errors(error, path, lambda _: fields)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return parsed


def component_modules(kind: str) -> dict[str, str]:
    """Dotted paths of a kind's modules, by name. ``base`` and modules that begin with ``_`` are no components."""
    package = PACKAGES[kind]
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    known = {name: f"{package}.{name}" for name in names if name != "base" and not name.startswith("_")}
    return known | FRAMEWORK.get(kind, {})


def _functions(kind: str) -> dict[str, Callable[..., Any]]:
    modules = [importlib.import_module(path) for path in component_modules(kind).values()]
    if kind == "data":
        return {m.__name__.rpartition(".")[2]: m.build for m in modules if hasattr(m, "build")}
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a short name that no component has."""
    names = sorted(known)
    libraries = ", timm:name, hf:org/name," if kind == "model" else ","
    return ConfigError(
        f"{kind}: unknown name {shown(name)}. Allowed: {', '.join(names)}{libraries} or an import path "
        f"'package.module:attribute'.{nearest(name, names)}"
    )
