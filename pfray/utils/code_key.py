"""Content keys of functions and classes of a script or notebook: of their own code, not of the file around it.

Compiled code is hashed, because the text of a notebook's cell may be gone and that of a lambda is its whole statement.
Line numbers, comments and line breaks are not in it.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from pfray.utils.cache import content_key

Numbers = bool | int | float | complex
Plain = Numbers | str | bytes | None
# Entries of a class's namespace that say nothing about what it does.
BOOKKEEPING = ("__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__")


def code_key(value: Any, module: str) -> str:
    """Content key of a function's, class's or object's code, with everything of the same ``module`` that it calls.

    Default arguments, values in closures, and the module's numbers that it reads count too. Lists, texts and tensors of
    the module do not: they may differ between machines, or grow while the code runs.
    """
    return content_key(_described(value, module, []))


def own_numbers(function: Callable[..., Any]) -> dict[str, Numbers]:
    """Numbers in the function's closure by name, except those that it changes itself."""
    if not isinstance(function, FunctionType):
        return {}
    code = function.__code__
    changed = set(_names(code, "STORE_DEREF"))
    held = dict(zip(code.co_freevars, map(_content, function.__closure__ or ()), strict=True))
    return {name: value for name, value in held.items() if isinstance(value, Numbers) and name not in changed}


def _described(value: Any, module: str, known: list[Any]) -> Any:
    """Nested tuples of plain values. known: functions and classes described before, which may call each other."""
    within = lambda inner: _described(inner, module, known)  # noqa: E731
    if isinstance(value, Plain):
        return repr(value)
    if isinstance(value, tuple):
        return tuple(map(within, value))
    if isinstance(value, frozenset):
        return sorted(map(repr, value))  # whose order changes from process to process
    if isinstance(value, CodeType):
        constants = tuple(map(within, value.co_consts))
        return value.co_code, value.co_names, value.co_argcount, value.co_kwonlyargcount, constants
    if isinstance(value, partial):
        return within(value.func), within(value.args), [(key, within(each)) for key, each in value.keywords.items()]
    if isinstance(value, MethodType):
        return within(value.__func__), within(value.__self__)
    if isinstance(value, staticmethod | classmethod):
        return within(value.__func__)
    if isinstance(value, property):
        return tuple(map(within, (value.fget, value.fset)))
    if isinstance(value, cached_property):
        return within(value.func)
    if any(value is each for each in known):
        return name_of(value)
    if isinstance(value, FunctionType) and value.__globals__.get("__name__") == module:
        known.append(value)
        return tuple(_function(value, within))
    if isinstance(value, type) and value.__module__ == module:
        known.append(value)
        return tuple(_class(value, within))
    if isinstance(value, ModuleType):
        return value.__name__
    if callable(value) and (wrapped := getattr(value, "__wrapped__", None)) is not None:  # decorated by another module
        return name_of(type(value)), within(wrapped)
    if hasattr(value, "__qualname__"):
        return name_of(value)
    return within(type(value))


def _function(function: FunctionType, within: Callable[[Any], Any]) -> Iterator[Any]:
    code = function.__code__
    yield within(code)
    yield within(function.__defaults__ or ())
    yield [(name, within(value)) for name, value in (function.__kwdefaults__ or {}).items()]
    yield [(name, within(value)) for name, value in own_numbers(function).items()]
    yield [within(value) for value in map(_content, function.__closure__ or ()) if not isinstance(value, Plain)]
    read = set(_names(code, "LOAD_GLOBAL", "LOAD_NAME")) - set(_names(code, "STORE_GLOBAL"))
    found = {name: function.__globals__[name] for name in sorted(read) if name in function.__globals__}
    for name, value in found.items():
        if isinstance(value, Numbers) or not isinstance(value, Plain | tuple | frozenset):
            yield name, within(value)


def _class(kind: type, within: Callable[[Any], Any]) -> Iterator[Any]:
    yield [within(base) for base in kind.__bases__]
    for name, value in sorted(vars(kind).items()):
        if name not in BOOKKEEPING:
            yield name, within(value)


def name_of(value: Any) -> str:
    """``torch.nn.functional.mse_loss``, of a function or class."""
    return f"{getattr(value, '__module__', None) or 'builtins'}.{value.__qualname__}"


def _names(code: CodeType, *operations: str) -> Iterator[str]:
    """Names that the code and the code inside it use in one of the bytecode's operations."""
    for step in dis.get_instructions(code):
        if step.opname in operations:
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant, *operations)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
