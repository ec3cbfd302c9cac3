"""Hierarchical inference: plan once, then one executor text per sub-task.

All requests move together: one batch of plans, then for k = 1, 2, … one batch with the k-th
sub-task of every request that has one. Nothing a model writes raises; it becomes an outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cahl_core.config import ModelSettings
from cahl_core.errors import PromptTooLongError
from cahl_core.protocol.parsing import (
    CALL_OPEN,
    PLAN_OPEN,
    RESPONSE_OPEN,
    THINK_OPEN,
    Execution,
    ParseFailure,
    parse_execution,
    parse_plan,
)
from cahl_core.protocol.prompts import EXECUTION_STOP, PLAN_STOP, executor_prompt, planner_prompt
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec

# A text that begins otherwise is outside the grammar already.
OPENINGS = {"planner": (PLAN_OPEN,), "executor": (THINK_OPEN, CALL_OPEN, RESPONSE_OPEN)}

Outcome = Literal["calls", "abstained", "plan_failure", "execution_failure", "prompt_too_long"]

# (plan, number of the sub-task from 0, its calls) → what they returned; None where nobody can tell.
Environment = Callable[[Plan, int, Sequence[ToolCall]], Any]


class Generated(Protocol):
    """The part of `policy.engine.Completion` that the agent reads."""

    @property
    def text(self) -> str: ...

    @property
    def token_ids(self) -> list[int]: ...


class Generate(Protocol):
    """`policy.engine.Engine.generate`, or an oracle in tests."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        role: Literal["planner", "executor"],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[str] | None = None,
        stop: Sequence[str] = (),
        openings: Sequence[str] = (),
        on_finished: Callable[[int], None] | None = None,
    ) -> Sequence[Sequence[Generated]]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """What an agent is asked, with what, and who answers its calls (``None``: nobody)."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    results: Environment | None = None
    seed: str = ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One sub-task as the executor carried it out."""

    sub_task: SubTask
    text: str
    execution: Execution | ParseFailure
    result: Any = None


