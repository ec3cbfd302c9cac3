"""The terminal conversation with a stand-in for the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cahl_core.config import Settings
from cahl_core.errors import DataError, PromptTooLongError
from cahl_core.serving import chat as module
from cahl_core.serving.openai_form import parse_request


class Agent:
    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.asked += requests
        if isinstance(self.answer, Exception):
            raise self.answer
        parse_request(requests[0])  # what is sent is always a well-formed request
        return [self.answer]


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ANSWER = {
    "plan": [{"task": "look \x1b[31m up", "tool": "f", "arguments": {"a": 1}}],
    "tool_calls": [CALL],
    "content": None,
    "outcome": "calls",
    "problem": None,
}


def _talk(
    monkeypatch: pytest.MonkeyPatch, agent: Agent, *lines: str, tools: Path | None = None
) -> None:
    typed = iter(lines)

    def read(*_: Any) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("rich.console.Console.input", read)
    monkeypatch.setattr(module, "load_agent", lambda *_: agent)
    module.chat(Path(), Settings(), tools=tools)


def test_plan_and_calls_are_shown_and_the_conversation_is_remembered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = Agent(ANSWER)
    _talk(monkeypatch, agent, "first", "second", "/new", "third")
    out = capsys.readouterr().out
    assert 'call f {"a": 1}' in out
    assert "\x1b[31m" not in out  # a model cannot steer the terminal
    texts = [[m["role"] for m in r["messages"]] for r in agent.asked]
    assert texts == [["user"], ["user", "assistant", "user"], ["user"]]
    assert agent.asked[1]["messages"][1]["tool_calls"] == [CALL]


def test_an_answer_without_a_plan_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = "calls: no </tool_call> (at character 9)"
    _talk(monkeypatch, Agent({**ANSWER, "plan": None, "problem": problem}), "first")
    out = capsys.readouterr().out
    assert 'call f {"a": 1}' in out
    assert problem in out
    assert "sub-task" not in out


def test_commands_are_not_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = Agent(ANSWER)
    _talk(monkeypatch, agent, "/tools", "/unknown", "", "/quit", "never read")
    assert agent.asked == []
    assert "get_weather(city, unit)" in capsys.readouterr().out


def test_a_request_that_is_too_long_is_said_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = Agent(PromptTooLongError("the prompt has 9999 tokens"))
    _talk(monkeypatch, agent, "long", "short")
    assert capsys.readouterr().out.count("9999 tokens") == 2
    assert [len(r["messages"]) for r in agent.asked] == [1, 1]


def test_the_example_tools_are_well_formed() -> None:
    request = {"messages": [{"role": "user", "content": "x"}], "tools": module.EXAMPLE_TOOLS}
    tools = parse_request(request).tools
    assert tools[0].properties["city"] == {"type": "string", "description": "Name of the city."}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        ("{", "not JSON"),
        ("{}", "top level is dict, must be a list"),
        ('[{"name": "f"}]', r"tools\[0\] 'f': no parameter schema"),
    ],
)
def test_a_bad_tools_file_is_an_error(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        module.read_tools(path)


def test_own_tools_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tools.json"
    tools = [{"name": "mine", "parameters": {"type": "object", "properties": {}}}]
    path.write_text(json.dumps(tools))
    agent = Agent(ANSWER)
    _talk(monkeypatch, agent, "hello", tools=path)
    assert agent.asked[0]["tools"] == tools
