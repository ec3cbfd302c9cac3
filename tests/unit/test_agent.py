"""Hierarchical inference without weights: what is asked, in which batches, and what it leads to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from characters import CharacterTokenizer
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.config import ModelSettings
from cahl_core.errors import PromptTooLongError
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec
from cahl_core.serving.agent import Agent, AgentResult, Environment, Request, WritingAgent
from cahl_core.serving.writers import Ask, Written
from cahl_core.train_config import FORMS, Form

TOOL = ToolSpec("f", "", {"type": "object", "properties": {"a": {}}})
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
STEP = '{"task": "t", "tool": "f", "arguments": {"a": 1}}'
WORDS = '{"task": "t", "tool": null, "arguments": {}}'


@dataclass
class Text:
    text: str
    token_ids: list[int] = field(default_factory=lambda: [0, 0])


class Script:
    """Says ``plan`` as planner and the next of ``texts`` as executor; remembers what it was asked."""

    def __init__(self, plan: str | Callable[[str], str], texts: Sequence[str] = ()) -> None:
        self.plan = plan
        self.texts = list(texts)
        self.asked: list[tuple[str, list[str]]] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, prompts: Sequence[Sequence[int]], role: str, **options: Any) -> Any:
        read = ["".join(map(chr, p)) for p in prompts]
        self.asked.append((role, read))
        self.options.append(options)
        if role == "executor":
            return [[Text(self.texts.pop(0) if self.texts else CALL)] for _ in prompts]
        return [[Text(self.plan if isinstance(self.plan, str) else self.plan(p))] for p in read]


def _agent(script: Script, max_context: int = 100_000, form: Form = "hierarchical") -> Agent:
    settings = ModelSettings(max_context=max_context, form=form)
    return Agent(script, CharacterTokenizer(), settings, plan_tokens=64, call_tokens=32)


def _request(text: str = "do it", results: Environment | None = None) -> Request:
    return Request((Message("user", text),), (TOOL,), results)


def _plan(*steps: str) -> str:
    return f"<plan>[{', '.join(steps)}]</plan>"


@pytest.mark.parametrize(
    ("plan", "texts", "outcome", "calls"),
    [
        (_plan(STEP), [CALL], "calls", 1),
        (_plan(STEP, STEP), [CALL, CALL], "calls", 2),
        (_plan(), [], "abstained", 0),
        (_plan(WORDS), ["<response>No.</response>"], "abstained", 0),
        (_plan(STEP), ["<response>No.</response>"], "abstained", 0),
        (_plan(WORDS), [CALL], "calls", 1),
        ("Sure!", [], "plan_failure", 0),
        (_plan(STEP)[:-1], [], "plan_failure", 0),
        ("", [], "plan_failure", 0),
        (_plan(STEP), ["f(a=1)"], "execution_failure", 0),
        (_plan(STEP, STEP), [CALL, ""], "execution_failure", 1),
    ],
)
def test_outcomes(plan: str, texts: list[str], outcome: str, calls: int) -> None:
    (result,) = _agent(Script(plan, texts)).run([_request()])
    assert (result.outcome, len(result.calls)) == (outcome, calls)


def test_the_answer_in_words_is_kept() -> None:
    result = _agent(Script(_plan(WORDS), ["<response> 42 </response>"])).run_one(_request())
    assert result.response == "42"


def test_requests_move_together_one_batch_per_sub_task() -> None:
    script = Script(lambda p: _plan(*[STEP] * int(p[p.index("steps=") + 6])))
    counts = [0, 3, 1, 2, 1]
    finished: list[tuple[int, int]] = []
    results = _agent(script).run(
        [_request(f"steps={n}") for n in counts], lambda i, r: finished.append((i, len(r.calls)))
    )
    assert [(role, len(prompts)) for role, prompts in script.asked] == [
        ("planner", 5), ("executor", 4), ("executor", 2), ("executor", 1),
    ]  # fmt: skip
    assert [len(r.calls) for r in results] == counts
    assert finished == [(0, 0), (2, 1), (4, 1), (3, 2), (1, 3)]  # each when its last text is there


def test_a_given_plan_is_carried_out_and_earlier_results_are_shown() -> None:
    script = Script("never asked")
    plan = Plan((SubTask("the </plan> second", "f", {"a": 1}),))
    request = Request(
        (Message("user", "do it"),), (TOOL,), plan=plan, feedback=((SubTask("", "f"), {"id": 7}),)
    )
    (result,) = _agent(script).run([request])
    ((role, (prompt,)),) = script.asked
    assert (role, result.plan, len(result.calls)) == ("executor", plan, 1)
    assert 'Result 1 (f): {"id": 7}' in prompt
    assert AgentResult.from_json(result.to_json()) == result


def test_decoding_ends_where_the_grammar_does() -> None:
    script = Script(_plan(STEP))
    _agent(script).run([_request()])
    planner, executor = script.options
    assert (planner["stop"], planner["openings"]) == (("</plan>",), ("<plan>",))
    assert (planner["max_tokens"], executor["max_tokens"]) == (64, 32)
    assert "<tool_call>" in executor["openings"]


def test_results_reach_the_sub_tasks_that_follow() -> None:
    seen: list[tuple[int, tuple[ToolCall, ...]]] = []

    def environment(plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        seen.append((number, tuple(calls)))
        return {"value": f"result of {number}"}

    script = Script(_plan(STEP, STEP))
    _agent(script).run([_request(results=environment)])
    assert seen == [(0, (ToolCall("f", {"a": 1}),)), (1, (ToolCall("f", {"a": 1}),))]
    first, second = script.asked[1][1][0], script.asked[2][1][0]
    assert "result of 0" not in first
    assert "result of 0" in second


def test_the_executor_never_reads_the_request() -> None:
    script = Script(_plan(STEP))
    _agent(script).run([_request("a secret wish")])
    assert "a secret wish" in script.asked[0][1][0]
    assert "a secret wish" not in script.asked[1][1][0]


def test_a_prompt_that_does_not_fit_is_an_outcome_and_never_cut() -> None:
    script = Script(_plan(STEP))
    agent = _agent(script, max_context=1000)
    long, short = agent.run([_request("x" * 2000), _request("short")])
    assert (long.outcome, long.calls) == ("prompt_too_long", ())
    assert short.outcome == "calls"
    assert all(len(p) <= 1000 - 64 for _, prompts in script.asked for p in prompts)
    with pytest.raises(PromptTooLongError, match=r"prompt has \d+ tokens; max_context 1000"):
        agent.run_one(_request("x" * 2000))


def test_a_history_that_outgrows_the_context_ends_the_request() -> None:
    script = Script(_plan(STEP, STEP))
    agent = _agent(script, max_context=1000)
    (result,) = agent.run([_request(results=lambda *_: "y" * 2000)])
    assert (result.outcome, len(result.steps)) == ("prompt_too_long", 1)


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=3))
def test_whatever_is_written_no_text_raises_and_the_record_restores_it(
    noise: str, texts: list[str]
) -> None:
    for plan in (noise, _plan(STEP, STEP, WORDS), f"<plan>{noise}</plan>"):
        (result,) = _agent(Script(plan, texts)).run([_request()])
        again = AgentResult.from_json(result.to_json())
        assert again == result
        assert again.outcome == result.outcome


class Pen:
    """Writes without tokenizer and engine; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, Ask]] = []

    def write(self, asks: Sequence[Ask], role: str, max_tokens: int) -> list[Written]:
        self.asked += [(role, max_tokens, ask) for ask in asks]
        if role == "planner":
            return [Written(_plan(STEP, WORDS), 5, 2) for _ in asks]
        return [
            Written(CALL, 7, 3) if ask.request.seed != "b" else Written("", too_long="no room")
            for ask in asks
        ]


