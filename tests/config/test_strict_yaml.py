from __future__ import annotations

from pathlib import Path

import pytest

from pfray.config.strict_yaml import DEEPEST, MOST_BYTES, MOST_VALUES, dump, parse, read
from pfray.errors import ConfigError


def bombs() -> str:
    """Nine levels of nine aliases: a billion values in a few hundred characters."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels])


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 1e-3), ("-2E+4", -2e4), ("5", 5), ("0.5", 0.5), (".inf", float("inf")), ("1_000", 1000), ("0x10", 16),
    ("true", True), ("no", False), ("~", None), ("'1e-3'", "1e-3"), ("2001-01-01", "2001-01-01"), ("=", "="),
    ("1e-3x", "1e-3x"), ("{a: &x {b: [1, c]}, d: *x}", {"a": {"b": [1, "c"]}, "d": {"b": [1, "c"]}}),
    ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
])  # fmt: skip
def test_texts_numbers_booleans_lists_and_mappings_are_read_and_written_back(text, value):
    assert parse(text) == value
    assert type(parse(text)) is type(value)
    assert parse(dump({"key": value})) == {"key": value}


def test_what_an_alias_gives_is_a_copy():
    value = parse("{a: &x {b: [1]}, c: *x}")
    value["c"]["b"].append(2)
    assert value["a"] == {"b": [1]}


@pytest.mark.parametrize(("text", "words"), [
    ("a: 1\nb: 2\na: 3", "line 3, column 1 (the key 'a' is given twice, first in line 1: keep one)"),
    ("a: {b: 1, b: 1}", "line 1, column 11 (the key 'b' is given twice"),
    ("{<<: {a: 1}, <<: {b: 1}}", "the key '<<' is given twice"),
    ("on: 1", "line 1, column 1 (the key 'on' is of the type bool and not a text: put it in quotes)"),
    ("a: {1: 2}", "the key '1' is of the type int"),
    ("? [a]\n: 1", "a key is of the type seq"),
    ("a: !!bool maybe", "line 1, column 4 ('maybe' is no bool)"),
    ("a: !!int ''", "'' is no int"),
    ("a: 0b_", "'0b_' is no int"),
    ("a: !!timestamp x", "could not determine a constructor for the tag"),
    ("a: !!binary x", "could not determine a constructor for the tag"),
    ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
    ("a: " + "9" * 5000, "line 1, column 4 ('999"),
    ("a: 9223372036854775808", "'9223372036854775808' is too large"),
    ("a: .nan", "'.nan' is no number"),
    ("a: &x [*x]", "the alias *x is inside its own value"),
    ("a: &x {b: [{c: *x}]}", "the alias *x is inside its own value"),
    ("a: *x", "found undefined alias 'x'"),
    ("a: " + "[" * 3000, f"more than {DEEPEST} values inside one another"),
    ("a: &x " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*x" + "]" * 20, "line 2, column 24 (more than 30 values"),
    ("[" + "x," * MOST_VALUES + "]", f"more than {MOST_VALUES} values, aliases included"),
    (bombs(), f"more than {MOST_VALUES} values, aliases included"),
    (r'a: "\ud800"', r"line 1, column 4 ('\ud800' cannot be written in utf-8"),
    (r'a: "\0"', r"'\x00' holds the character U+0000"),
    ("a: 1\nb: \x07", "line 2 (the character U+0007)"),
    ("a: 1\n--- 2", "line 2, column 1"),
])  # fmt: skip
def test_what_is_no_experiment_is_told_with_its_place_in_a_few_words(text, words):
    with pytest.raises(ValueError, match="not valid YAML") as caught:
        parse(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("content", "words"), [
    (b"a: \xff", "byte 4 is no UTF-8"),
    (b"#" * (MOST_BYTES + 1), "has more than 1,000,000 bytes"),
    (b"a: [1", "exp.yaml: not valid YAML at line 1, column 6"),
])  # fmt: skip
def test_a_file_is_named_with_its_mistake(tmp_path, content, words):
    (tmp_path / "exp.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="Remedy") as caught:
        read(tmp_path / "exp.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize(("name", "words"), [
    ("none.yaml", "No such file"), ("", "Is a directory"), ("a\0b", "cannot be read"), ("x" * 5000, "too long"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_short_line(tmp_path, name, words):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        read(tmp_path / Path(name))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200
