"""Measures of answers in words: invariances, order, and parity with an independent version."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.evaluation.qa_metrics import covers, exact, exact_with_dates, f1, normalise

WORDS = [
    "the",
    "a",
    "an",
    "red",
    "fox",
    "l",
    "52",
    "Yes",
    "no",
    "April",
    "1789",
    "O'Hara",
    "U.S.",
    "é",
    ",",
]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=6).map(" ".join)
golds = st.lists(texts, min_size=1, max_size=3)


def reference_words(text: str) -> list[str]:
    """Word by word: punctuation out, then what is left of an article; another way than by pattern."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    # as \b sees it: a maximal run of word characters, so that "é" and "the" do not merge
    runs = re.findall(r"\w+|\W", kept)
    return "".join(" " if r in ("a", "an", "the") else r for r in runs).split()


def reference_f1(answer: str, gold: str) -> float:
    said, due = reference_words(answer), reference_words(gold)
    left, common = list(due), 0
    for word in said:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(due)
    return 2 * precision * recall / (precision + recall)


@given(texts, texts)
def test_em_and_f1_are_those_of_an_independent_version(answer: str, gold: str) -> None:
    if not reference_words(answer) or not reference_words(gold):
        return  # articles alone: kept here, empty there
    assert exact(answer, [gold]) == (reference_words(answer) == reference_words(gold))
    assert f1(answer, [gold]) == pytest.approx(reference_f1(answer, gold))


@given(texts, golds)
def test_every_measure_is_a_share_and_they_are_ordered(answer: str, due: list[str]) -> None:
    measures = [m(answer, due) for m in (exact, exact_with_dates, covers, f1)]
    assert all(0 <= m <= 1 for m in measures)
    em, dated, cover, overlap = measures
    assert em <= cover and em <= dated and em <= overlap


@given(texts, golds)
def test_case_articles_punctuation_and_space_do_not_matter(answer: str, due: list[str]) -> None:
    if not reference_words(answer) or answer.upper().lower() != answer.lower():
        return  # letters such as "µ" have no way back
    dressed = f"  The {answer.upper().lower()} ,\t!"
    for measure in (exact, covers, f1):
        assert measure(answer.lower(), due) == measure(dressed, due)
        assert measure(answer, due) == measure(answer, [*due[::-1], due[0]])


@given(texts, golds, texts)
def test_more_accepted_answers_never_cost(answer: str, due: list[str], another: str) -> None:
    for measure in (exact, exact_with_dates, covers, f1):
        assert measure(answer, [*due, another]) >= measure(answer, due)


@given(texts)
def test_an_answer_is_right_about_itself_and_silence_about_nothing(text: str) -> None:
    if normalise(text):
        assert exact(text, [text]) == covers(text, [text]) == f1(text, [text]) == 1
    for measure in (exact, exact_with_dates, covers, f1):
        assert measure("", [text]) == 0 and measure(text, []) == 0


@given(texts, texts, texts)
def test_words_around_an_answer_never_cost_cover(before: str, answer: str, after: str) -> None:
    if normalise(answer) and normalise(answer) in normalise(f"{before} {answer} {after}").split():
        assert covers(f"{before} {answer} {after}", [answer]) == 1


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("Milwaukee and Madison all along", "l", 0),  # the trap of a one-letter gold answer
        ("the letter L", "l", 1),
        ("in 1520", "52", 0),
        ("at 52 degrees", "52", 1),
        ("yesterday", "Yes", 0),
        ("Yes, it was.", "Yes", 1),
        ("route 8470", "847", 0),
        ("1,131 people", "131", 0),
        ("it is 4884 m high", "4,884 m", 1),
        ("in 19990", "1999", 0),
        ("the Titan IIIE rocket", "Titan IIIE", 1),
        ("Titan III", "Titan IIIE", 0),
    ],
)
def test_cover_finds_short_answers_and_numbers_as_words_only(
    answer: str, gold: str, expected: int
) -> None:
    assert covers(answer, [gold]) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("1837-06-20", "20 June 1837", 1),
        ("June 20, 1837.", "20 June 1837", 1),
        ("June 1837", "20 June 1837", 0),
        ("21 June 1837", "20 June 1837", 0),
        ("1837", "1837", 1),
        ("it was June 20, 1837", "20 June 1837", 0),  # a whole answer only
    ],
)
def test_dates_in_another_form_are_equal_by_their_own_measure_only(
    answer: str, gold: str, expected: int
) -> None:
    assert exact_with_dates(answer, [gold]) == expected
    assert exact(answer, [gold]) == (answer == gold)
