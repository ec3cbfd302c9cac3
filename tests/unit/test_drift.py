"""Drift between versions of the prepared data."""

from __future__ import annotations

import copy
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.datasets.drift import compare, record, stability_index, total_variation
from cahl_core.datasets.statistics import LENGTHS, SHAPES
from cahl_core.files import read_json

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=1)


@given(COUNTS, COUNTS, st.integers(1, 9))
def test_distances_are_symmetric_and_blind_to_size(
    a: dict[str, int], b: dict[str, int], factor: int
) -> None:
    larger = {k: n * factor for k, n in b.items()}
    assert total_variation(a, b) == pytest.approx(total_variation(b, a))
    assert total_variation(a, larger) == pytest.approx(total_variation(a, b))
    assert 0 <= total_variation(a, b) <= 1 + 1e-12
    assert stability_index(a, b) >= 0
    assert stability_index(a, larger) == pytest.approx(stability_index(a, b))
    assert stability_index(a, a) == total_variation(a, a) == 0


def statistics() -> dict[str, Any]:
    return {
        "tasks": 100,
        "sources": {"one": {"kept": 60}, "two": {"kept": 40}},
        "kinds": {"original": 80, "qa": 20},
        "languages": {"all": {"en": 100}},
        "shapes": {name: {"1": 50, "2": 50} for name in SHAPES},
        "lengths": {name: {"histogram": {"64": 70, "128": 30}} for name in LENGTHS},
        "tools": {"names": ["book", "find"]},
    }


def test_equal_data_do_not_drift() -> None:
    found = compare(statistics(), statistics())
    assert (found["verdict"], found["sentences"]) == ("none", [])
    assert compare(statistics(), None)["verdict"] == "first version"


@pytest.mark.parametrize(
    ("path", "value", "verdict", "measure"),
    [
        (("kinds",), {"original": 58, "qa": 42}, "slight", "kinds"),
        (("kinds",), {"qa": 100}, "large", "kinds"),
        (("sources", "two", "kept"), 4000, "large", "sources"),
        (("shapes", "n_steps"), {"1": 20, "2": 80}, "large", "n_steps"),
        (("lengths", "plan_tokens", "histogram"), {"64": 58, "128": 42}, "none", "plan_tokens"),
        (("languages", "all"), {"en": 60, "de": 40}, "large", "languages"),
    ],
)
def test_what_moved_is_named(path: tuple[str, ...], value: Any, verdict: str, measure: str) -> None:
    moved: Any = copy.deepcopy(statistics())
    target = moved
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    found = compare(moved, statistics())
    assert found["verdict"] == found["measures"][measure]["verdict"] == verdict
    others = [m["verdict"] for name, m in found["measures"].items() if name != measure]
    assert set(others) == {"none"}


def test_the_previous_version_is_the_last_one_that_differs(tmp_path: Path) -> None:
    first, second = statistics(), statistics()
    second["kinds"] = {"qa": 100}
    second["tools"] = {"names": ["find", "sell"]}
    assert record(tmp_path, first)["verdict"] == "first version"
    assert record(tmp_path, first)["verdict"] == "first version"
    for _ in range(2):  # preparing the same again changes nothing
        found = record(tmp_path, second)
        assert found["verdict"] == "large"
        assert found["sentences"][-2:] == [
            "tools newly called: 1 (sell)",
            "no longer called: 1 (book)",
        ]
    assert read_json(tmp_path / "previous.json") == first
    assert read_json(tmp_path / "drift.json") == found


def test_two_samples_of_one_distribution_rarely_drift() -> None:
    generator = random.Random(0)
    verdicts = []
    for _ in range(200):
        pair = []
        for size in (60, 80):
            found = statistics()
            drawn = Counter(generator.choices("abcdefgh", weights=range(1, 9), k=size))
            found["kinds"] = found["shapes"]["n_tools"] = dict(drawn)
            pair.append(found)
        verdicts.append(compare(pair[0], pair[1])["verdict"])
    # small samples with empty bins exceed the approximation more often than 1 time in 100
    assert verdicts.count("none") > 200 * 0.85
