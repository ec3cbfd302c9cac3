"""The poison corpus: every bad record ends in the quarantine under the rule that names its fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cahl_core.config import validate
from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.checks import RULES
from cahl_core.datasets.contamination import Benchmarks
from cahl_core.datasets.intake import Counts, Intake
from cahl_core.datasets.judge import Judge
from cahl_core.datasets.parallel import processes
from cahl_core.datasets.prompts import NoMeter
from cahl_core.datasets.store import LineStore

POISON = Path(__file__).parents[1] / "poison"
LIMITS = ReadLimits(record_chars=200_000)


@pytest.fixture
def take_in(tmp_path: Path) -> Iterator[Any]:
    """Judges the files of a folder; gives the intake, whose counts were reconciled."""
    with ExitStack() as stack:

        def run(folder: Path, workers: int = 1) -> Intake:
            stores = [
                stack.enter_context(LineStore(tmp_path / f"work-{workers}" / n)) for n in "abc"
            ]
            found = Intake(stores[0], stores[1], stores[2])
            found.counts["poison"] = Counts()
            with processes(Judge(NoMeter(), Benchmarks(), validate({})), workers) as judge:
                for judged, signatures in judge(READERS["tool-tasks"](folder, "poison", LIMITS)):
                    found.add(judged, signatures)
            found.reconcile()
            return found

        yield run


def folder_with(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in names:
        shutil.copyfile(POISON / name, folder / name)
    return folder


def test_every_poisoned_record_is_named_by_its_rule(take_in: Any, tmp_path: Path) -> None:
    lines = (POISON / "records.jsonl").read_text().splitlines()
    expected = [(r["id"], r["meta"]["expect"]) for r in map(json.loads, lines)]
    found = take_in(folder_with(tmp_path, "records.jsonl"))
    assert [(i, rule) for _, i, rule, _, _ in found.raw] == expected
    assert {rule for _, rule in expected if rule} <= set(RULES)


def test_lines_that_are_no_task_are_named_too(take_in: Any, tmp_path: Path) -> None:
    expected = (POISON / "lines.expected.txt").read_text().split()
    found = take_in(folder_with(tmp_path, "lines.jsonl"))
    assert [q.rule for q in found.quarantined] == expected
    assert all("lines.jsonl:" in q.detail for q in found.quarantined if q.rule != "malformed")


def test_a_truncated_gzip_gives_what_it_holds_and_says_that_it_ends_early(
    take_in: Any, tmp_path: Path
) -> None:
    found = take_in(folder_with(tmp_path, "truncated.jsonl.gz", "not_gzip.jsonl.gz"))
    assert [q.rule for q in found.quarantined] == ["unreadable_file", "unreadable_file"]
    assert 0 < found.counts["poison"].kept < 200


def test_texts_of_ten_megabytes_and_two_thousand_tools_are_set_aside(
    take_in: Any, tmp_path: Path
) -> None:
    good: dict[str, Any] = json.loads((POISON / "records.jsonl").read_text().splitlines()[0])
    long = {**good, "id": "long", "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    tool = good["tools"][0]["function"]
    many = [{**tool, "name": f"tool_{n}"} for n in range(2000)]
    short = [{"name": f"t{n}", "parameters": {"type": "object"}} for n in range(2000)]
    folder = tmp_path / "source"
    folder.mkdir()
    records = [long, {**good, "id": "many", "tools": many}, {**good, "id": "short", "tools": short}]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(r) for r in records))
    (folder / "b.json").write_text(json.dumps([long, good]))
    found = take_in(folder)
    rules = [rule for _, _, rule, _, _ in found.raw]
    assert rules == [
        "record_too_large",
        "record_too_large",
        "too_many_tools",
        "record_too_large",
        "",
    ]
    assert all(len(q.excerpt) <= 160 and len(q.detail) <= 400 for q in found.quarantined)


def test_several_processes_judge_alike(take_in: Any, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "records.jsonl", "lines.jsonl", "truncated.jsonl.gz")
    alone = take_in(folder)
    together = take_in(folder, workers=2)
    assert together.quarantined == alone.quarantined
    assert together.members == alone.members
    assert together.counts == alone.counts


def test_what_is_reported_can_be_written_as_utf_8(take_in: Any, tmp_path: Path) -> None:
    found = take_in(folder_with(tmp_path, "records.jsonl", "lines.jsonl"))
    for aside in found.quarantined:
        json.dumps(aside.to_json(), ensure_ascii=False).encode("utf-8")
