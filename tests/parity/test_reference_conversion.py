"""Our conversion of the sources against the reference conversion, where both are present."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.intake import read_held_out

REPOSITORY = Path(__file__).parents[2]
RAW = REPOSITORY / "data" / "raw"
REFERENCE = REPOSITORY.parent / "shared" / "data"
# NESTFUL's wheel corrects some calls and requests of the repository the reference was made from
NESTFUL_CALLS, NESTFUL_REQUESTS = 71, 4


def read(name: str) -> Iterator[dict[str, Any]]:
    return READERS[name](RAW / name, name, ReadLimits())


def reference(name: str) -> dict[str, Any]:
    path = REFERENCE / name / "train.jsonl"
    if not path.exists():
        pytest.skip("no reference conversion in ../shared/data")
    if not (RAW / name).is_dir():
        pytest.skip(f"data/raw/{name} is not fetched")
    with path.open(encoding="utf-8") as lines:
        return {record["id"]: record for record in map(json.loads, lines)}


def calls(record: dict[str, Any]) -> list[Any]:
    """The gold calls without the arguments that grounding turned into references."""
    grounded = {(g["call"], g["arg"].split("[")[0]) for g in record["meta"].get("grounded", ())}
    return [
        [step[0]["name"], {k: v for k, v in step[0]["arguments"].items() if (n, k) not in grounded}]
        for n, step in enumerate(record["answers"], 1)
    ]


def without(record: dict[str, Any], ours: dict[str, Any]) -> list[Any]:
    return calls({"answers": record["answers"], "meta": ours["meta"]})


def test_complexfuncbench_requests_calls_and_resolved_values_are_equal() -> None:
    expected = reference("complexfuncbench")
    found = {r["id"]: r for r in read("complexfuncbench")}
    assert len(found) == 1000
    differing = 0
    for record_id, other in expected.items():
        ours = found[record_id]
        assert ours["messages"] == other["messages"]
        assert calls(ours) == without(other, ours)
        resolved = [step[0]["arguments"] for step in other["meta"]["answers_resolved"]]
        differing += sum(a != b for a, b in zip(ours["meta"]["resolved"], resolved, strict=True))
    assert differing <= 2  # two latitudes that the source has as text and the tool as number


def test_the_reserved_ids_are_those_the_reference_leaves_out() -> None:
    expected = reference("complexfuncbench")
    held_out = read_held_out(REPOSITORY)["complexfuncbench"]
    assert held_out == {f"complexfuncbench-{i}" for i in range(1000)} - set(expected)
    assert len(held_out) == 100


def test_nestful_requests_and_calls_are_equal_but_for_the_wheels_corrections() -> None:
    expected = reference("nestful")
    found = {r["id"]: r for r in read("nestful")}
    assert set(expected) <= set(found)
    other_calls = sum(calls(found[i]) != without(r, found[i]) for i, r in expected.items())
    other_texts = sum(found[i]["messages"] != r["messages"] for i, r in expected.items())
    assert other_calls <= NESTFUL_CALLS
    assert other_texts <= NESTFUL_REQUESTS
