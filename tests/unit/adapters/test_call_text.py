"""Calls and values as text: what is read, and that nothing is evaluated or left hanging."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.datasets.adapters.text import (
    MAX_CHARS,
    arguments_of,
    balanced,
    call_of,
    calls_of,
    json_or_text,
    json_values,
    literal,
    looks_like_calls,
    parse_calls,
)

WORDS = st.text("abcXYZ _.-'é", min_size=1, max_size=8).filter(
    lambda s: s.strip() == s and s[0] != "'"
)
NAMES = st.text("abcXYZ_", min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip
CALLS = st.lists(
    st.fixed_dictionaries(
        {"name": WORDS, "arguments": st.dictionaries(NAMES, VALUES, max_size=3)}
    ),
    max_size=3,
)  # fmt: skip


@given(CALLS, st.sampled_from([repr, json.dumps]))
def test_calls_written_as_text_are_read_back(calls, write):
    parts = [
        f"{c['name']}({', '.join(f'{k}={write(v)}' for k, v in c['arguments'].items())})"
        for c in calls
    ]
    text = f"[{', '.join(parts)}]"
    assert parse_calls(text) == calls
    assert looks_like_calls(text) or not calls


@given(st.text("[]()={},'\"\\ab1 \n.:", max_size=30))
def test_any_text_is_read_or_refused_with_a_reason(text):
    for read in (parse_calls, calls_of, literal, json_or_text, lambda t: list(json_values(t))):
        try:
            read(text)
        except ValueError as error:
            assert str(error)
    looks_like_calls(text)


@pytest.mark.parametrize(
    "text",
    [
        '[f(x=__import__("os").system("true"))]',
        "[f(x=open('a'))]",
        "[f(x=y)]",
        "[f(1)]",
        "[f(x=1, x=2)]",
        "[f(x=1]",
        "[f(x='a)]",
        "f(x=1)",
        "[f(x=NaN)]",
        "[" * 10_000 + "]" * 10_000,
        "[f(x=" + "(" * 500 + ")" * 500 + ")]",
        "[f(x='" + "a" * MAX_CHARS + "')]",
        "[f(x=" + "-" * 50_000 + "1)]",
        "[f(x=1e999)]",
    ],
)
def test_what_is_no_list_of_literal_calls_is_refused(text):
    with pytest.raises(ValueError):
        parse_calls(text)


def test_prose_in_brackets_is_no_call():
    assert not looks_like_calls("[see the list (below)] and so on")
    assert not looks_like_calls("[1, 2]")
    assert looks_like_calls('[Get Today\'s News(topic="a")]')


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        ('{"a": 1}', {"a": 1}),
        ("{'a': (1, True)}", {"a": [1, True]}),
        ("", {}),
        (None, {}),
        ([], {}),
        ([{"name": "a", "value": 1}], {"a": 1}),
        ({"a": None}, {"a": None}),
    ],
)
def test_arguments_in_the_forms_in_use(value, arguments):
    assert arguments_of(value) == arguments


@pytest.mark.parametrize("value", ["[1]", "3", 5, [1], "nonsense"])
def test_arguments_that_are_no_object_are_refused(value):
    with pytest.raises(ValueError):
        arguments_of(value)


def test_calls_by_any_of_the_key_names():
    wanted = {"name": "f", "arguments": {"a": 1}}
    for form in (
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "f", "parameters": {"a": 1}},
        {"function": "f", "args": {"a": 1}},
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    ):
        assert call_of(form) == wanted
    with pytest.raises(ValueError, match="no name"):
        call_of({"arguments": {}})


def test_a_list_ends_at_its_own_bracket():
    text = "x = [{'a': \"it's ]\"}, ['b']] rest ]"
    assert text[4 : balanced(text, 4)] == "[{'a': \"it's ]\"}, ['b']]"
    with pytest.raises(ValueError, match="never closed"):
        balanced("[1, [2]", 0)