def test_whoever_writes_is_asked_for_each_text_with_its_own_seed_and_what_came_before() -> None:
    pen = Pen()
    agent = WritingAgent(pen, "hierarchical", plan_tokens=64, call_tokens=32)
    requests = [Request((), (TOOL,), lambda *_: "r", seed=s) for s in "ab"]
    whole, ended = agent.run(requests)
    assert [(r, n, a.seed) for r, n, a in pen.asked] == [
        ("planner", 64, "a/plan"), ("planner", 64, "b/plan"),
        ("executor", 32, "a/0"), ("executor", 32, "b/0"), ("executor", 32, "a/1"),
    ]  # fmt: skip
    first, second = pen.asked[2][2], pen.asked[4][2]
    assert (first.sub_task, first.feedback) == (SubTask("t", "f", {"a": 1}), ())
    assert second.feedback == ((SubTask("t", "f", {"a": 1}), "r"),)
    assert (whole.prompt_tokens, whole.completion_tokens) == (5 + 7 + 7, 2 + 3 + 3)
    assert (ended.outcome, ended.too_long, ended.prompt_tokens) == ("prompt_too_long", "no room", 5)


# --- flat forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text", "outcome", "calls"),
    [
        ("low_only", CALL, "calls", 1),
        ("low_only", CALL + "\n" + CALL, "calls", 2),
        ("low_only", "<think>hm</think>" + CALL, "calls", 1),
        ("low_only", "<response>No.</response>", "abstained", 0),
        ("low_only", "Sure!", "execution_failure", 0),
        ("low_only", _plan(STEP) + CALL, "execution_failure", 0),
        ("low_only", CALL + CALL[:-3], "execution_failure", 0),
        ("single_level", _plan(STEP, STEP) + "\n" + CALL + CALL, "calls", 2),
        ("single_level", _plan() + "<response>No.</response>", "abstained", 0),
        ("single_level", _plan(STEP), "execution_failure", 0),
        ("single_level", _plan(STEP) + "f(1)", "execution_failure", 0),
        ("single_level", CALL, "plan_failure", 0),
        ("single_level", "<plan>{}</plan>" + CALL, "plan_failure", 0),
        ("single_level", "", "plan_failure", 0),
    ],
)
def test_outcomes_of_flat_forms(form: Form, text: str, outcome: str, calls: int) -> None:
    script = Script("never asked", [text])
    (result,) = _agent(script, form=form).run([_request("a wish")])
    assert (result.outcome, len(result.calls)) == (outcome, calls)
    ((role, (prompt,)),) = script.asked
    assert role == "executor"
    assert "a wish" in prompt
    assert (result.plan is None) == (form == "low_only")
    again = AgentResult.from_json(result.to_json())
    assert (again, again.outcome) == (result, outcome)


