"""Decontamination: planted test questions are found, and the published counts are reproduced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cahl_core.datasets.contamination import Benchmarks, Overlap, normalise, read_benchmarks, report
from cahl_core.datasets.sources import load_sources
from cahl_core.records import Message, ToolTask

REPOSITORY = Path(__file__).parents[2]
MIRROR = REPOSITORY.parent / "shared" / "data"
QUESTION = "What will the weather be like in Oslo on the first Sunday of next month, please?"


def task(*texts: str, role: str = "user") -> ToolTask:
    return ToolTask("t", "s", tuple(Message(role, t) for t in texts), (), ())


@pytest.fixture
def benchmarks() -> Benchmarks:
    found = Benchmarks()
    found.add("test", QUESTION)
    found.add("test", "how are you")
    found.tools["test"] = {"get_weather", "play"}
    return found


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (QUESTION.upper().replace(",", " --"), "exact"),
        (f"Hello! {QUESTION} And one more thing.", "ten_gram"),
        ("will the weather be like in oslo on the first day", "ten_gram"),
        ("the weather be like in oslo on the first day", None),
        ("How are you?", None),
        ("", None),
    ],
)
def test_equal_texts_and_ten_words_in_a_row_are_overlap(
    benchmarks: Benchmarks, text: str, how: str | None
) -> None:
    expected = None if how is None else Overlap("test", how)
    assert benchmarks.overlap(text) == expected
    assert benchmarks.of_task(task("Good morning", text)) == expected


def test_a_question_of_two_test_sets_counts_for_both(benchmarks: Benchmarks) -> None:
    benchmarks.add("newer", QUESTION)
    benchmarks.add("newer", QUESTION)
    found = benchmarks.overlap(QUESTION)
    assert found is not None and found.benchmarks == ["test", "newer"]
    counts = report(benchmarks, [], [("s", "s-1", found)], [])["benchmarks"]
    assert (counts["test"]["exact"], counts["newer"]["exact"]) == (1, 1)


def test_only_what_users_say_counts(benchmarks: Benchmarks) -> None:
    assert benchmarks.of_task(task(QUESTION, role="assistant")) is None


def test_the_report_counts_records_and_shared_tool_names(benchmarks: Benchmarks) -> None:
    aside = [("s", "s-1", Overlap("test", "exact")), ("s", "s-2", Overlap("test", "ten_gram"))]
    found = report(benchmarks, ["other (not fetched)"], aside, ["get_weather", "stop"])
    own = found["benchmarks"]["test"]
    assert (own["questions"], own["exact"], own["ten_gram"]) == (2, 1, 1)
    assert own["tool_names"] == ["get_weather"]
    assert found["not_checked"] == ["other (not fetched)"]


def test_the_published_overlaps_with_bfcl_v4_are_found(bfcl_v4_wheel: Path) -> None:
    """shared/data/contamination.json lists the records that share ten words with BFCL v4."""
    if not (MIRROR / "contamination.json").exists():
        pytest.skip("no ../shared/data: the published overlaps cannot be compared")
    sources = load_sources(REPOSITORY)
    benchmarks, unchecked = read_benchmarks(bfcl_v4_wheel.parents[2], [sources["bfcl-v4"]])
    assert unchecked == ["BFCL_v4_format_sensitivity.json (not JSON Lines)"]
    published = json.loads((MIRROR / "contamination.json").read_text())["sets"]
    for name in ("seal_tools", "nestools", "nestful"):
        listed = {i for ids in published[f"{name}/train"]["ids"].values() for i in ids}
        found = set()
        present = set()
        for line in (MIRROR / name / "train.jsonl").open():
            record = json.loads(line)
            present.add(record["id"])
            said = (m["content"] for m in record["messages"] if m["role"] == "user")
            if any(benchmarks.overlap(text) for text in said):
                found.add(record["id"])
        assert found >= listed & present
        # ours also reads the wheel's unused question files, so it may find more
        assert len(found - listed) <= 3, sorted(found - listed)


def test_normalising_keeps_words_of_every_script() -> None:
    assert normalise("Grüße, 東京!") == ("grüße", "東京")