@dataclass(slots=True)
class AgentResult:
    """Everything one request led to.

    ``calls`` holds the calls of the texts that parsed, also where another one did not.
    """

    plan_text: str | None = None
    plan: Plan | ParseFailure | None = None
    steps: list[StepResult] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    too_long: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What was written, and what `from_json` needs to parse it again."""
        return {
            "plan_text": self.plan_text,
            "steps": [{"text": s.text, "result": s.result} for s in self.steps],
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "too_long": self.too_long,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AgentResult:
        """Rebuilds a result from its texts."""
        text = record["plan_text"]
        result = cls(text, None if text is None else parse_plan(text))
        for sub_task, step in zip(_sub_tasks(result), record["steps"], strict=False):
            execution = parse_execution(step["text"])
            result.steps.append(StepResult(sub_task, step["text"], execution, step["result"]))
        result.prompt_tokens = record["prompt_tokens"]
        result.completion_tokens = record["completion_tokens"]
        result.too_long = record["too_long"]
        return result

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(
            call
            for step in self.steps
            if isinstance(step.execution, Execution)
            for call in step.execution.calls
        )

    @property
    def response(self) -> str | None:
        """The last answer in words, if any step gave one."""
        said = [s.execution.response for s in self.steps if isinstance(s.execution, Execution)]
        return next((text for text in reversed(said) if text), None)

    @property
    def outcome(self) -> Outcome:
        """``abstained`` needs a valid plan and valid texts without a call."""
        if self.too_long is not None:
            return "prompt_too_long"
        if not isinstance(self.plan, Plan):
            return "plan_failure"
        if any(isinstance(s.execution, ParseFailure) for s in self.steps):
            return "execution_failure"
        return "calls" if self.calls else "abstained"


class Agent:
    """Planner and executor behind one `run`.

    Args:
        generate: an engine's ``generate``.
        tokenizer: the backbone's tokenizer.
        settings: tool rendering and ``max_context``.
        plan_tokens, call_tokens: bounds of one plan and of one executor text.
        temperature: 0 is greedy.
    """

    def __init__(
        self,
        generate: Generate,
        tokenizer: Any,
        settings: ModelSettings,
        *,
        plan_tokens: int,
        call_tokens: int,
        temperature: float = 0.0,
    ) -> None:
        self.generate = generate
        self.tokenizer = tokenizer
        self.settings = settings
        self.plan_tokens = plan_tokens
        self.call_tokens = call_tokens
        self.temperature = temperature

    def run(
        self,
        requests: Sequence[Request],
        on_finished: Callable[[int], None] | None = None,
    ) -> list[AgentResult]:
        """One result per request, in order.

        A prompt that leaves no room for its completion ends its request as ``prompt_too_long``; it
        is never cut. ``on_finished(n)`` is told when ``n`` more requests are done.
        """
        results = [AgentResult() for _ in requests]
        self._plan(requests, results)
        live = [i for i, r in enumerate(results) if _has_step(r, 0)]
        _report(on_finished, len(requests) - len(live))
        number = 0
        while live:
            self._execute(requests, results, live, number)
            number += 1
            still = [i for i in live if _has_step(results[i], number)]
            _report(on_finished, len(live) - len(still))
            live = still
        return results

    def run_one(self, request: Request) -> AgentResult:
        """Like `run` for one request, but a prompt that is too long is an error.

        Raises:
            PromptTooLongError: with the number of tokens and the room there is.
        """
        (result,) = self.run([request])
        if result.too_long is not None:
            raise PromptTooLongError(
                result.too_long, "send fewer or shorter tools and messages, or raise max_context"
            )
        return result

    def _plan(self, requests: Sequence[Request], results: Sequence[AgentResult]) -> None:
        rendering = self.settings.tool_rendering
        prompts = {
            i: planner_prompt(self.tokenizer, r.messages, r.tools, rendering)
            for i, r in enumerate(requests)
        }
        for i, completion in self._complete(
            prompts, results, requests, "planner", self.plan_tokens, "plan"
        ).items():
            results[i].plan_text = completion.text
            results[i].plan = parse_plan(completion.text)

    def _execute(
        self,
        requests: Sequence[Request],
        results: Sequence[AgentResult],
        live: Sequence[int],
        number: int,
    ) -> None:
        prompts = {
            i: executor_prompt(
                self.tokenizer,
                _sub_tasks(results[i])[number],
                requests[i].tools,
                [(step.sub_task, step.result) for step in results[i].steps],
                self.settings.tool_rendering,
            )
            for i in live
        }
        completions = self._complete(
            prompts, results, requests, "executor", self.call_tokens, str(number)
        )
        for i, completion in completions.items():
            execution = parse_execution(completion.text)
            result = _outcome_of(requests[i].results, results[i].plan, number, execution)
            sub_task = _sub_tasks(results[i])[number]
            results[i].steps.append(StepResult(sub_task, completion.text, execution, result))

    def _complete(
        self,
        prompts: dict[int, list[int]],
        results: Sequence[AgentResult],
        requests: Sequence[Request],
        role: Literal["planner", "executor"],
        max_tokens: int,
        label: str,
    ) -> dict[int, Generated]:
        """Completions of the prompts that fit; the others are marked as too long."""
        room = self.settings.max_context - max_tokens
        fitting: list[int] = []
        for i, prompt in prompts.items():
            if len(prompt) <= room:
                fitting.append(i)
                continue
            results[i].too_long = (
                f"the {role}'s prompt has {len(prompt)} tokens; max_context "
                f"{self.settings.max_context} leaves {room} beside {max_tokens} for its text"
            )
        if not fitting:
            return {}
        generated = self.generate(
            [prompts[i] for i in fitting],
            role,
            max_tokens=max_tokens,
            temperature=self.temperature,
            seeds=[f"{requests[i].seed}/{label}" for i in fitting],
            stop=PLAN_STOP if role == "planner" else EXECUTION_STOP,
            openings=OPENINGS[role],
        )
        completions = {i: samples[0] for i, samples in zip(fitting, generated, strict=True)}
        for i, completion in completions.items():
            results[i].prompt_tokens += len(prompts[i])
            results[i].completion_tokens += len(completion.token_ids)
        return completions


def _sub_tasks(result: AgentResult) -> tuple[SubTask, ...]:
    return result.plan.sub_tasks if isinstance(result.plan, Plan) else ()


def _has_step(result: AgentResult, number: int) -> bool:
    return result.too_long is None and number < len(_sub_tasks(result))


def _outcome_of(
    environment: Environment | None,
    plan: Plan | ParseFailure | None,
    number: int,
    execution: Execution | ParseFailure,
) -> Any:
    if environment is None or not isinstance(plan, Plan) or not isinstance(execution, Execution):
        return None
    return environment(plan, number, execution.calls)


def _report(on_finished: Callable[[int], None] | None, count: int) -> None:
    if on_finished is not None and count:
        on_finished(count)
