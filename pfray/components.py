"""Find a component by the name an experiment file gives: a short name of pfray's own, or an import path of the user's.

A short name is a module of the folder for its kind (``learner: weight_sparse`` is ``learners/weight_sparse.py``), so a
new component is one new file and no list has to be kept.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import pkgutil
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pfray.errors import ConfigError, PfrayError, first_line, short, shown

# Where the short names of each kind live. Kept as strings: the framework imports no particular learner.
PACKAGES = {"data": "pfray.data", "learner": "learners", "search": "pfray.search", "model": "pfray.models"}


# Where a traceback is not in a user's own code: pfray's packages, Python's library, and what pip installed.
OWN_PACKAGES = {"pfray", "learners", "envs"}
_REMEDY_FACTORY = "name a function or class, with a signature, that builds the {kind}"
_INSTALLED = ("<frozen", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


@contextmanager
def user_code(what: str, remedy: str) -> Iterator[None]:
    """Whatever a user's code raises in the block, SystemExit included, is a ConfigError with its file and line.

    What pfray's own errors say stays, and so does Ctrl-C.
    """
    try:
        yield
    except (PfrayError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # A ValueError or TypeError says what is wrong with a setting; of anything else the type says the most.
        kind = "" if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"{what}: {kind}{first_line(error).rstrip('.')}{_place(error)}. Remedy: {remedy}") from error


def _place(error: BaseException) -> str:
    """`` (my_models.py, line 3)``, the innermost line of a traceback in a user's own code; nothing without one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({short(error.filename)}, line {error.lineno})"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in OWN_PACKAGES and not file.startswith(_INSTALLED):
            place = f" ({short(file)}, line {line})"
    return place


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known name, or nothing where none is close."""
    # The time that it takes grows with the square of the length.
    close = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def load_object(kind: str, name: str) -> Any:
    """The object behind an import path ``package.module:attribute``. Raises ConfigError naming the part that fails."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (PfrayError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a module may do anything when it is imported, and end the program for one
        raise ConfigError(
            f"{kind}: cannot import {shown(module_name)} ({type(error).__name__}: {first_line(error)})"
            f"{_place(error)}. Remedy: run where the module can be imported, or install it"
        ) from error
    with user_code(f"{kind}: {shown(name)} cannot be looked up", "mend the module's __getattr__"):
        if hasattr(module, attribute):
            return getattr(module, attribute)
        public = [n for n in vars(module) if not n.startswith("_")]
    raise ConfigError(
        f"{kind}: module {shown(module_name)} has no {shown(attribute)}.{nearest(attribute, public)}"
    )


def find_function(kind: str, name: str) -> Callable[..., Any]:
    """The factory of a model or data set.

    ``data``: the function ``build`` of the module with that name. ``model``: the function of that name in any module of
    pfray/models. Either may be an import path.
    """
    if ":" in name:
        found = load_object(kind, name)
        with user_code(f"{kind}: {shown(name)} cannot be used", _REMEDY_FACTORY.format(kind=kind)):
            if not callable(found):
                raise ConfigError(f"{kind}: {shown(name)} is not callable. Remedy: {_REMEDY_FACTORY.format(kind=kind)}")
            inspect.signature(found)
        return found
    known = _functions(kind)
    if name not in known:
        raise _unknown(kind, name, known)
    return known[name]


def find_class(kind: str, name: str, base: type) -> type:
    """The learner or searcher class of that name: the only subclass of ``base`` that its module defines."""
    if ":" in name:
        found = load_object(kind, name)
    else:
        package = importlib.import_module(PACKAGES[kind])
        known = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")
        if name not in known:
            raise _unknown(kind, name, known)
        module = importlib.import_module(f"{PACKAGES[kind]}.{name}")
        own = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
        found = next((value for value in own if inspect.isclass(value) and issubclass(value, base)), None)
    with user_code(f"{kind}: {shown(name)} cannot be used", "mend the class"):
        if not (inspect.isclass(found) and issubclass(found, base) and hasattr(found, "settings_type")):
            raise ConfigError(
                f"{kind}: {shown(name)} is not a subclass of {base.__module__}.{base.__name__} with a settings_type. "
                "Remedy: name one that is"
            )
        settings_type = found.settings_type
        if not (inspect.isclass(settings_type) and dataclasses.is_dataclass(settings_type)):
            raise ConfigError(
                f"{kind}: the settings_type of {shown(name)} is {shown(settings_type)}, not a dataclass. "
                "Remedy: @dataclass(frozen=True)"
            )
        TypeAdapter(settings_type)  # raises where pydantic knows no way to check a field
    return found


def check_arguments(path: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> list[str]:
    """The mistakes in ``settings`` as keyword arguments of ``function``, found without calling it."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [
        f"{path}.{short(key)}: unknown setting. Allowed: {', '.join(names) or 'none'}.{nearest(key, names)}"
        for key in settings
        if key not in names
    ]


def call(kind: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """What ``function`` makes of its settings. Raises ConfigError, naming the section ``kind``, where it fails."""
    with user_code(kind, f"correct the settings of '{kind}'"):
        return function(**settings)


def parse_settings(path: str, settings_type: type, settings: Mapping[str, Any], beside: Iterable[str] = ()) -> Any:
    """A learner's or searcher's ``Settings`` dataclass from plain data, validated as it is written (``as_written``).

    beside: keys that are allowed in the same section but are not the component's. Raises ConfigError with one line for
    every mistake.
    """
    fields = [field.name for field in dataclasses.fields(settings_type)]
    allowed = [*beside, *fields]
    mistakes = [
        f"{path}.{short(key)}: unknown key. Allowed: {', '.join(allowed) or 'none'}.{nearest(key, allowed)}"
        for key in settings
        if key not in fields
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


def describe_errors(error: ValidationError, prefix: str, allowed: Callable[[tuple[Any, ...]], list[str]]) -> list[str]:
    """One line for each mistake pydantic found: the key's path, the value, what is allowed, the nearest name.

    ``allowed(location)`` gives the keys allowed at the place of an unknown one.
    """
    lines = []
    for item in error.errors(include_url=False):
        location = tuple(part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-")))
        key = ".".join(short(str(part)) for part in (*filter(None, (prefix,)), *location))
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            names = allowed(location)
            lines.append(f"{key}: unknown key. Allowed: {', '.join(names)}.{nearest(str(location[-1]), names)}")
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{key}: missing. Remedy: give it a value")
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "value_error" or isinstance(item["input"], dict):
                lines.append(f"{key}: {message}" if key else message)  # a mistake of several sections has no path
            else:
                lines.append(f"{key}: {shown(item['input'])} is not allowed: {message[:1].lower()}{message[1:]}")
    return lines


def _functions(kind: str) -> dict[str, Callable[..., Any]]:
    package = importlib.import_module(PACKAGES[kind])
    modules = [importlib.import_module(f"{PACKAGES[kind]}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    if kind == "data":
        return {m.__name__.rpartition(".")[2]: m.build for m in modules if hasattr(m, "build")}
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    names = sorted(known)
    return ConfigError(
        f"{kind}: unknown name {shown(name)}. Allowed: {', '.join(names)}, or an import path "
        f"'package.module:attribute'.{nearest(name, names)}"
    )
