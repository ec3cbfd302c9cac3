"""Verdicts of the asset checks on the reports that ``prepare`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipelines.checks import judge, judge_contamination, judge_drift


def written(folder: Path, content: Any) -> Path:
    path = folder / "report.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def result(success: bool, severity: str) -> dict[str, Any]:
    return {"expectation": "E", "column": "c", "success": success, "severity": severity}


@pytest.mark.parametrize(
    ("results", "passed", "severity"),
    [
        ([result(True, "critical")], True, "WARN"),
        ([result(False, "warning")], False, "WARN"),
        ([result(False, "warning"), result(False, "critical")], False, "ERROR"),
        ([{"expectation": "E", "success": False}], False, "ERROR"),
    ],
)
def test_severities_become_dagsters(
    tmp_path: Path, results: list[Any], passed: bool, severity: str
) -> None:
    found = judge(written(tmp_path, {"suites": {"rl": {"results": results}}}), "rl")
    assert (found.passed, found.severity) == (passed, dg.AssetCheckSeverity[severity])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"suites": {"sft": {}}}', '{"suites": []}'])
def test_a_report_that_cannot_be_read_is_an_error(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    for found in (judge(path, "rl"), judge_contamination(path)):
        assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert not judge_drift(path).passed
    assert judge_drift(path).severity == dg.AssetCheckSeverity.WARN
    assert not judge(tmp_path / "nowhere.json", "rl").passed


def test_a_test_set_that_was_not_compared_with_is_a_warning(tmp_path: Path) -> None:
    benchmarks = {"bfcl": {"exact": 1, "ten_gram": 2}}
    whole = written(tmp_path, {"benchmarks": benchmarks, "not_checked": []})
    assert judge_contamination(whole).passed
    assert "bfcl 3" in (judge_contamination(whole).description or "")
    partly = written(
        tmp_path, {"benchmarks": benchmarks, "not_checked": ["bamboogle (not fetched)"]}
    )
    found = judge_contamination(partly)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "bamboogle (not fetched)" in (found.description or "")


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [("first version", True), ("none", True), ("slight", True), ("large", False)],
)
def test_only_a_large_drift_warns(tmp_path: Path, verdict: str, passed: bool) -> None:
    path = written(tmp_path, {"verdict": verdict, "sentences": ["kinds: 0.4"], "measures": {}})
    found = judge_drift(path)
    assert (found.passed, found.severity) == (passed, dg.AssetCheckSeverity.WARN)
    assert "kinds: 0.4" in (found.description or "")
