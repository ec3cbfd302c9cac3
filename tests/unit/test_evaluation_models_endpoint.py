"""Models behind servers: what is sent, what is made of the answers, and what servers do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from chat_server import Answer, Body, ChatServer, called, chat_server
from chat_styles import CHATML, IM, build
from hypothesis import given
from hypothesis import strategies as st
from rollout_servers import free_port
from small_project import BOOK, FIND, small_settings, small_task

from cahl_core.config import Settings
from cahl_core.errors import ConfigError, EvaluationError, RolloutServerError
from cahl_core.evaluation.endpoint import Reply
from cahl_core.evaluation.endpoint_agent import EndpointAgent, EndpointModel, closed
from cahl_core.evaluation.endpoint_native import reply_text, wire_messages, wire_names
from cahl_core.evaluation.models import TextSolver, open_model, parse_model
from cahl_core.protocol.parsing import Execution, ParseFailure, parse_execution
from cahl_core.protocol.prompts import executor_prompt_text, low_only_prompt, planner_prompt_text
from cahl_core.protocol.templates import conversation
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec
from cahl_core.serving.agent import AgentResult
from cahl_core.serving.results import Request

CALL = '<tool_call>{"name": "find", "arguments": {"city": "Rome"}}</tool_call>'
STEP = '{"task": "t", "tool": "find", "arguments": {"city": "Rome"}}'
TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 100 tokens. However, you requested 150.",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
    }
}


def _settings(temperature: float = 0.0) -> Settings:
    settings = small_settings()
    return settings.model_copy(
        update={"evaluate": settings.evaluate.model_copy(update={"temperature": temperature})}
    )


def _open(server: ChatServer | str, options: str, temperature: float = 0.0) -> EndpointModel:
    url = server if isinstance(server, str) else server.url
    model = open_model(parse_model(f"{url}?{options}"), _settings(temperature), "root")  # type: ignore[arg-type]
    assert isinstance(model, EndpointModel)
    return model


def _requests(count: int = 1, tools: Sequence[ToolSpec] = (FIND, BOOK)) -> list[Request]:
    return [
        Request((Message("user", f"wish {n}."),), tuple(tools), seed=str(n)) for n in range(count)
    ]


def _one(
    answer: Answer, options: str = "model=m", tools: Sequence[ToolSpec] = (FIND,)
) -> AgentResult:
    with chat_server(lambda body: answer) as server:
        (result,) = _open(server, options).solver().run(_requests(tools=tools))
    assert AgentResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    return result


def _wish(body: Body) -> int:
    """The number of the request that a body is about."""
    text = body["messages"][-1]["content"]
    return int(text.removeprefix("wish ").rstrip("."))


# --- native tool calling -------------------------------------------------------------------------


def test_tools_are_sent_and_their_calls_come_back_under_their_own_names() -> None:
    tools = [ToolSpec("math.add", "Adds.", {"type": "dict", "properties": {"a": {"type": "float"}}}),
             ToolSpec("math_add", "Adds too.", {"type": "object", "properties": {}})]  # fmt: skip
    with chat_server(lambda body: called(("math_add_2", {}), ("math_add", {"a": 1.5}))) as server:
        model = _open(server, "model=m")
        (result,) = model.solver().run(_requests(tools=tools))
        (body,) = server.bodies
    assert result.calls == (ToolCall("math_add", {}), ToolCall("math.add", {"a": 1.5}))
    assert (result.outcome, result.form, model.form) == ("calls", "low_only", "low_only")
    sent = [tool["function"] for tool in body["tools"]]
    assert [f["name"] for f in sent] == ["math_add", "math_add_2"]
    assert sent[0]["parameters"]["type"] == "object"
    assert sent[0]["parameters"]["properties"]["a"]["type"] == "number"
    assert body["messages"] == [{"role": "user", "content": "wish 0."}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 256 + 192)
    assert "stop" not in body and "seed" not in body


@pytest.mark.parametrize(
    ("answer", "outcome", "calls"),
    [
        (called(("find", {"city": "Oslo"})), "calls", 1),
        (called(("find", {}), ("find", {})), "calls", 2),
        (called(("none_of_them", {})), "calls", 1),
        (called(("find", '{"city": ')), "execution_failure", 0),
        (called(("find", "")), "execution_failure", 0),
        (called(("find", "[1]")), "execution_failure", 0),
        (called(("find", '{"a": NaN}')), "execution_failure", 0),
        (called(("find", '{"a": 1, "a": 2}')), "execution_failure", 0),
        (called(("find", {}), ("find", "{}}</tool_call><tool_call>{")), "execution_failure", 0),
        ({"content": None, "tool_calls": [{"function": None}]}, "execution_failure", 0),
        ({"content": None, "tool_calls": ["find"]}, "execution_failure", 0),
        ({"content": "I cannot do that."}, "abstained", 0),
        ({"content": CALL}, "abstained", 0),
        ({"content": None}, "abstained", 0),
        ({"content": "I was cut", "_finish_reason": "length"}, "execution_failure", 0),
    ],
)
def test_what_a_native_answer_leads_to(answer: Answer, outcome: str, calls: int) -> None:
    result = _one(answer)
    assert (result.outcome, len(result.calls)) == (outcome, calls)


def test_words_beside_calls_are_kept_as_thinking_and_words_alone_as_the_response() -> None:
    spoken = called(("find", {"city": "Rome"})) | {
        "content": "I look. </think>",
        "reasoning": "Hm.",
    }
    (step,) = _one(spoken).steps
    assert isinstance(step.execution, Execution)
    assert step.execution.think == "Hm.\nI look. < /think>"
    assert _one({"content": " No <tool_call>. "}).response == "No < tool_call>."


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
TAGGY = st.lists(
    st.sampled_from(["</tool_call>", "<tool_call>", "{", "}", '"', "\\", "</think>", "é", "\ud800", "a"]),
    max_size=8,
).map("".join)  # fmt: skip


@given(TAGGY, st.dictionaries(TAGGY, json_values | TAGGY, max_size=3), TAGGY)
def test_any_call_is_read_back_and_nothing_in_it_makes_another(
    name: str, arguments: dict[str, Any], content: str
) -> None:
    reply = _reply(content, calls=(_made(name, json.dumps(arguments)),))
    read = parse_execution(reply_text(reply, {}))
    if "\ud800" in name + json.dumps(arguments, ensure_ascii=False):
        assert isinstance(read, ParseFailure) or len(read.calls) == 1
    else:
        assert isinstance(read, Execution)
        assert read.calls == (ToolCall(name, arguments),)


@given(TAGGY, TAGGY, TAGGY)
def test_arguments_that_are_no_object_never_become_a_call(
    name: str, given_: str, said: str
) -> None:
    text = reply_text(_reply(said, calls=(_made(name, given_),)), {})
    read = parse_execution(text)
    text.encode()
    if given_ not in ("{}",):
        assert isinstance(read, ParseFailure)
    alone = parse_execution(reply_text(_reply(said), {}))
    assert isinstance(alone, Execution) and not alone.calls


def _reply(content: str, calls: tuple[Any, ...] = (), **other: Any) -> Reply:
    fields = {"reasoning": "", "finish": "stop", "ended_by": "?"} | other
    return Reply(content, tool_calls=calls, prompt_tokens=0, completion_tokens=0, **fields)


def _made(name: str, arguments: str) -> Any:
    return {"function": {"name": name, "arguments": arguments}}


def test_earlier_calls_and_their_results_are_sent_in_openais_form() -> None:
    a, b = ToolCall("x.find", {"q": 1}), ToolCall("book", {})
    talk = [
        Message("system", "Rules."),
        Message("user", "Go."),
        Message("assistant", "", (a, b)),
        Message("tool", "B", name="book"),
        Message("tool", "A"),
        Message("tool", "of nothing"),
        Message("user", "On."),
    ]
    sent = wire_messages(talk, {"x.find": "x_find"})
    assert [m["role"] for m in sent] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
        "user",
    ]
    made = sent[2]["tool_calls"]
    assert [c["function"]["name"] for c in made] == ["x_find", "book"]
    assert json.loads(made[0]["function"]["arguments"]) == {"q": 1}
    assert [m["tool_call_id"] for m in sent[3:5]] == [made[1]["id"], made[0]["id"]]
    assert sent[5]["content"] == "<tool_response>\nof nothing\n</tool_response>"


@given(st.lists(st.text(alphabet="ab._é", max_size=70), max_size=6, unique=True))
def test_names_on_the_wire_are_allowed_and_distinct(names: list[str]) -> None:
    wire = wire_names([ToolSpec(name, "", {}) for name in names])
    assert len(set(wire.values())) == len(names)
    assert all(0 < len(w) <= 64 and w.isascii() and "." not in w for w in wire.values())


# --- our own prompts ------------------------------------------------------------------------------


def _planned(body: Body) -> Answer:
    if "You plan tool use" in body["messages"][0]["content"]:
        return {"content": f"<plan>[{STEP}, {STEP}]"}  # the stop text is stripped
    return {"content": CALL.removesuffix("</tool_call>")}


def test_planner_and_executor_are_asked_as_chat_and_results_reach_what_follows() -> None:
    def environment(plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        return {"id": number}

    task = small_task(0)
    request = Request(task.messages, task.tools, environment, "s")
    with chat_server(_planned) as server:
        (result,) = _open(server, "model=m&form=hierarchical", 0.7).solver().run([request])
        plan, first, second = server.bodies
    assert (result.outcome, len(result.calls)) == ("calls", 2)
    assert (result.prompt_tokens, result.completion_tokens) == (30, 9)
    assert (plan["stop"], first["stop"]) == (["</plan>"], ["</tool_call>", "</response>"])
    assert (plan["max_tokens"], first["max_tokens"]) == (256, 192)
    assert (plan["temperature"], plan["seed"] == first["seed"]) == (0.7, False)
    assert 'Result 1 (find): {"id": 0}' in second["messages"][1]["content"]
    assert "wish" not in json.dumps([first, second])


def test_the_messages_of_each_form_are_those_of_local_prompts_before_the_template() -> None:
    tokenizer = build(IM, CHATML)
    talk = (Message("system", "Be kind."), Message("user", "Go </plan>."), Message("tool", "42"))
    request = Request(talk, (FIND,), plan=Plan((SubTask("t", "find", {"city": "x"}),)))
    sent: dict[str, str] = {}
    for form in ("low_only", "hierarchical"):
        for one in (request, Request(talk, (FIND,))):
            with chat_server(lambda body: {"content": ""}) as server:
                _open(server, f"model=m&form={form}").solver().run([one])
                kind = f"{form} {one.plan is not None}"
                sent[kind] = conversation(tokenizer, server.bodies[0]["messages"])
    low = tokenizer.decode(low_only_prompt(tokenizer, talk, [FIND], "compact"))
    sub_task = SubTask("t", "find", {"city": "x"})
    assert sent == {
        "low_only True": low,
        "low_only False": low,
        "hierarchical False": planner_prompt_text(tokenizer, talk, [FIND], "compact"),
        "hierarchical True": executor_prompt_text(tokenizer, sub_task, [FIND], [], "compact"),
    }


@pytest.mark.parametrize(
    ("content", "finish", "ended_by", "text"),
    [
        ("<plan>[]", "stop", "?", "<plan>[]</plan>"),
        ("<plan>[]</plan>", "stop", "?", "<plan>[]</plan>"),
        ("<plan>[]", "stop", "</plan>", "<plan>[]</plan>"),
        ("<plan>[]</plan>", "stop", "</plan>", "<plan>[]</plan>"),
        ("<plan>[]", "stop", None, "<plan>[]"),
        ("<plan>[]", "length", "?", "<plan>[]"),
        ("Sure!", "stop", "?", "Sure!"),
        ("", "stop", "?", ""),
        ("<plan>[]</plan> and <plan>", "stop", "?", "<plan>[]</plan> and <plan></plan>"),
    ],
)
def test_the_tag_that_stopped_a_text_is_there_again(
    content: str, finish: str, ended_by: str | None, text: str
) -> None:
    assert closed(_reply(content, finish=finish, ended_by=ended_by), ["</plan>"]) == text


@pytest.mark.parametrize(
    ("key", "kept"), [("_stop_reason", False), ("_matched_stop", False), ("_x", True)]
)
def test_what_the_server_says_of_the_end_is_believed(key: str, kept: bool) -> None:
    result = _one({"content": "<response>No", key: 2}, "model=m&form=low_only")
    assert (result.outcome == "abstained") == kept


def test_plain_conversations_are_sent_as_they_are() -> None:
    def respond(body: Body) -> Answer:
        return (
            (400, TOO_LONG) if "long" in str(body) else {"content": [{"type": "text", "text": "x"}]}
        )

    with chat_server(respond) as server:
        solver = _open(server, "model=m").solver()
        assert isinstance(solver, TextSolver)
        talk = [Message("system", "<tool_call>"), Message("user", "hi")]
        assert solver.complete([talk, [Message("user", "long")]], 9, ["a", "b"]) == ["x", None]
        first = next(b for b in server.bodies if "long" not in str(b))
    assert first["messages"] == [
        {"role": "system", "content": "<tool_call>"}, {"role": "user", "content": "hi"}
    ]  # fmt: skip
    assert first["max_tokens"] == 9 and "tools" not in first


# --- servers that do wrong -------------------------------------------------------------------------


def _then(*first: Answer) -> Callable[[Body], Answer]:
    """Answers with ``first``, one after the other, and then with a call."""
    left = list(first)
    return lambda body: left.pop(0) if left else called(("find", {"city": "Rome"}))


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"error": {"message": "slow down"}}), (500, "oops"), (503, b""), (408, {}), "drop",
        b"<html>", b'{"choices": [', b"{}", b'{"choices": []}', b'{"choices": [7]}', b"[1]",
        b'{"choices": [{"message": {"tool_calls": {"a": 1}}}]}',
    ],
)  # fmt: skip
def test_an_answer_that_does_not_come_is_asked_for_again(fault: Answer) -> None:
    with chat_server(_then(fault, fault)) as server:
        (result,) = _open(server, "model=m").solver().run(_requests())
        assert len(server.bodies) == 3
        assert server.bodies[0] == server.bodies[2]
    assert result.calls == (ToolCall("find", {"city": "Rome"}),)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens. However, your messages use 9000.",
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "the request exceeds the available context size. try increasing the context size",
        "prompt is too long: 9000 tokens > 8192 maximum",
        "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
    ],
)
def test_a_prompt_that_the_server_calls_too_long_is_an_outcome_and_the_others_go_on(
    words: str,
) -> None:
    def respond(body: Body) -> Answer:
        return (400, {"error": {"message": words}}) if _wish(body) == 1 else called(("find", {}))

    with chat_server(respond) as server:
        results = _open(server, "model=m").solver().run(_requests(3))
    assert [r.outcome for r in results] == ["calls", "prompt_too_long", "calls"]
    assert words[:30] in (results[1].too_long or "")


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 448",
        "'stop' is not supported",
        "tools[0]: description is too long",
    ],
)
def test_any_other_refusal_ends_the_run_with_the_servers_words(words: str) -> None:
    with (
        chat_server(lambda body: (400, {"error": {"message": words}})) as server,
        pytest.raises(EvaluationError, match="answered 400") as caught,
    ):
        _open(server, "model=m").solver().run(_requests())
    assert words in str(caught.value)


def test_fields_that_a_server_refuses_can_be_left_out_or_renamed() -> None:
    options = (
        "model=m&form=low_only&omit=stop,temperature,seed&max_tokens_field=max_completion_tokens"
    )
    with chat_server(lambda body: {"content": CALL}) as server:
        _open(server, options + "&thinking=off", 0.5).solver().run(_requests())
        (body,) = server.bodies
    assert set(body) == {"model", "messages", "max_completion_tokens", "chat_template_kwargs"}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_that_stays_away_ends_the_run_and_what_was_finished_was_reported() -> None:
    def respond(body: Body) -> Answer:
        return (503, {}) if _wish(body) >= 4 else called(("find", {}))

    told: list[int] = []
    with (
        chat_server(respond) as server,
        pytest.raises(
            RolloutServerError, match=r"no answer after(?s:.*)run the same command again"
        ),
    ):
        _open(server, "model=m&give_up_after=1&concurrency=2").solver().run(
            _requests(9), lambda i, result: told.append(i)
        )
    assert sorted(told) == [0, 1, 2, 3]
    assert {_wish(body) for body in server.bodies} <= set(range(6))  # nothing was begun after that


def test_the_key_is_sent_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    with chat_server(lambda body: called(("find", {}))) as server:
        model = _open(server, "model=m&key_env=SOME_KEY")
        model.solver().run(_requests())
        assert server.keys == ["Bearer sk-secret"]
        assert "sk-secret" not in json.dumps([model.facts(), server.bodies])
        key = model.key()
        server.respond = lambda body: (401, {"error": {"message": "Incorrect key: sk-secret."}})
        with pytest.raises(EvaluationError, match="answered 401: Incorrect key: …") as caught:
            model.solver().run(_requests())
    assert "SOME_KEY" in str(caught.value) and "sk-secret" not in repr(caught.value.__dict__)
    monkeypatch.setenv("SOME_KEY", "another")
    assert _open(server, "model=m&key_env=SOME_KEY").key() == key
    monkeypatch.setenv("SOME_KEY", "two words")
    with pytest.raises(ConfigError, match=r"SOME_KEY(?s:.*)spaces"):
        _open(server, "model=m&key_env=SOME_KEY")
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="SOME_KEY"):
        _open(server, "model=m&key_env=SOME_KEY")


# --- many at a time --------------------------------------------------------------------------------


def test_as_many_requests_as_allowed_are_under_way_and_each_result_is_told_here_at_once() -> None:
    told: list[tuple[int, str]] = []
    with chat_server(lambda body: called(("find", {"city": str(_wish(body))}))) as server:
        server.pause = 0.02
        results = (
            _open(server, "model=m&concurrency=3")
            .solver()
            .run(_requests(20), lambda i, r: told.append((i, threading.current_thread().name)))
        )
        assert server.most == 3
        assert len(server.bodies) == 20
    assert [r.calls[0].arguments["city"] for r in results] == [str(n) for n in range(20)]
    assert sorted(i for i, _ in told) == list(range(20))
    assert {name for _, name in told} == {threading.current_thread().name}


def test_environments_are_asked_one_at_a_time_and_their_errors_are_not_the_models() -> None:
    lock = threading.Lock()

    def environment(plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        assert lock.acquire(blocking=False), "two at once"
        threading.Event().wait(0.01)
        lock.release()
        return "done"

    def broken(plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        raise EvaluationError("the simulator died")

    with chat_server(lambda body: called(("find", {}))) as server:
        solver: EndpointAgent = _open(server, "model=m&concurrency=8").solver()
        asked = [Request(r.messages, r.tools, environment, r.seed) for r in _requests(12)]
        assert {r.steps[0].result for r in solver.run(asked)} == {"done"}
        with pytest.raises(EvaluationError, match="the simulator died"):
            solver.run([Request(r.messages, r.tools, broken) for r in _requests(2)])


def test_a_server_killed_and_started_again_loses_and_doubles_nothing() -> None:
    port, told = free_port(), list[int]()
    first, answered = (
        ChatServer(lambda body: called(("find", {"city": str(_wish(body))})), port),
        [],
    )

    def fragile(body: Body) -> Answer:
        answered.append(_wish(body))
        if len(answered) > 6:
            threading.Thread(target=first.close, daemon=True).start()
            return "drop"
        return called(("find", {"city": str(_wish(body))}))

    first.respond = fragile
    again: list[ChatServer] = []

    def restart() -> None:
        first.close()
        again.append(ChatServer(lambda body: called(("find", {"city": str(_wish(body))})), port))

    threading.Timer(1.0, restart).start()
    results = (
        _open(first, "model=m&concurrency=3")
        .solver()
        .run(_requests(20), lambda i, result: told.append(i))
    )
    again[0].close()
    assert [r.calls[0].arguments["city"] for r in results] == [str(n) for n in range(20)]
    assert sorted(told) == list(range(20))
    assert len(again[0].bodies) == 20 - 6


# --- names, keys, facts ---------------------------------------------------------------------------


def test_a_server_with_one_model_needs_no_name_and_one_with_several_does() -> None:
    with chat_server(lambda body: called(("find", {}))) as server:
        model = _open(server, "concurrency=4")
        assert model.facts()["backbone"] == "m"
        assert model.key() == _open(server, "model=m").key()
        server.models = ["m", "n"]
        with pytest.raises(ConfigError, match=r"serves m, n(?s:.*)\?model=NAME"):
            _open(server, "concurrency=4").key()


def test_a_named_model_needs_no_server_for_its_key_and_the_key_holds_what_is_asked() -> None:
    url = "http://127.0.0.1:9/v1"
    keys = [_open(url, options).key() for options in (
        "model=m", "model=n", "model=m&form=low_only", "model=m&thinking=off", "model=m&omit=stop",
    )]  # fmt: skip
    keys += [_open(url, "model=m", 0.5).key(), _open("http://127.0.0.1:10", "model=m").key()]
    assert len(set(keys)) == len(keys)
    assert _open(url, "model=m&concurrency=1&timeout=5&key_env=HOME").key() == keys[0]
    facts = json.loads(json.dumps(_open(url, "model=m").facts()))
    assert facts["native"] is True and facts["form"] == "low_only"
    assert any("weights" in note for note in facts["notes"])


def test_usage_is_the_servers_count_or_unknown() -> None:
    with chat_server(lambda body: called(("find", {}))) as server:
        model = _open(server, "model=m")
        assert model.usage()["decoded_tokens"] == 0
        model.solver().run(_requests(2))
        assert model.usage() == {
            "seconds_prefill": None, "seconds_decode": None,
            "prefilled_tokens": 20, "decoded_tokens": 6,
        }  # fmt: skip
        server.respond = lambda body: {"content": "x", "_usage": None}
        (result,) = model.solver().run(_requests())
    assert (result.prompt_tokens, model.usage()["prefilled_tokens"]) == (0, None)
