"""Where calls run: recorded results, a tool's own refusal, and what is nobody's answer."""

from __future__ import annotations

from typing import Any

import pytest

from cahl_core.environments.base import (
    BrokenEnvironmentError,
    ToolError,
    load_environment,
    replay,
    run_calls,
)
from cahl_core.errors import ConfigError
from cahl_core.records import Message, ToolCall, ToolSpec, ToolTask

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ID = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
TASK = ToolTask(
    "t", "toy", (Message("user", "Book."),),
    (ToolSpec("find", "", CITY), ToolSpec("book", "", ID)),
    ((ToolCall("find", {"city": "Oslo"}),), (ToolCall("book", {"id": "$var1.id$"}),)),
    meta={
        "results": [{"id": 7}, {"ok": True}],
        "resolved": [{"city": "Oslo"}, {"id": 7}],
    },
)  # fmt: skip


def test_replay_answers_gold_calls_with_their_recorded_results() -> None:
    assert replay(TASK, ToolCall("find", {"city": " Oslo"})) == {"id": 7}
    assert replay(TASK, ToolCall("book", {"id": 7.0})) == {"ok": True}


def test_another_call_has_no_known_result() -> None:
    assert replay(TASK, ToolCall("book", {"id": 8})) is None


@pytest.mark.parametrize(
    "call", [ToolCall("find", {}), ToolCall("sing", {}), ToolCall("book", {"id": "7"})]
)
def test_a_call_outside_its_schema_is_refused_as_a_tool_would(call: ToolCall) -> None:
    result = run_calls(replay, TASK, [call])
    assert result["error"].startswith(f"invalid call of {call.name}; tools: find, book")


def test_one_call_gives_its_result_and_several_give_a_list() -> None:
    find, book = ToolCall("find", {"city": "Oslo"}), ToolCall("book", {"id": 7})
    assert run_calls(replay, TASK, [find]) == {"id": 7}
    assert run_calls(replay, TASK, [find, book]) == [{"id": 7}, {"ok": True}]
    assert run_calls(replay, TASK, []) is None


def _refuses(task: ToolTask, call: ToolCall) -> Any:
    raise ToolError("no rooms left")


def _breaks(task: ToolTask, call: ToolCall) -> Any:
    raise ConnectionError("host unreachable")


def test_a_tools_refusal_is_read_by_the_model_and_a_broken_tool_is_not() -> None:
    call = ToolCall("book", {"id": 7})
    assert run_calls(_refuses, TASK, [call]) == {"error": "no rooms left"}
    with pytest.raises(BrokenEnvironmentError, match="book of task 't': ConnectionError"):
        run_calls(_breaks, TASK, [call])


def test_functions_are_found_by_name_and_misspelt_ones_are_said() -> None:
    assert load_environment("replay") is replay
    assert load_environment("cahl_core.environments.base:replay") is replay
    for name in ("no_such_module:f", "json:no_such", "json", "json:__doc__"):
        with pytest.raises(ConfigError, match="module:function"):
            load_environment(name)
