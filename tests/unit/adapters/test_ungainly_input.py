"""Whatever a file holds, an adapter gives one record per value, a task or the reason it is none."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.adapters.base import per_record
from cahl_core.datasets.checks import parse
from cahl_core.files import dump_json
from cahl_core.records import ToolTask

KEYS = [
    "messages", "tools", "functions", "role", "content", "tool_calls", "function", "name",
    "arguments", "conversations", "from", "value", "system", "chat", "query", "answers", "question",
    "answer", "Question", "instruction", "input", "output", "user", "other", "prompt", "api", "call",
    "task", "api_name", "parameters", "responses", "calling", "id", "source", "meta", "plan",
    "results", "deps", "levels", "type", "properties", "required", "text", "turns", "frames",
    "services", "utterances", "annotations", "conversation_id", "dialogue_id", "speaker", "selected",
    "answers_resolved", "ungrounded_args", "implicit_deps", "reward_model", "ground_truth",
]  # fmt: skip
TEXTS = st.sampled_from(
    ["user", "assistant", "tool", "human", "gpt", "function_call", "system", "[]", "{}", "[f(a=1)]",
     '{"name": "f", "arguments": "{}"}', "API_call_0", "$var1.a$", "<functioncall> {", "string",
     "USER: hi ASSISTANT: <functioncall> {\"name\": \"f\", \"arguments\": '{'}", "you can use: [",
     "<tool_call>x</tool_call>", "1. Name: f\nDescription: d\nParameters: {", "api_list = [}", "",
     '[{"name": "f", "parameters": {"a": "int"}}]', "\x00\u202e", "null"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | TEXTS | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)
FORMATS = {  # file each reader takes
    **dict.fromkeys(
        ["openai-messages", "sharegpt", "toolace", "xlam", "glaive", "apigen-mt", "toolrl",
         "taskmaster", "qa", "nestools", "mtu-bench", "tool-tasks"], "a.jsonl"
    ),
    "seal-tools": "dev.jsonl",
}  # fmt: skip


def one_of_each(format_):
    """A record of the format, so that random changes reach the depths of its adapter."""
    call = {"name": "f", "arguments": {"a": "x"}}
    tool = {"name": "f", "description": "d", "parameters": {"a": {"type": "str"}}}
    api = {"api_name": "f", "api_description": "d", "parameters": {"a": {"type": "str"}},
           "required": ["a"], "responses": {"b": {"type": "int"}}}  # fmt: skip
    entry = {"api_name": "f", "parameters": {"a": "API_call_0"}, "responses": ["API_call_0"]}
    talk = [{"from": "user", "value": "hi"}, {"from": "assistant", "value": '[f(a="x")]'}]
    return {
        "openai-messages": {"messages": [{"role": "user", "content": "hi"},
                                         {"role": "assistant", "tool_calls": [call]}],
                            "tools": [tool]},
        "sharegpt": {"conversations": [{"from": "human", "value": "hi"},
                                       {"from": "function_call", "value": json.dumps(call)}],
                     "tools": json.dumps([tool])},
        "toolace": {"system": json.dumps([tool]), "conversations": talk},
        "xlam": {"query": "q", "tools": json.dumps([tool]), "answers": json.dumps([call])},
        "glaive": {"system": json.dumps(tool), "chat": "USER: x\nASSISTANT: <functioncall> "
                                                     + json.dumps(call)},
        "toolrl": {"system": "1. Name: f\nDescription: d\nParameters: {}", "user": "<user>x</user>",
                   "answer": [call]},
        "taskmaster": {"conversation_id": "c", "utterances": [
            {"speaker": "user", "text": "x", "annotations": [
                {"name": "api_call", "value": "f", "context": "api_call_0"},
                {"name": "request", "value": "{}", "context": "api_call_0"}]}]},
        "qa": {"question": "q", "answer": "a"},
        "nestools": {"test_id": 1, "task": "t", "api": [api], "call": [entry]},
        "seal-tools": {"id": "dev-easy-1", "conversations": [
            {"value": f'api_list = {[api]}\ntask_instruction = "q"\nOutput:\n'},
            {"value": repr([entry])}]},
        "mtu-bench": {"id": "S-S_0", "question": "you can use: [{'name': 'f'}]\nUser: x",
                      "answer": {"f": {"a": "x"}}},
        "tool-tasks": {"id": "i", "source": "s", "messages": [], "tools": [tool],
                       "answers": [[call]], "meta": {"results": ["{'a': 1}"]}},
    }[format_ if format_ != "apigen-mt" else "sharegpt"]  # fmt: skip


def changed(value, path, replacement):
    """``value`` with what stands at a random place replaced."""
    if not path or not isinstance(value, list | dict) or not value:
        return replacement
    if isinstance(value, list):
        index = path[0] % len(value)
        part = changed(value[index], path[1:], replacement)
        return [*value[:index], part, *value[index + 1 :]]
    key = sorted(value)[path[0] % len(value)]
    return {**value, key: changed(value[key], path[1:], replacement)}


@pytest.mark.parametrize("format_", sorted(FORMATS))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_gives_one_record_that_can_be_written_and_judged(tmp_path, format_, data):
    whole = data.draw(VALUES)
    path = data.draw(st.lists(st.integers(0, 9), max_size=6))
    values = [whole, changed(one_of_each(format_), path, data.draw(VALUES)), one_of_each(format_)]
    text = "".join(json.dumps(value) + "\n" for value in values)
    (tmp_path / FORMATS[format_]).write_text(text, encoding="utf-8")
    found = list(READERS[format_](tmp_path, "src", ReadLimits()))
    assert len(found) == len(values)
    assert bool(found[2]["answers"]) == (format_ != "qa")
    for record in found:
        assert isinstance(record["id"], str) and record["source"] == "src"
        dump_json(record)
        judged = parse(record, "x")
        if isinstance(judged, ToolTask):
            assert ToolTask.from_json(judged.to_json()) == judged
        else:
            assert judged[0] in ("malformed", "tool_without_schema") and judged[1]


@pytest.mark.parametrize("format_", sorted(FORMATS))
def test_files_that_cannot_be_read_are_records_with_a_rule(tmp_path, format_):
    name = FORMATS[format_]
    good = json.dumps(one_of_each(format_)).encode() + b"\n"
    (tmp_path / name).write_bytes(
        good + b'{"a": \xff}\n{"a": NaN}\n{"a": 1, "a": 2}\n' + b"[" * 5000
    )
    rules = [r.get("rule") for r in READERS[format_](tmp_path, "src", ReadLimits())]
    assert rules == [None, "invalid_utf8", "not_json", "not_json", "not_json"]
    big = json.dumps({"messages": "y" * 5000}).encode() + b"\n"
    (tmp_path / name).write_bytes(big)
    limits = ReadLimits(record_chars=100)
    assert [r["rule"] for r in READERS[format_](tmp_path, "src", limits)] == ["record_too_large"]


def test_truncated_gzip_keeps_what_was_readable(tmp_path):
    line = json.dumps(one_of_each("qa")) + "\n"
    whole = gzip.compress(line.encode() * 2000, mtime=0)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) - 20])
    found = list(READERS["qa"](tmp_path, "src", ReadLimits()))
    assert found[-1]["rule"] == "unreadable_file"
    assert all("answers" in record for record in found[:-1])


def test_annotated_sources_without_their_form(tmp_path):
    (tmp_path / "schema.json").write_text("[]")
    dialogue = {"dialogue_id": "1_0", "services": ["Nowhere_1"], "turns": []}
    (tmp_path / "dialogues_001.json").write_text(json.dumps([dialogue, 5, {"turns": None}]))
    found = list(READERS["sgd"](tmp_path, "sgd", ReadLimits()))
    assert [r["rule"] for r in found] == ["malformed"] * 3
    assert "Nowhere_1" in found[0]["malformed"]


def test_python_task_files_are_never_run(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "t.py").write_text(
        "def get_info():\n    return {'type': 'function', 'function': {'name': 'f', 'parameters': {}}}\n"
    )
    marker = tmp_path / "ran"
    (tmp_path / "tasks_test.py").write_text(
        f"open({str(marker)!r}, 'w')\n"
        "TASKS_TEST = [\n"
        "  Task(instruction='a', user_id='u', actions=[Action(name='f', kwargs={'x': 1})]),\n"
        f"  Task(instruction=open({str(marker)!r}, 'w'), actions=[]),\n"
        "  Task(instruction='b', actions=[Action(name='f', kwargs=dict(x=1))]),\n"
        "  make_task(),\n"
        "]\n"
    )
    found = list(READERS["tau-bench"](tmp_path, "tau", ReadLimits()))
    assert [r["id"] for r in found] == [f"tau_retail_test-{i}" for i in range(4)]
    assert found[0]["answers"] == [[{"name": "f", "arguments": {"x": 1}}]]
    assert [r.get("rule") for r in found] == [None, "malformed", "malformed", "malformed"]
    assert not marker.exists()
    (tmp_path / "tasks_test.py").write_text("TASKS_TEST = [")
    assert [
        "SyntaxError" in r["malformed"] for r in READERS["tau-bench"](tmp_path, "t", ReadLimits())
    ]


def test_ids_count_from_0_in_each_known_file_and_over_the_source_elsewhere(tmp_path):
    def name(file, index):
        return f"known-{index}" if file == "b.jsonl" else None

    for file in ("a.jsonl", "b.jsonl"):
        (tmp_path / file).write_text("1\n2\n")
    read = per_record(lambda value, source, record_id: {"id": record_id}, identify=name)
    ids = [r["id"] for r in read(tmp_path, "s", ReadLimits())]
    assert ids == ["s-0", "s-1", "known-0", "known-1"]
