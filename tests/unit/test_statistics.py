"""Statistics of the prepared data: counts that add up, and the tables of `cahl data stats`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.config import Settings
from cahl_core.datasets.statistics import STATISTICS, TOKEN_BINS, command, lengths, summarise
from cahl_core.errors import ConfigError, StageInputError
from cahl_core.files import dump_json, write_json

ENGLISH = "Please book a table for two people at the restaurant this evening"
GERMAN = "Bitte reserviere einen Tisch für zwei Personen im Restaurant heute Abend"
SHAPES = ("n_steps", "n_calls", "depth", "parallel", "n_tools", "n_messages")
TOKENS = ("planner_tokens", "executor_tokens", "plan_tokens", "execution_tokens")


def task(number: int, source: str, split: str, **changes: Any) -> dict[str, Any]:
    own = {
        "id": f"t{number}", "source": source, "split": split, "kind": "original",
        "request": f"{ENGLISH} {number}", "gold_tools": ["find"], "offered_tools": ["find", "book"],
        **dict.fromkeys(SHAPES, 1), **dict.fromkeys(TOKENS, 100),
    }  # fmt: skip
    return {**own, **changes}


def tasks() -> pd.DataFrame:
    rows = [
        task(0, "one", "train", n_tools=40, planner_tokens=64),
        task(1, "one", "train", kind="single_step", request=GERMAN, gold_tools=["find", "book"]),
        task(2, "two", "train", n_steps=3, request=GERMAN),
        task(3, "two", "dev", depth=2),
        task(4, "two", "dev_unseen_tools", gold_tools=["sail"]),
    ]
    return pd.DataFrame(rows)


SOURCES = {
    "one": {"records": 4, "tasks": 4, "kept": 1, "held_out": 1, "quarantined": {"wrong_type": 2}},
    "two": {"records": 3, "tasks": 3, "kept": 3, "held_out": 0, "quarantined": {}},
    "none": {"records": 1, "tasks": 1, "kept": 0, "held_out": 0, "quarantined": {"duplicate": 1}},
}
CONTAMINATION = {
    "benchmarks": {
        "bfcl-v3": {
            "questions": 9, "exact": 1, "ten_gram": 2, "tool_names_shared": 3, "ids": ["x"],
            "tool_names": ["find"],
        }
    }
}  # fmt: skip


def found() -> dict[str, Any]:
    return summarise(tasks(), SOURCES, CONTAMINATION)


def test_counts_are_those_of_the_tasks() -> None:
    s = found()
    assert s["tasks"] == 5
    assert s["splits"] == {"train": 3, "dev": 1, "dev_unseen_tools": 1}
    assert s["kinds"] == {"original": 4, "single_step": 1}
    assert s["sources"]["one"]["written"] == {"train": 2, "dev": 0, "dev_unseen_tools": 0}
    assert s["sources"]["one"]["quarantined"] == {"wrong_type": 2}
    assert s["sources"]["none"]["kinds"] == {}
    assert s["shapes"]["n_steps"] == {"1": 4, "3": 1}
    assert s["shapes"]["depth"] == {"1": 4, "2": 1}
    assert s["shapes"]["n_tools"]["32+"] == 1
    assert s["lengths"]["planner_tokens"]["histogram"] == {"64": 5}
    assert s["contamination"]["bfcl-v3"] == {
        "questions": 9, "exact": 1, "ten_gram": 2, "tool_names_shared": 3
    }  # fmt: skip


def test_tools_of_dev_that_training_never_calls_are_a_share() -> None:
    tools = found()["tools"]
    assert tools["distinct_gold"] == 3
    assert next(iter(tools["most_called"].items())) == ("find", 4)
    assert tools["dev_tools_unseen_in_training"] == 0.5  # find is called in training, sail is not


def test_languages_are_told_of_original_requests_only() -> None:
    languages = found()["languages"]
    assert languages["classified"] == 4
    assert languages["by_source"] == {"one": {"en": 1}, "two": {"en": 2, "de": 1}}
    assert languages["all"] == {"en": 3, "de": 1}


def test_the_statistics_are_json_and_blind_to_the_order_of_rows() -> None:
    turned = summarise(tasks().iloc[::-1], SOURCES, CONTAMINATION)
    assert dump_json(turned) == dump_json(found())


@given(st.lists(st.integers(0, 20_000), min_size=1))
def test_a_histogram_holds_every_value_once(values: list[int]) -> None:
    told = lengths(pd.Series(values))
    assert sum(told["histogram"].values()) == len(values)
    assert told["max"] == max(values)
    assert min(values) <= told["p50"] <= told["p95"] <= told["max"]
    for edge, count in told["histogram"].items():
        following = next((b for b in TOKEN_BINS if b > int(edge)), 10**9)
        assert count == sum(int(edge) <= v < following for v in values)


def test_no_task_at_all_is_no_error() -> None:
    assert lengths(pd.Series([], dtype=int))["max"] == 0
    s = summarise(tasks().iloc[:0], SOURCES, {"benchmarks": {}})
    assert (s["tasks"], s["languages"]["classified"], s["tools"]["distinct_gold"]) == (0, 0, 0)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_json(tmp_path / STATISTICS, found())
    return tmp_path


def test_stats_are_readable_tables(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(prepared, Settings(), [], as_json=False)
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["one", "4", "4", "1", "1", "2", "2", "0", "0", "100", "100"] in lines
    assert ["all", "8", "8", "4", "1", "3", "3", "1", "1", "–", "–"] in lines
    assert ["wrong_type", "2", "–"] in lines
    assert ["bfcl-v3", "9", "1", "2", "3"] in lines
    assert "Languages of 4 sampled requests: en 3, de 1" in text
    assert "50.0% of the dev tools" in text


def test_stats_of_named_sources_show_these_alone(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(prepared, Settings(), ["two"], as_json=False)
    text = capsys.readouterr().out
    assert "two" in text
    assert "one" not in text.split()
    command(prepared, Settings(), ["two"], as_json=True)
    assert list(json.loads(capsys.readouterr().out)["sources"]) == ["two"]


def test_what_is_missing_is_said_with_the_way_out(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'three' is not[\s\S]*one, two, none"):
        command(prepared, Settings(), ["three"], as_json=False)
    with pytest.raises(StageInputError, match="cahl prepare"):
        command(tmp_path / "elsewhere", Settings(), [], as_json=False)
