"""The report: no model text becomes markup, nothing is loaded from elsewhere, gaps are shown."""

from __future__ import annotations

import re
from typing import Any

from cahl_core.evaluation import report
from cahl_core.evaluation.bfcl import Scored, by_category, summary
from cahl_core.evaluation.checker import Verdict

EVIL = "</pre><script>alert(1)</script> | ``` <img src=http://x>"


def _results() -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    scored = [
        Scored("simple", Verdict("simple_0", True, None, ""), "calls"),
        Scored("simple", Verdict("simple_1", False, EVIL, EVIL), "plan_failure"),
        Scored("irrelevance", Verdict("irrelevance_0", True, None, ""), "abstained"),
    ]
    entry = {
        **summary(scored, full=False),
        "by_category": by_category(scored),
        "plan_validity": 2 / 3,
        "call_validity": None,
        "mean_reward": 1.25,
        "calls_per_task": 0.5,
        "redundant_call_rate": None,
    }
    results = {
        "benchmark": "BFCL_v3",
        "full": False,
        "models": {"base": entry, "cahl": entry},
        "items": {
            "simple": {"evaluated": 2, "of": 400},
            "irrelevance": {"evaluated": 1, "of": 240},
        },
        "not_evaluated": {"multi_turn_base": 200},
        "sample_digest": "0123456789abcdef",
        "dev_ids": ["d"],
        "protocol": {
            "prompt": "p",
            "tool_rendering": "compact",
            "backbone": "b",
            "decoding": "greedy",
        },
        "unanswerable_labels_kept": ["java_36"],
    }
    records = {
        "cahl": [
            {
                "id": s.verdict.id,
                "category": s.category,
                "valid": s.verdict.valid,
                "outcome": s.outcome,
                "error_type": s.verdict.error_type,
                "error": EVIL,
                "request": EVIL,
                "tools": [EVIL],
                "plan_text": EVIL,
                "texts": [EVIL],
                "calls": [{"name": EVIL, "arguments": {EVIL: EVIL}}],
            }
            for s in scored
        ]
    }
    return results, records


def test_texts_from_outside_are_shown_as_text() -> None:
    page = report.html(*_results())
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    lines = report.markdown(*_results()).splitlines()
    shown = [line for line in lines if "script" in line]
    assert shown
    assert all(line.startswith("    ") for line in shown)  # code, which Markdown does not read


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = report.html(*_results())
    assert re.findall(r"<[^>]*\b(?:src|href)\s*=", page) == []
    assert page.count("<svg") == 1
    assert re.findall(r"https?://[^\"&<\s]*", page.split("<h2>Examples")[0]) == [
        "http://www.w3.org/2000/svg"
    ]


def test_a_rate_without_observations_is_a_dash_and_the_limits_are_said() -> None:
    table = report.summary_table(_results()[0])
    base = next(line for line in table.splitlines() if line.startswith("| base"))
    assert base.split(" | ")[8] == "–"
    text = report.markdown(*_results())
    assert "multi_turn_base 200" in text
    assert "not comparable" in text
    assert "0123456789abcdef" in text


def test_right_and_wrong_examples_are_shown() -> None:
    text = report.markdown(*_results())
    assert "cahl, right: simple_0" in text
    assert "cahl, no calls: simple_1" in text
    assert "irrelevance_0" not in text