@pytest.mark.parametrize("form", FORMS)
def test_a_flat_form_is_one_batch_and_ends_at_a_response_only(form: Form) -> None:
    finished: list[int] = []
    script = Script("never asked")
    _agent(script, form=form).run(
        [_request(str(n)) for n in range(3)], lambda i, _: finished.append(i)
    )
    (options,) = script.options
    assert options["stop"] == ("</response>",)
    assert options["max_tokens"] == 64 + 32
    assert ("<plan>" in options["openings"]) == (form == "single_level")
    assert finished == [0, 1, 2]


def test_a_flat_form_keeps_the_plan_and_the_answer_apart() -> None:
    text = _plan(WORDS) + "<response> 42 </response>"
    result = _agent(Script("", [text]), form="single_level").run_one(_request())
    assert (result.plan_text, result.steps[0].text) == (_plan(WORDS), "<response> 42 </response>")
    assert result.response == "42"
    assert isinstance(result.plan, Plan)


def test_the_environment_is_told_the_calls_of_a_flat_form_once() -> None:
    seen: list[tuple[Plan, int, int]] = []

    def environment(plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        seen.append((plan, number, len(calls)))
        return "done"

    agent = _agent(Script("", [CALL + CALL]), form="low_only")
    (result,) = agent.run([_request(results=environment)])
    assert seen == [(Plan(()), 0, 2)]
    assert result.steps[0].result == "done"


def test_a_flat_prompt_that_does_not_fit_is_an_outcome() -> None:
    agent = _agent(Script(""), max_context=900, form="low_only")
    long, short = agent.run([_request("x" * 900), _request("short")])
    assert (long.outcome, long.steps, short.outcome) == ("prompt_too_long", [], "calls")


@given(st.text(max_size=40), st.sampled_from(FORMS))
def test_no_text_of_a_flat_form_raises_and_the_record_restores_it(noise: str, form: Form) -> None:
    for text in (noise, _plan(STEP) + noise, CALL + noise, f"<response>{noise}</response>"):
        (result,) = _agent(Script("", [text]), form=form).run([_request()])
        assert AgentResult.from_json(result.to_json()) == result
