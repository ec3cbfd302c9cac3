"""References between calls: found, resolved, grounded, and never lost when results are cut."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cahl_core.datasets.adapters.nestful import ground
from cahl_core.datasets.references import (
    MISSING,
    as_type,
    dependencies,
    first_path,
    has_reference,
    leaves,
    levels,
    prune,
    put,
    resolve,
    walk,
    whole_reference,
)
from cahl_core.files import dump_json
from cahl_core.records import ToolCall

KEYS = st.text("abcdef_", min_size=1, max_size=6)
SCALARS = st.one_of(st.integers(), st.text("xyz 123", max_size=120), st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=25,
)


@given(VALUES, st.data(), st.integers(10, 400))
def test_pruning_keeps_every_referenced_value(value: Any, data: st.DataObject, limit: int) -> None:
    paths = [path for path, _ in leaves(value) if path]
    chosen = data.draw(st.lists(st.sampled_from(paths), max_size=4)) if paths else []
    cut = prune(value, chosen, limit)
    for path in chosen:
        assert walk(cut, path) == walk(value, path)


@given(VALUES, st.integers(60, 400))
def test_pruning_without_references_keeps_the_limit(value: Any, limit: int) -> None:
    cut = prune(value, [], limit)
    assert len(dump_json(cut)) <= limit or not isinstance(value, dict | list)


@given(VALUES)
def test_every_leaf_is_where_its_path_says(value: Any) -> None:
    assert all(walk(value, path) == leaf for path, leaf in leaves(value) if path)


@given(VALUES, SCALARS)
def test_put_changes_one_leaf_and_not_the_original(value: Any, new: Any) -> None:
    before = dump_json(value)
    for path, _ in leaves(value):
        if path:
            assert walk(put(value, path, new), path) == new
    assert dump_json(value) == before


def test_lists_are_entered_by_their_first_item_or_an_index() -> None:
    value = {"items": [{"id": 1}, {"id": 2}]}
    assert walk(value, "items.id") == 1
    assert walk(value, "items[1].id") == 2
    assert walk(value, "items[2].id") is MISSING
    assert walk([], "id") is MISSING


def test_only_a_whole_value_is_a_reference() -> None:
    assert whole_reference("$var3$") == (3, "")
    assert whole_reference("$var1.Exchange Rate$") == (1, "Exchange Rate")
    assert whole_reference("2 * $var1.rate$") is None
    assert has_reference("2 * $var1.rate$")
    assert has_reference("$var1.cut_off")
    assert not has_reference("$100-$200")


def test_levels_follow_the_longest_chain() -> None:
    calls = [
        ToolCall("a", {"x": 1}),
        ToolCall("a", {"x": 2}),
        ToolCall("b", {"p": "$var1.id$", "q": {"r": ["$var2.id$"]}}),
        ToolCall("c", {"p": "$var3$"}),
    ]
    references = dependencies(calls)
    assert [(r.call, r.arg, r.source) for r in references] == [
        (3, "p", 1), (3, "q.r[0]", 2), (4, "p", 3),
    ]  # fmt: skip
    assert levels(4, references) == [0, 0, 1, 2]


def test_resolved_values_take_the_type_of_the_schema() -> None:
    schema = {"properties": {"id": {"type": "string"}, "n": {"type": "number"}}}
    call = ToolCall("f", {"id": "$var1.id$", "n": "$var1.n$", "own": 5})
    assert resolve(call, [{"id": 12, "n": "2.5"}], schema) == {"id": "12", "n": 2.5, "own": 5}
    assert resolve(call, [{"id": 12}], schema) is None
    assert resolve(call, [None], schema) is None


def test_a_conversion_that_loses_something_is_not_made() -> None:
    assert as_type("2.5", "integer") == "2.5"
    assert as_type("abc", "number") == "abc"
    assert as_type(True, "string") is True


def test_an_identifier_only_an_earlier_result_has_becomes_a_reference() -> None:
    calls = [ToolCall("find", {"query": "Oslo"}), ToolCall("book", {"hotel": "H77", "on": "Oslo"})]
    responses = [{"hotels": [{"id": "H77"}, {"id": "H78"}]}, None]
    grounded, references, ungrounded = ground(calls, responses, "Book in Oslo", {})
    assert grounded[1].arguments == {"hotel": "$var1.hotels.id$", "on": "Oslo"}
    assert [(r.call, r.arg, r.source, r.path) for r in references] == [(2, "hotel", 1, "hotels.id")]
    assert ungrounded == []
    assert calls[1].arguments["hotel"] == "H77"


def test_a_choice_among_results_is_reported_not_made_up() -> None:
    calls = [ToolCall("find", {"query": "Oslo"}), ToolCall("book", {"hotel": "H78"})]
    responses = [{"hotels": [{"id": "H77"}, {"id": "H78"}]}, None]
    kept, references, ungrounded = ground(calls, responses, "Book in Oslo", {})
    assert (kept[1].arguments, references, ungrounded) == ({"hotel": "H78"}, [], ["2.hotel"])


def test_first_path_enters_only_first_items() -> None:
    assert first_path({"a": [{"b": 1}, {"b": 7}], "c": 7}, "7") == "c"
    assert first_path({"a": [{"b": 1}, {"b": 7}]}, "7") is None


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_references_of_any_length_name_nothing_and_raise_nothing(first: int, second: int) -> None:
    """A model may write digits without end; Python refuses to read more than 4,300 of them."""
    for text in (f"$var{'9' * first}$", f"$var1[{'9' * second}]$", f"$var1.a[{'9' * second}].b$"):
        result = resolve(ToolCall("f", {"x": text}), [[{"a": [1]}]], {})
        assert result is None


def test_words_that_float_reads_stay_words() -> None:
    for word in ("nan", "inf", "-Infinity", "1e999"):
        assert as_type(word, "number") == word
