"""`ToolTask` → JSON Lines → `ToolTask` loses nothing; every mirrored record is a task."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.adapters.tasks import convert
from cahl_core.datasets.raw import read_raw
from cahl_core.files import read_jsonl, write_jsonl
from cahl_core.records import TASK_KEYS, Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TASK_RECORDS = 16_909  # lines of ../shared/data/*/*.jsonl but those of search_corpus

# any text that UTF-8 can hold: lone surrogates are the only ones it cannot
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)
CALLS = st.builds(ToolCall, TEXTS, OBJECTS)
EXTRA = OBJECTS.map(
    lambda found: {k: v for k, v in found.items()
                   if k not in ("role", "content", "name", "reasoning", "tool_calls")}
)  # fmt: skip
TASKS = st.builds(
    ToolTask,
    id=TEXTS,
    source=TEXTS,
    messages=st.lists(
        st.builds(
            Message,
            st.sampled_from(["system", "user", "assistant", "tool"]),
            TEXTS,
            st.lists(CALLS, max_size=2).map(tuple),
            st.none() | TEXTS,
            st.none() | TEXTS,
            EXTRA,
        ),
        max_size=3,
    ).map(tuple),
    tools=st.lists(st.builds(ToolSpec, TEXTS, TEXTS, OBJECTS, st.none() | OBJECTS), max_size=2).map(
        tuple
    ),
    steps=st.lists(st.lists(CALLS, max_size=2).map(tuple), max_size=3).map(tuple),
    plan=st.none()
    | st.lists(st.builds(SubTask, TEXTS, st.none() | TEXTS, OBJECTS), max_size=2).map(
        lambda found: Plan(tuple(found))
    ),
    meta=OBJECTS,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tasks=st.lists(TASKS, max_size=3))
def test_a_task_survives_a_jsonl_file_and_the_raw_reader(tmp_path, tasks):
    path = tmp_path / "tasks.jsonl"
    write_jsonl(path, (task.to_json() for task in tasks))
    assert [ToolTask.from_json(record) for record in read_jsonl(path)] == tasks
    raw = [r.value for r in read_raw(tmp_path, 200_000, ("tasks.jsonl",))]
    assert [ToolTask.from_json(record) for record in raw] == tasks


@settings(max_examples=200)
@given(task=TASKS)
def test_our_own_records_pass_the_adapter_as_they_are(task):
    record = convert(task.to_json(), task.source, "x-0")
    assert ToolTask.from_json(record) == task


def mirrored():
    files = sorted(path for path in SHARED.glob("*/*.jsonl") if path.parent.name != "search_corpus")
    if not files:
        pytest.skip(f"{SHARED} holds no records: they are checked where the mirror of the data is")
    for path in files:
        yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def translated(record):
    """What `tasks.convert` documents, written once more: the record as it has to come out."""
    record = json.loads(json.dumps(record))
    meta = record["meta"]
    for old, new in (("results_pruned", "results"), ("plan", "plan_texts")):
        if old in meta:
            meta[new] = meta.pop(old)
    if "plan" in record:
        meta["plan_texts"] = record.pop("plan")
    if "answers_resolved" in meta:
        steps = meta.pop("answers_resolved")
        meta["resolved"] = [call["arguments"] for step in steps for call in step]
    if "ungrounded_args" in meta:
        meta["ungrounded"] = [f"{call}.{name}" for call, name in meta.pop("ungrounded_args")]
    if not record["answers"] and meta.get("reference_response"):
        meta["answer"] = meta["reference_response"]
    if not record["answers"] and not record["tools"]:
        meta["derivation"] = "qa"
    return record


def test_every_mirrored_record_is_a_task_and_comes_back_as_it_was():
    count = 0
    for record in mirrored():
        count += 1
        found = convert(json.loads(json.dumps(record)), record["source"], "x-0")
        task = ToolTask.from_json(found)
        assert ToolTask.from_json(json.loads(json.dumps(task.to_json()))) == task
        wanted = translated(record)
        again = task.to_json()
        results, expected = again["meta"].pop("results", None), wanted["meta"].pop("results", None)
        assert again == wanted, record["id"]
        for ours, theirs in zip(results or [], expected or [], strict=True):
            same = ours == theirs
            assert same or (isinstance(theirs, str) and not isinstance(ours, str)), record["id"]
    assert count == TASK_RECORDS


def test_reading_adds_what_follows_from_the_calls_and_cuts_results(tmp_path):
    folder = SHARED / "complexfuncbench"
    if not folder.exists():
        pytest.skip(f"{folder} is not here: the cut is checked where the mirror of the data is")
    (tmp_path / "train.jsonl").symlink_to(folder / "train.jsonl")
    for record in READERS["tool-tasks"](tmp_path, "cfb", ReadLimits(result_chars=320)):
        task = ToolTask.from_json(record)
        assert len(task.results) == len(task.calls) == len(task.meta["resolved"])
        assert task.meta["origin"] == "complexfuncbench"
        for call, values in zip(task.calls, task.meta["resolved"], strict=True):
            assert call.arguments.keys() == values.keys()


def test_what_the_form_has_no_field_for_goes_to_meta():
    record = {
        "id": 7,
        "source": "elsewhere",
        "split": "train",
        "malformed": "no",
        "messages": [{"role": "user", "content": "hi", "lang": "en"}],
        "tools": [{"type": "function", "strict": True,
                   "function": {"name": "f", "description": "", "parameters": {}, "cost": 2}}],
        "answers": [],
        "meta": {"origin": {"file": "a"}},
    }  # fmt: skip
    found = convert(record, "mine", "mine-0")
    assert set(found) <= {*TASK_KEYS, "split"}
    task = ToolTask.from_json(found)
    assert (task.id, task.source) == ("7", "mine")
    assert task.messages[0].extra == {"lang": "en"}
    assert task.meta == {
        "origin": {"file": "a"},
        "origin_source": "elsewhere",
        "source_malformed": "no",
        "split": "train",
        "tool_extra": {"f": {"cost": 2, "strict": True}},
    }
