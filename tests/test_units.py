"""The table of units, and amounts in them."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from pfray.config.sections import Target
from pfray.measure.evaluation import Measurement
from pfray.units import AT_LEAST, UNITS, Amount


@pytest.mark.parametrize(("text", "amount"), [
    ("0.4x", Amount(0.4, relative=True)), (" .5 x ", Amount(0.5, relative=True)), ("800k", Amount(800_000)),
    ("1.5M", Amount(1_500_000)), ("2G", Amount(2e9)), ("75%", Amount(0.75)), ("0.7%", Amount(0.007)),
])  # fmt: skip
def test_texts_are_read(text, amount):
    assert Amount.parse(text) == amount


@pytest.mark.parametrize("text", ["", "x", "5", "..x", "1e3k", "-1x", "5T", "0.4 x x", "\u0665k"])
def test_other_texts_are_no_amounts(text):
    with pytest.raises(ValueError, match=r"is not an amount: write 0\.4x, 800k or 75%"):
        Amount.parse(text)


def test_a_relative_amount_is_a_share_of_the_teachers():
    assert Amount(0.4, relative=True).absolute(50.0) == 20.0
    assert Amount(800).absolute(50.0) == 800


@pytest.mark.parametrize("value", [0.4, 2.0, 1e-5, 1 / 3, 1e16, 123456.789])
def test_a_relative_amount_is_written_as_it_is_read(value):
    amount = Amount(value, relative=True)
    assert UNITS["macs"].amount(amount.plain()) == amount
    assert UNITS["latency_ms"].amount(Amount(value).plain()) == Amount(value)


def test_every_unit_is_a_key_of_the_target_and_stands_for_a_field_of_a_measurement():
    assert [*UNITS, "max_drop"] == [*Target.model_fields]
    assert {unit.field for unit in UNITS.values()} <= {field.name for field in fields(Measurement)}
    assert {unit: UNITS[unit].field for unit in ("sparsity", "bits", "latency_ms")} == {
        "sparsity": "nonzero_params", "bits": "stored_bits", "latency_ms": "macs",
    }  # fmt: skip


def test_only_sparsity_is_kept_from_above_and_shares_and_bits_are_never_relative():
    assert {"sparsity"} == AT_LEAST
    assert [name for name, unit in UNITS.items() if not unit.relative] == ["sparsity", "bits"]


@pytest.mark.parametrize(("unit", "value", "words"), [
    ("sparsity", 1.0, "1.0 is not allowed: a share is above 0 and below 1"),
    ("sparsity", "0.4x", "'0.4x' is not allowed: a share is above 0 and below 1"),
    ("bits", 0.5, "0.5 is not allowed: bits are a number from 1 to 32"),
    ("bits", Amount(4, relative=True), "is not allowed: bits are a number from 1 to 32"),
    ("params", 0, "0 is not allowed: an amount is above 0, and finite"),
    ("params", 10**400, "is not allowed: an amount is above 0, and finite"),
    ("params", math.nan, "nan is not allowed: an amount is above 0, and finite"),
    ("macs", "0x", "'0x' is not allowed: an amount is above 0, and finite"),
    ("macs", "50%", "write 0.4x (of the teacher's) or a count such as 800k. Did you mean '0.5x'?"),
    ("size_bytes", True, "True is not an amount"),
])  # fmt: skip
def test_a_value_that_a_unit_does_not_allow_is_refused(unit, value, words):
    with pytest.raises(ValueError, match="is not a") as caught:
        UNITS[unit].amount(value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("unit", "text", "value"), [
    ("size_bytes", "60kB", 60_000), ("size_bytes", "1.5 MB", 1_500_000), ("size_bytes", "512 B", 512),
    ("bits", "8bit", 8), ("bits", "4 bits", 4), ("bits", "2.5-bit", 2.5), ("latency_ms", "1.5 ms", 1.5),
    ("params", "800K", 800_000), ("macs", "0.5X", 0.5), ("sparsity", "50 %", 0.5),
])  # fmt: skip
def test_a_number_may_carry_the_name_of_its_unit(unit, text, value):
    amount = UNITS[unit].amount(text)
    assert (amount.value, amount.relative, str(amount)) == (value, text.endswith("X"), text)
    assert UNITS[unit].amount(amount.plain()) == amount


@pytest.mark.parametrize(("unit", "text", "words"), [
    ("macs", "0,5x", "or a count such as 800k. Did you mean '0.5x'?"),
    ("params", "30 %", "or a count such as 800k. Did you mean '0.3x'?"),
    ("macs", "60kB", "or a count such as 800k"), ("latency_ms", "1 s", "is not an amount"),
    ("bits", "8", "'8' is not allowed"),
])  # fmt: skip
def test_a_text_of_another_form_is_refused_with_the_form(unit, text, words):
    with pytest.raises(ValueError, match="is not a") as caught:
        UNITS[unit].amount(text)
    assert words in str(caught.value)


def test_limits_are_put_in_words():
    assert [UNITS[unit].limit(UNITS[unit].amount(value)) for unit, value in (
        ("sparsity", 0.925), ("params", 800_000), ("params", "0.4x"), ("bits", 3.5), ("size_bytes", 1_250_000),
        ("latency_ms", 0.25), ("latency_ms", 12),
    )] == [
        "92.5 % sparsity", "at most 800,000 params", "at most 0.4x params", "at most 3.5 bits a weight",
        "at most 1.2 MB size", "at most 0.250 ms latency", "at most 12.0 ms latency",
    ]  # fmt: skip


def test_half_a_count_is_meant_as_a_share():
    for name in ("macs", "params", "size_bytes"):
        with pytest.raises(ValueError, match=r"0.5 is not allowed: a count is 1 or more. Did you mean '0.5x'"):
            UNITS[name].amount(0.5)
        assert UNITS[name].amount("0.5x").relative
    assert UNITS["latency_ms"].amount(0.5).value == 0.5
