"""A user's file of tasks: every format that validates is read, every fault has its sentence and place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import CONVERTERS, READERS
from cahl_core.datasets.checks import RULES
from cahl_core.errors import CahlError, ConfigError, DataError
from cahl_core.evaluation.chained import ChainedCalls
from cahl_core.evaluation.task_files import TaskFile, read_tasks
from cahl_core.evaluation.task_records import FIXES, FLAWS
from tests.unit.chained_tasks import idle, solved, trip

POISON = Path(__file__).parents[1] / "poison" / "records.jsonl"
# layouts of several files, read from a fetched source only
FOLDERS = {
    "sgd", "taskmaster", "api-bank-raw", "seal-tools", "tau-bench", "complexfuncbench", "nestful",
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
ASKED = [{"role": "user", "content": "Call f with one, please."}]


def record(record_id: str = "one", **changes: Any) -> dict[str, Any]:
    own = {
        "id": record_id,
        "source": "mine",
        "messages": [{"role": "user", "content": f"Call f for {record_id}."}],
        "tools": [TOOL],
        "answers": [[{"name": "f", "arguments": {"a": 1}}]],
    }
    return {k: v for k, v in (own | changes).items() if v is not ...}


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def read(path: Path, content: bytes | None = None, **options: Any) -> TaskFile:
    if content is not None:
        path.write_bytes(content)
    return read_tasks(path, PrepareSettings(), **options)


def refused(path: Path, content: bytes | None = None, **options: Any) -> CahlError:
    with pytest.raises(CahlError) as caught:
        read(path, content, **options)
    return caught.value


# --- what is read --------------------------------------------------------------------------------


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.dumps(record("one")), json.dumps(record("two"))]
    pq.write_table(pa.table({"id": ["one", "two"], "record": rows}), path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.jsonl", lines(record("one"), record("two"))),
        ("mine.json", json.dumps([record("one"), record("two")], indent=2).encode()),
        ("lines.json", lines(record("one"), record("two"))),
        ("list.jsonl", json.dumps([record("one"), record("two")]).encode()),
        ("mine.txt", lines(record("one"), record("two"))),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(record("one"), record("two"))),
        ("crlf.jsonl", lines(record("one"), record("two")).replace(b"\n", b"\r\n")),
        ("blank.jsonl", b"\n" + lines(record("one")) + b"\n\n" + lines(record("two"))),
        ("mine.jsonl.gz", gzip.compress(lines(record("one"), record("two")))),
        ("not_named_so.jsonl", gzip.compress(lines(record("one"), record("two")))),
        ("bom.gz", gzip.compress(b"\xef\xbb\xbf" + lines(record("one"), record("two")))),
    ],
)
def test_a_file_is_read_by_what_is_in_it(tmp_path: Path, name: str, content: bytes) -> None:
    found = read(tmp_path / name, content)
    assert [t.id for t in found.tasks] == ["one", "two"]
    assert (found.aside, found.format, found.records) == ((), "tool-tasks", 2)


@pytest.mark.parametrize("name", ["mine.parquet", "mine.jsonl"])
def test_parquet_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    _parquet(tmp_path / name)
    assert [t.id for t in read(tmp_path / name, format="tool-tasks").tasks] == ["one", "two"]


def test_one_object_over_many_lines_is_one_record(tmp_path: Path) -> None:
    found = read(tmp_path / "x.jsonl", json.dumps(record(), indent=2).encode())
    assert [t.id for t in found.tasks] == ["one"]


CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
FORMATS = {
    "openai-messages": {
        "messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALLED]}],
        "tools": [TOOL],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Call f with one, please."},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        ],
        "tools": json.dumps([TOOL["function"]]),
    },
    "xlam": {
        "id": 1,
        "query": "Call f with one, please.",
        "tools": json.dumps([TOOL["function"]]),
        "answers": '[{"name": "f", "arguments": {"a": 1}}]',
    },
    "tool-tasks": record(),
}


@pytest.mark.parametrize("format", FORMATS)
def test_other_formats_are_recognised_and_scored(tmp_path: Path, format: str) -> None:
    found = read(tmp_path / "x.jsonl", lines(FORMATS[format]))
    assert found.format == format
    (task,) = found.tasks
    assert [c.to_json() for c in task.calls] == [{"name": "f", "arguments": {"a": 1}}]
    assert solved([task])[3][0].correct == 1.0


def test_every_format_of_single_records_can_be_given() -> None:
    assert set(CONVERTERS) == set(READERS) - FOLDERS


def test_what_is_scored_has_a_gold_that_scores_full(tmp_path: Path) -> None:
    found = read(tmp_path / "x.jsonl", lines(trip().to_json(), idle().to_json()))
    assert [s.correct for s in solved(found.tasks)[3]] == [1.0, 1.0]


# --- what is refused -----------------------------------------------------------------------------

Case = tuple[str, bytes, type[CahlError], str, str]
CASES: list[Case] = [
    ("empty", b"", DataError, "is empty", "one JSON record per line"),
    ("white space", b" \n\t\n", DataError, "is empty", "one JSON record per line"),
    ("utf-16", "{}".encode("utf-16"), DataError, "UTF-16", "save it as UTF-8"),
    ("pickle", b"\x80\x04\x95", DataError, "never read", "JSON Lines"),
    ("zip", b"PK\x03\x04....", DataError, "ZIP", "JSON Lines"),
    ("words", b"hello\nworld\n", DataError, "x.jsonl:1: Expecting value", "JSON object per line"),
    ("numbers", b"1\n2\n", DataError, "they are int", "JSON object per line"),
    ("empty list", b"[]", DataError, "holds no record", "one JSON record per line"),
    ("unknown keys", b'{"prompt": "x"}\n', ConfigError, "keys of its first record: prompt", "tool-tasks"),
    ("wrapped", lines({"data": [record()]}), ConfigError, "cannot be told", "list under 'data'"),
    ("same id", lines(record("a"), record("b"), record("a")), DataError,
     "'a' at x.jsonl:1 and x.jsonl:3", "an id of its own"),
    ("nothing scored", lines(record(answers=[[{"name": "g", "arguments": {}}]])), DataError,
     "call 1: g is not offered; offered: f", "unknown_tool: offer the tool"),
    ("damaged gzip", gzip.compress(lines(record()))[:40], DataError, "damaged", "again"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_a_file_that_cannot_be_scored_is_refused_in_a_sentence(tmp_path: Path, case: Case) -> None:
    _, content, kind, what, hint = case
    error = refused(tmp_path / "x.jsonl", content)
    assert type(error) is kind
    assert what in error.what
    assert hint in error.hint
    assert str(tmp_path / "x.jsonl") in error.what


def test_a_path_without_a_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_bytes(lines(record()))
    error = refused(tmp_path / "task.jsonl")
    assert isinstance(error, ConfigError)
    assert "does not exist" in error.what
    assert "tasks.jsonl" in error.hint
    assert "nor does its folder" in refused(tmp_path / "no" / "x.jsonl").what
    folder = refused(tmp_path)
    assert "is a folder" in folder.what
    assert "tasks.jsonl" in folder.hint


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    error = refused(tmp_path / "x.jsonl", lines(record()), format="csv")
    assert "'csv'" in error.what
    assert "openai-messages" in error.hint


def test_a_name_that_promises_gzip_must_hold_it(tmp_path: Path) -> None:
    assert "not compressed" in refused(tmp_path / "x.jsonl.gz", lines(record())).what


# --- what is set aside ---------------------------------------------------------------------------

Change = dict[str, Any]
FAULTS: list[tuple[str, Change, str]] = [
    ("unknown_tool", {"answers": [[{"name": "ff", "arguments": {"a": 1}}]]}, "nearest: f"),
    (
        "unknown_argument",
        {"answers": [[{"name": "f", "arguments": {"a": 1, "b": 2}}]]},
        "it has: a",
    ),
    ("missing_argument", {"answers": [[{"name": "f", "arguments": {}}]]}, "call 1 (f): a"),
    (
        "wrong_type",
        {"answers": [[{"name": "f", "arguments": {"a": "1"}}]]},
        "not of type 'integer'",
    ),
    (
        "bad_reference",
        {"answers": [[{"name": "f", "arguments": {"a": "$var7.x$"}}]]},
        "none of the 1",
    ),
    ("tool_without_schema", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "'f'"),
    ("duplicate_tool", {"tools": [TOOL, TOOL]}, "f"),
    ("empty_request", {"messages": [{"role": "user", "content": " "}]}, "no user text"),
    ("malformed", {"answers": [{"name": "f"}]}, "list of steps"),
    ("no_gold", {"answers": ...}, "no field 'answers'"),
]


@pytest.mark.parametrize(("rule", "change", "detail"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_record_that_cannot_be_scored_is_set_aside_with_rule_and_line(
    tmp_path: Path, rule: str, change: Change, detail: str
) -> None:
    content = lines(record("sound"), record("faulty", **change))
    found = read(tmp_path / "x.jsonl", content)
    assert [t.id for t in found.tasks] == ["sound"]
    (aside,) = found.aside
    assert (aside.where, aside.id, aside.rule) == ("x.jsonl:2", "faulty", rule)
    assert detail in aside.detail
    assert any("x.jsonl:2" in note and rule in note for note in found.notes())
    error = refused(tmp_path / "x.jsonl", content, strict=True)
    assert "1 of 2 tasks cannot be scored (--strict)" in error.what
    assert "x.jsonl:2: faulty" in error.what
    assert FIXES[rule] in error.hint


def test_lines_that_are_no_json_are_set_aside_by_line(tmp_path: Path) -> None:
    content = lines(record()) + b"{broken\n" + b'{"a": "\xff"}\n' + b'{"a": NaN}\n'
    found = read(tmp_path / "x.jsonl", content)
    assert [(f.where, f.rule) for f in found.aside] == [
        ("x.jsonl:2", "not_json"), ("x.jsonl:3", "invalid_utf8"), ("x.jsonl:4", "not_json")
    ]  # fmt: skip


def test_limits_of_training_are_no_fault_here(tmp_path: Path) -> None:
    settings = PrepareSettings(max_steps=1, max_tools=1)
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(trip().to_json()))
    assert len(read_tasks(path, settings).tasks) == 1


def test_flaws_that_leave_a_record_scorable_are_noted(tmp_path: Path) -> None:
    odd = trip().to_json()
    odd["meta"]["resolved"][2] = {"near": "else", "day": "2026-05-01"}
    odd["messages"][0]["content"] += " \x07"
    twice = record("again", messages=record("one")["messages"])
    ungrounded = record("chosen", meta={"ungrounded": ["1.a"]})
    found = read(tmp_path / "x.jsonl", lines(record("one"), odd, twice, ungrounded))
    assert len(found.tasks) == 4
    assert {(f.where, f.rule) for f in found.flaws} == {
        ("x.jsonl:2", "control_characters"),
        ("x.jsonl:2", "resolved_differs"),
        ("x.jsonl:3", "duplicate"),
        ("x.jsonl:4", "ungrounded"),
    }
    read(tmp_path / "x.jsonl", strict=True)  # flaws are no faults
    assert "\x07" not in "".join(found.notes())


def test_a_fault_behind_a_flaw_is_still_found(tmp_path: Path) -> None:
    bad = record("bad", answers=[[{"name": "g", "arguments": {"a": "\x07"}}]])
    found = read(tmp_path / "x.jsonl", lines(record(), bad))
    assert [f.rule for f in found.aside] == ["unknown_tool"]
    assert found.flaws == ()


def test_a_conversation_that_ends_with_the_request_has_no_gold(tmp_path: Path) -> None:
    asked = {"messages": ASKED, "tools": [TOOL]}
    found = read(tmp_path / "x.jsonl", lines(FORMATS["openai-messages"], asked))
    assert [(f.where, f.rule) for f in found.aside] == [("x.jsonl:2", "no_gold")]
    answered = {"messages": [*ASKED, {"role": "assistant", "content": "No."}], "tools": [TOOL]}
    (task,) = read(tmp_path / "y.jsonl", lines(answered)).tasks
    assert (task.calls, task.meta["answer"]) == ((), "No.")


def test_what_preparation_rejects_for_its_gold_is_what_is_set_aside_here(tmp_path: Path) -> None:
    """Every rule of the poisoned records that makes gold unusable is found, and nothing is lost."""
    seen: set[str] = set()
    kept: list[dict[str, Any]] = []
    for text in POISON.read_text().splitlines():
        value = json.loads(text)
        if value["meta"]["expect"] != "duplicate_id":
            kept.append(value)
    found = read(tmp_path / "x.jsonl", lines(*kept))
    expected = {str(r["id"]): str(r["meta"]["expect"]) for r in kept}
    aside = {f.id: f.rule for f in found.aside}
    harmless = {"", "duplicate", "control_characters", "ungrounded", "long_result"}
    assert len(found.tasks) + len(found.aside) >= found.records == len(kept)
    for record_id, rule in expected.items():
        if rule not in harmless:
            assert aside.get(record_id) == rule
            seen.add(rule)
    assert len(seen) > 10


def test_every_rule_and_flaw_has_words() -> None:
    assert set(FIXES) <= {*RULES, "no_gold"}
    assert all(FLAWS.values())


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.just(b"{"), st.just(lines(record()))), max_size=4)
)
def test_no_bytes_end_in_anything_but_tasks_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_bytes(b"\n".join(parts))
    try:
        found = read_tasks(path, PrepareSettings())
    except CahlError as error:
        assert error.what
        assert error.hint
    else:
        assert len(found.tasks) + len(found.aside) == found.records


def test_a_benchmark_of_the_file_has_the_files_sum(tmp_path: Path) -> None:
    found = read(tmp_path / "x.jsonl", lines(record()))
    benchmark = ChainedCalls("tasks:x", "x", found.tasks, data={"x.jsonl": found.sha256})
    assert benchmark.about()["data"] == {"x.jsonl": found.sha256}
