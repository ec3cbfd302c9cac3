"""The suites of expectations: sound data pass, and each planted fault fails the one that is about it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from cahl_core.config import Settings, validate
from cahl_core.datasets.expectations import run_suites
from cahl_core.files import dump_json

SUITES = ["raw", "prepared", "sft", "rl", "eval"]


def settings() -> Settings:
    own = {"sources": ["one", "two"], "max_faulty_share": 0.3, "max_prompt_tokens": 500}
    return validate({"model": {"max_context": 800}, "prepare": own})


def task(number: int, split: str = "train") -> dict[str, Any]:
    tool = f"unseen{number}" if split == "dev_unseen_tools" else "find"
    return {
        "id": f"t{number}", "source": ("one", "two")[number % 2], "split": split, "kind": "original",
        "weight": 1.0, "request": f"request {number}", "n_messages": 1, "n_tools": 2, "n_steps": 1,
        "n_calls": 1, "depth": 1, "parallel": 1, "n_references": 0, "planner_tokens": 100,
        "executor_tokens": 90, "plan_tokens": 30, "execution_tokens": 20, "gold_tools": [tool],
        "offered_tools": [tool, "book"], "gold_tools_offered": True, "plan_is_gold": True,
        "targets_parse": True, "gold_planner_reward": 1.0, "gold_executor_reward": 1.0,
        "text_digest": f"digest {number}",
    }  # fmt: skip


def tasks() -> pd.DataFrame:
    splits = ["train"] * 200 + ["dev"] * 4 + ["dev_unseen_tools"] * 2
    return pd.DataFrame([task(n, split) for n, split in enumerate(splits)])


def raw() -> pd.DataFrame:
    rows = [
        {"source": ("one", "two")[n % 2], "id": f"r{n}", "rule": "", "held_out": n == 0, "chars": 9}
        for n in range(200)
    ]
    return pd.DataFrame(rows)


def failures(frames: dict[str, pd.DataFrame]) -> dict[tuple[str, str], str]:
    """Severity of the worst failed expectation by suite and column."""
    report = run_suites(frames, settings())
    found: dict[tuple[str, str], str] = {}
    for name, suite in report["suites"].items():
        for result in suite["results"]:
            key = (name, result["column"])
            if not result["success"] and found.get(key) != "critical":
                found[key] = result["severity"]
    assert report["success"] is ("critical" not in found.values())
    return found


def test_sound_data_meet_every_expectation_and_give_the_same_json_twice() -> None:
    frames = {"tasks": tasks(), "raw": raw()}
    first, second = run_suites(frames, settings()), run_suites(frames, settings())
    assert list(first["suites"]) == SUITES
    assert failures(frames) == {}
    assert first["success"] is True
    assert dump_json(first) == dump_json(second)
    assert [suite["rows"] for suite in first["suites"].values()] == [200, 206, 206, 206, 206]


@pytest.mark.parametrize(
    ("column", "rows", "value", "expected"),
    [
        ("id", [1], "t0", {("prepared", "id"): "critical"}),
        ("request", [1], None, {("prepared", "request"): "critical"}),
        ("source", [1], "three", {("prepared", "source"): "critical"}),
        ("kind", [1], "guessed", {("prepared", "kind"): "critical"}),
        ("n_steps", [1], 99, {("prepared", "n_steps"): "critical"}),
        ("n_tools", [1], 999, {("prepared", "n_tools"): "critical"}),
        ("n_tools", range(9), 30, {("prepared", "n_tools"): "warning"}),
        ("depth", [1], 2, {("prepared", "depth_beyond_calls"): "critical"}),
        ("executor_tokens", [1], 501, {("prepared", "prompt_tokens"): "critical"}),
        ("execution_tokens", [1], 711, {("sft", "context_tokens"): "critical"}),
        ("targets_parse", [1], False, {("sft", "targets_parse"): "critical"}),
        ("plan_is_gold", [1], False, {("sft", "plan_is_gold"): "critical"}),
        ("gold_tools_offered", [1], False, {("rl", "gold_tools_offered"): "critical"}),
        ("gold_planner_reward", [1], 0.9, {("rl", "gold_planner_reward"): "warning"}),
        ("gold_planner_reward", range(3), 0.9, {("rl", "gold_planner_reward"): "critical"}),
        ("gold_executor_reward", [1], 0.9, {("rl", "gold_executor_reward"): "warning"}),
        ("gold_executor_reward", range(3), 0.9, {("rl", "gold_executor_reward"): "critical"}),
        ("text_digest", [1], "digest 201", {("eval", "in_two_splits"): "critical"}),
        ("split", [204, 205], "dev", {("eval", "split"): "warning"}),
        ("split", range(200, 204), "train", {("eval", "split"): "critical"}),
        ("split", [1], "test", {("eval", "split"): "critical"}),
    ],
)
def test_a_fault_in_a_task_fails_its_expectation_only(
    column: str, rows: Any, value: Any, expected: dict[tuple[str, str], str]
) -> None:
    table = tasks()
    table.loc[list(rows), column] = value
    assert failures({"tasks": table, "raw": raw()}) == expected


def test_a_training_prompt_that_offers_an_unseen_tool_is_critical() -> None:
    table = tasks()
    table.at[0, "offered_tools"] = ["find", "unseen204"]
    assert failures({"tasks": table, "raw": raw()}) == {("eval", "offers_unseen_tool"): "critical"}


@pytest.mark.parametrize(
    ("column", "rows", "value", "expected"),
    [
        ("rule", range(1, 30), "wrong_type", {("raw", "rule"): "warning"}),
        ("rule", range(1, 90), "prompt_too_long", {}),
        ("rule", range(1, 90), "wrong_type", {("raw", "faulty_share"): "critical",
                                              ("raw", "rule"): "warning"}),
        ("source", range(200), "one", {("raw", "source"): "critical"}),
        ("id", [1], None, {("raw", "id"): "critical"}),
        ("id", range(2, 20, 2), "r2", {("raw", "key"): "warning"}),
    ],
)  # fmt: skip
def test_a_fault_in_the_source_records_fails_its_expectation_only(
    column: str, rows: Any, value: Any, expected: dict[tuple[str, str], str]
) -> None:
    table = raw()
    table.loc[list(rows), column] = value
    assert failures({"tasks": tasks(), "raw": table}) == expected


def test_a_result_names_what_was_expected_and_what_was_seen() -> None:
    table = tasks()
    table.loc[1, "planner_tokens"] = 700
    suite = run_suites({"tasks": table, "raw": raw()}, settings())["suites"]["prepared"]
    [result] = [r for r in suite["results"] if not r["success"]]
    assert result == {
        "expectation": "ExpectColumnValuesToBeBetween",
        "column": "prompt_tokens",
        "limits": {"min_value": 0.0, "max_value": 500.0},
        "success": False,
        "severity": "critical",
        "observed": "1 unexpected, for example ['700']",
    }
    assert (suite["success"], suite["warnings"], suite["rows"]) == (False, 0, 206)


def test_a_distinct_set_that_lacks_a_value_names_it() -> None:
    table = tasks()
    table["split"] = "train"
    suite = run_suites({"tasks": table, "raw": raw()}, settings())["suites"]["eval"]
    failed = {r["severity"]: r["observed"] for r in suite["results"] if not r["success"]}
    assert failed == {
        "critical": "1 missing, for example ['dev']",
        "warning": "1 missing, for example ['dev_unseen_tools']",
    }


def test_an_expectation_that_cannot_be_evaluated_fails_and_says_why() -> None:
    table = tasks().drop(columns=["plan_is_gold"])
    suite = run_suites({"tasks": table, "raw": raw()}, settings())["suites"]["sft"]
    [result] = [r for r in suite["results"] if not r["success"]]
    assert result["severity"] == "critical"
    assert result["observed"].startswith("not evaluated: ")
    assert '"plan_is_gold"' in result["observed"]
