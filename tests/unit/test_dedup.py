"""Near duplicates: what MinHash estimates against the exact similarity."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahl_core.datasets.dedup import PERMUTATIONS, near_duplicates, shingles, signatures

WORDS = [f"w{n}" for n in range(400)]


def jaccard(a: list[str], b: list[str]) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def varied(text: list[str], changes: int, generator: random.Random) -> list[str]:
    copy = list(text)
    for index in generator.sample(range(len(copy)), changes):
        copy[index] = "changed"
    return copy


def test_signatures_estimate_jaccard_similarity() -> None:
    generator = random.Random(0)
    errors = []
    for changes in range(0, 30, 2):
        text = generator.choices(WORDS, k=60)
        other = varied(text, changes, generator)
        pair = signatures([text, other])
        errors.append(float((pair[0] == pair[1]).mean()) - jaccard(text, other))
    # the deviation of an estimate from 64 permutations is at most 1/16
    assert max(abs(e) for e in errors) < 4 / np.sqrt(PERMUTATIONS) / 2
    assert abs(sum(errors) / len(errors)) < 0.06


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95])
def test_close_copies_are_found_and_distant_texts_are_not(threshold: float) -> None:
    generator = random.Random(1)
    texts = [generator.choices(WORDS, k=80) for _ in range(200)]
    copies = [[*text, "please"] for text in texts]
    found = near_duplicates(signatures([*texts, *copies]), threshold)
    assert {later: later - 200 for later in found} == found
    assert len(found) >= (200 if threshold < 0.9 else 180)


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=6), max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_first_of_equal_texts_stays_and_every_later_one_goes(texts: list[list[str]]) -> None:
    found = near_duplicates(signatures(texts), 1.0)
    first: dict[frozenset[bytes], int] = {}
    for index, text in enumerate(texts):
        key = frozenset(shingles(text))
        assert (index in found) == (key in first)
        assert first.setdefault(key, index) == found.get(index, index)


def test_nothing_is_no_duplicate() -> None:
    assert near_duplicates(signatures([]), 0.85) == {}
    assert near_duplicates(signatures([["one"]]), 0.85) == {}


def test_a_removed_row_is_never_the_reason_to_remove_another() -> None:
    generator = random.Random(2)
    chain = [generator.choices(WORDS, k=60)]
    for _ in range(40):
        chain.append(varied(chain[-1], 2, generator))
    found = near_duplicates(signatures(chain), 0.7)
    assert found
    assert not set(found.values()) & set(found)
