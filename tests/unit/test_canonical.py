"""When two values are equal: every rule with what it must not do."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.canonical import canonical, date_of, equal, leaves, paths
from cahl_core.train_config import ValueSettings
from tests.reference import rewards as plain

DATES = ValueSettings(dates=True)
CASE = ValueSettings(ignore_case=True)
BOTH = ValueSettings(dates=True, ignore_case=True)
scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(2**53 - 2, 2**53 + 2),
    st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0**53, 1e300, -2.0]),
    st.sampled_from(["", " ", "a", " a", "A", "1", "true", "null", "a  b", "2026-11-21"]),
)
json_value = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(json_value, json_value)
def test_equality_is_that_of_a_walk_through_both_values(a: Any, b: Any) -> None:
    assert equal(a, b) == plain.same(a, b)
    assert (canonical(a) == canonical(b)) == plain.same(a, b)


@given(json_value, st.sampled_from([ValueSettings(), DATES, CASE, BOTH]))
def test_canonical_text_is_json_and_its_own_canonical_form(
    value: Any, rules: ValueSettings
) -> None:
    text = canonical(value, rules)
    assert canonical(json.loads(text), rules) == text


@given(json_value, json_value, st.sampled_from([DATES, CASE, BOTH]))
def test_an_option_never_makes_equal_values_different(a: Any, b: Any, rules: ValueSettings) -> None:
    if equal(a, b):
        assert equal(a, b, rules)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (5, 5.0, True),
        (0, -0.0, True),
        (5, "5", False),
        (1, True, False),
        (0, False, False),
        ("true", True, False),
        (None, "", False),
        (None, "null", False),
        (2**53, 2.0**53, True),
        (2**53 + 1, float(2**53), False),
        (10**16, 1e16, False),
        (0.1 + 0.2, 0.3, False),
        (" Rome\n", "Rome", True),
        ("New  York", "New York", False),
        ("Rome", "rome", False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": None}, {}, False),
        ({" a": 1}, {"a": 1}, False),
        ([1, 2], [2, 1], False),
        ([1], 1, False),
        ("2026-11-21", "21 November 2026", False),
    ],
)
def test_rules_that_always_hold(a: Any, b: Any, same: bool) -> None:
    assert equal(a, b) is same


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21", "2026/11/21", "2026.11.21", "21/11/2026", "11/21/2026", "21-11-2026", "21.11.2026",
        "21 November 2026", "21 nov 2026", "21st of November 2026", "21st Nov., 2026", "21-Nov-2026",
        "November 21, 2026", "NOVEMBER 21 2026", "Nov. 21st, 2026", " 2026-11-21 ",
    ],
)  # fmt: skip
def test_forms_of_one_date(text: str) -> None:
    assert equal(text, "2026-11-21", DATES)
    assert not equal(text, "2026-11-22", DATES)


@pytest.mark.parametrize(
    "text",
    [
        "03/04/2026", "3-4-2026", "31/02/2026", "2026-13-01", "2026-11/21", "20261121", "21/11/26",
        "Nov 2026", "Foo 21, 2026", "Saturday, 21 November 2026", "on 2026-11-21", "10:30",
        "2026-11-21 to 2026-11-22",
        "21 Novembre 2026", "0000-01-01", "٢٠٢٦-١١-٢١", "", "x" * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_certain_date_stays_a_text(text: str) -> None:
    assert date_of(text) is None
    assert canonical(text, DATES) == canonical(text)


def test_a_date_whose_two_readings_agree_is_one() -> None:
    assert date_of("04/04/2026") == "2026-04-04"
    assert date_of("4/4/2026") == "2026-04-04"


def test_times_after_an_iso_date() -> None:
    assert equal("2026-11-21T10:30", "2026-11-21 10:30:00", DATES)
    assert equal("2026-11-21T10:30:00Z", "2026-11-21T10:30:00.000+00:00", DATES)
    assert not equal("2026-11-21T10:30Z", "2026-11-21T10:30", DATES)
    assert not equal("2026-11-21T10:00Z", "2026-11-21T11:00+01:00", DATES)
    assert not equal("2026-11-21", "2026-11-21T00:00", DATES)
    assert not equal("2026-11-21T10:30:00.5", "2026-11-21T10:30", DATES)
    assert date_of("2026-11-21T25:00") is None


def test_dates_inside_containers_but_never_numbers_or_keys() -> None:
    assert equal([{"d": "21/11/2026"}], [{"d": "2026-11-21"}], DATES)
    assert not equal(20261121, "2026-11-21", DATES)
    assert not equal({"21/11/2026": 1}, {"2026-11-21": 1}, DATES)


def test_case_of_values_but_not_of_keys() -> None:
    assert equal(["Straße", "ROME "], ["STRASSE", "rome"], CASE)
    assert not equal({"A": 1}, {"a": 1}, CASE)
    assert not equal("a b", "A  B", CASE)
    assert equal("21 NOV 2026", "2026-11-21", BOTH)


@given(st.text(max_size=30))
def test_any_text_has_a_canonical_form(text: str) -> None:
    assert json.loads(canonical(text, BOTH)) is not None


@given(st.dates(min_value=datetime.date(1000, 1, 1)))
def test_every_date_is_read_in_every_unambiguous_form(day: datetime.date) -> None:
    iso = day.isoformat()
    for form in ("%Y/%m/%d", "%d %B %Y", "%B %d, %Y", "%d-%b-%Y"):
        assert date_of(day.strftime(form)) == iso
    written = f"{day.day}/{day.month}/{day.year}"
    assert date_of(written) == (iso if day.day > 12 or day.day == day.month else None)


@given(json_value)
def test_leaves_are_those_of_a_plain_walk_and_have_paths(value: Any) -> None:
    found = list(paths(value))
    assert [leaf for _, leaf in found] == plain.scalars(value) == list(leaves(value))
    assert len({path for path, _ in found}) == len(found)
