"""The data report: one page that needs nothing from elsewhere, the same bytes for the same data."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

import pytest

from cahl_core.datasets.report import bars, page
from cahl_core.datasets.splits import SPLITS

HOSTILE = "<script>alert('x')</script>\" onload=\"y"
SHAPES = ("n_steps", "depth", "n_tools", "parallel")
TOKENS = ("planner_tokens", "executor_tokens", "plan_tokens")
LENGTHS = {"p50": 100, "p95": 200, "max": 300, "histogram": {"64": 4, "128": 1}}
COUNTS = {
    "records": 1234, "tasks": 1234, "kept": 1230, "held_out": 1, "quarantined": {"wrong_type": 3}
}  # fmt: skip


def result(success: bool, severity: str, observed: Any = "0 unexpected") -> dict[str, Any]:
    return {
        "expectation": "ExpectSomething", "column": "id", "limits": {"mostly": 0.9},
        "success": success, "severity": severity, "observed": observed,
    }  # fmt: skip


def arguments() -> dict[str, Any]:
    written = dict.fromkeys(SPLITS, 7)
    return {
        "statistics": {
            "splits": {"train": 1200, "dev": 30, "dev_unseen_tools": 5},
            "kinds": {"original": 1235},
            "sources": {"one": {**COUNTS, "written": written, "lengths": {TOKENS[0]: LENGTHS}}},
            "shapes": {name: {"1": 3, "12+": 2} for name in SHAPES},
            "lengths": dict.fromkeys(TOKENS, LENGTHS),
            "languages": {"classified": 40, "all": {f"l{n}": 40 - n for n in range(11)}},
        },
        "suites": {
            "success": True,
            "suites": {"raw": {"warnings": 0, "results": [result(True, "critical")]}},
        },
        "contamination": {
            "benchmarks": {
                "bfcl-v3": {
                    "questions": 9, "exact": 1, "ten_gram": 2, "tool_names_shared": 1,
                    "ids": ["one-7"], "tool_names": ["get_weather"],
                }
            },
            "not_checked": [],
            "method": "lower case",
        },
        "sources": {"one": COUNTS},
        "examples": [
            {"source": "one", "rule": "wrong_type", "id": "one-8", "detail": "call 1", "excerpt": "[]"}
        ],
    }  # fmt: skip


class Reader(HTMLParser):
    """Which tags stand in the page, what they refer to, and whether all are closed."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [name for name, _ in attrs if name in ("src", "href", "onload")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_stands_alone_and_is_the_same_each_time() -> None:
    text = page(**arguments())
    found = read(text)
    assert text == page(**arguments())
    assert found.references == []
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "http" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


def test_counts_rules_and_test_sets_are_in_its_tables() -> None:
    cells = read(page(**arguments())).cells
    for shown in ("1,234", "1,230", "wrong_type", "bfcl-v3", "get_weather", "one-7", "one-8"):
        assert shown in cells
    assert "a gold argument does not satisfy its tool's schema" in cells


@pytest.mark.parametrize("key", ["source", "id", "detail", "excerpt"])
def test_text_of_a_quarantined_record_is_never_markup(key: str) -> None:
    changed = arguments()
    changed["examples"][0][key] = HOSTILE
    found = read(page(**changed))
    assert "script" not in found.tags
    assert found.references == []
    assert HOSTILE in found.cells


def test_names_that_come_from_data_are_never_markup() -> None:
    changed = arguments()
    changed["contamination"]["benchmarks"][HOSTILE] = {
        **changed["contamination"]["benchmarks"]["bfcl-v3"], "ids": [HOSTILE], "tool_names": [HOSTILE]
    }  # fmt: skip
    changed["contamination"]["not_checked"] = [HOSTILE]
    changed["statistics"]["kinds"][HOSTILE] = 1
    changed["suites"]["suites"]["raw"]["results"] = [result(False, "critical", HOSTILE)]
    found = read(page(**changed))
    assert "script" not in found.tags
    assert found.references == []


def test_failed_expectations_are_shown_before_the_folded_list_of_all() -> None:
    changed = copy.deepcopy(arguments())
    assert "Every expectation is met" in page(**changed)
    changed["suites"]["success"] = False
    suite = changed["suites"]["suites"]["raw"]
    suite["results"] = [
        result(True, "critical"),
        result(False, "critical"),
        result(False, "warning"),
    ]
    suite["warnings"] = 1
    before, folded = page(**changed).split("<details>", 1)
    assert before.count("failed (critical)") == before.count("failed (warning)") == 1
    assert "<b>FAILED</b>critical expectations, 1 warnings" in before
    assert "all 3 expectations" in folded


def test_a_test_set_that_was_not_compared_with_is_said() -> None:
    changed = arguments()
    changed["contamination"] |= {"benchmarks": {}, "not_checked": ["bfcl-v4 (not fetched)"]}
    text = page(**changed)
    assert "Not checked: bfcl-v4 (not fetched)" in text
    assert "No test set was compared with" in text


def test_rare_languages_are_put_together() -> None:
    text = page(**arguments())
    assert ">l7</text>" in text
    assert ">l8</text>" not in text
    assert ">others</text>" in text
    assert f">{32 + 31 + 30}</text>" in text


def test_bars_are_as_long_as_their_counts() -> None:
    chart = bars("Steps", {"1": 200, "2": 50, "3": 0})
    assert [part.split('"')[0] for part in chart.split(' width="')[1:]][1:] == [
        "260.0",
        "65.0",
        "0.0",
    ]
    assert bars("None", {}).count("<rect") == 0


def test_headings_of_numbers_are_aligned_with_them() -> None:
    text = page(**arguments())
    assert "<th>source</th><th class=number>records</th>" in text
    assert "<td>one</td><td class=number>1,234</td>" in text
