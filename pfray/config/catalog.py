"""Catalog of pfray's own components: names with one line each, read from the sources without importing them."""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from pathlib import Path

from pfray.config.registry import component_modules

TITLES = {"learner": "learners", "search": "searchers", "model": "models", "data": "data sets"}
# Characters of a line, and of the column of names.
WIDTH, NAMES = 112, 21


def listing() -> str:
    """Names of all components with one line each, by kind."""
    parts = []
    for kind, title in TITLES.items():
        lines = [_lines(names, about) for names, about in entries(kind)]
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)


def entries(kind: str) -> list[tuple[list[str], str]]:
    """(names, docstring) of each module of a kind: model, data, learner or search.

    A module of models has several names: its public functions.
    """
    found = []
    for name, path in component_modules(kind).items():
        module = _parse(path)
        functions = [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
        if kind == "model":
            names = [function for function in functions if not function.startswith("_")]
        else:
            names = [name] if kind != "data" or "build" in functions else []
        if names:
            found.append((names, ast.get_docstring(module) or ""))
    return found


def _parse(path: str) -> ast.Module:
    spec = importlib.util.find_spec(path)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _lines(names: list[str], about: str) -> str:
    """Names and description in two columns; names too long for theirs have lines of their own."""
    # First sentence, up to a colon, without sources such as "(He et al. 2018)".
    paragraph = re.sub(r"\s\([^()]*\d{4}[^()]*\)", "", about.partition("\n\n")[0])
    sentence = re.split(r"(?<!\bal)[.:]\s", paragraph + " ")[0]
    margin = " " * NAMES
    described = textwrap.fill(sentence, WIDTH, initial_indent=margin, subsequent_indent=margin)
    title = textwrap.fill(", ".join(names), WIDTH, initial_indent="  ", subsequent_indent="  ")
    return f"{title:<{NAMES - 1}} {described[NAMES:]}" if len(title) < NAMES else f"{title}\n{described}"
