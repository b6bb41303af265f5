from __future__ import annotations

import pytest

from pfray.errors import LINE, LINES, VALUE, ConfigError, first_line, nearest, print_error, short, shown


class Broken(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


@pytest.mark.parametrize(("value", "text"), [
    ("plain é", "'plain é'"),
    (0.5, "0.5"),
    ([1, "a"], "[1, 'a']"),
    ("\x1b[31mred\n\u2028\u202e", r"'\x1b[31mred\n\u2028\u202e'"),
    ("\ud800", r"'\ud800'"),
])  # fmt: skip
def test_a_value_is_shown_on_one_line_without_what_a_terminal_would_obey(value, text):
    assert shown(value) == text
    shown(value).encode()


def test_a_value_without_a_repr_is_shown_by_its_type():
    assert shown(10**5000) == "<int>"  # more digits than Python writes
    assert shown(Broken()).startswith("<Broken")


def test_large_deep_and_recursive_values_are_shown_short():
    recursive: list = []
    recursive.append(recursive)
    for value in ("x" * 10**7, ["x" * 1000] * 1000, {"a" * 1000: "b" * 1000}, recursive, b"x" * 10**6):
        assert len(shown(value)) <= VALUE + 5


def test_a_long_text_keeps_both_ends():
    text = short("begin" + "x" * 10**6 + "end", 40)
    assert len(text) == 40
    assert text.startswith("beginx")
    assert text.endswith("xend")
    assert short("fits", 4) == "fits"


def test_an_error_is_printed_in_lines_of_bounded_length_and_number(capsys):
    mistakes = [f"mistake {i}: \x1b]0;title\x07 \ud800 " + "x" * 10**5 + " Remedy: this" for i in range(LINES + 3)]
    assert print_error(ConfigError("\n".join(mistakes))) == 2
    lines = capsys.readouterr().err.split("\n")[:-1]
    assert len(lines) == LINES + 1
    assert lines[-1] == "error: 3 more mistakes are not shown"
    for i, line in enumerate(lines[:-1]):
        assert line.startswith(rf"error: mistake {i}: \x1b]0;title\x07 \ud800 x")
        assert line.endswith("x Remedy: this")
        assert len(line) <= LINE + 20


def test_the_first_line_of_another_error_is_quoted_without_colours_and_never_fails():
    assert first_line(ValueError("\n\x1b[31mred\x1b[0m \x07\nmore")) == r"red \x07"
    link = "\x1b]8;;https://pytorch.org\x1b\\docs\x1b]8;;\x07"
    assert first_line(ValueError(f"\x1b[1;38;5;4msee\x1b[K {link}\x1b[2J")) == "see docs"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(Broken()) == "Broken"
    assert len(first_line(ValueError("x" * 10**6))) <= 300


def test_a_name_that_continues_the_given_one_is_nearer_than_one_that_differs():
    known = ["resnet56", "resnet50_imagenet", "lenet"]
    assert nearest("resnet50", known) == " Did you mean 'resnet50_imagenet'?"
    assert nearest("resnet5", known) == " Did you mean 'resnet56'?"
    assert nearest("resnet66", known) == " Did you mean 'resnet56'?"
    assert nearest("", known) == nearest("quantity", known) == ""
