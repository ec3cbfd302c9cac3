"""Inference in every form: plan once, then one executor text per sub-task; or one text for all.

All requests move together: one batch of plans, then for k = 1, 2, … one batch with the k-th
sub-task of every request that has one. In the flat forms one batch is all there is. Nothing a model
writes raises; it becomes an outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cahl_core.config import ModelSettings
from cahl_core.errors import PromptTooLongError
from cahl_core.protocol.forms import flat_prompt, openings, stops
from cahl_core.protocol.parsing import (
    Execution,
    ParseFailure,
    parse_execution,
    parse_plan,
    split_single,
)
from cahl_core.protocol.prompts import executor_prompt, planner_prompt
from cahl_core.protocol.texts import plan_text
from cahl_core.records import Plan
from cahl_core.roles import Role
from cahl_core.serving.results import (
    AgentResult,
    Environment,
    Outcome,
    Request,
    StepResult,
)
from cahl_core.train_config import Form

__all__ = ["Agent", "AgentResult", "Environment", "Generate", "Outcome", "Request", "StepResult"]


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
        role: Role,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[str] | None = None,
        stop: Sequence[str] = (),
        openings: Sequence[str] = (),
        on_finished: Callable[[int], None] | None = None,
        keep: bool = False,
    ) -> Sequence[Sequence[Generated]]: ...


class Agent:
    """The form's roles behind one `run`.

    Args:
        generate: an engine's ``generate``.
        tokenizer: the backbone's tokenizer.
        settings: form, tool rendering and ``max_context``.
        plan_tokens, call_tokens: bounds of one plan and of one executor text; the one text of a flat
            form may have as many as both together.
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

    @property
    def form(self) -> Form:
        """The form of the model that answers."""
        return self.settings.form

    def run(
        self,
        requests: Sequence[Request],
        on_result: Callable[[int, AgentResult], None] | None = None,
    ) -> list[AgentResult]:
        """One result per request, in order.

        A prompt that leaves no room for its completion ends its request as ``prompt_too_long``; it
        is never cut. ``on_result(i, result)`` is told each result as soon as it is whole.
        """
        results = [AgentResult(form=self.settings.form) for _ in requests]
        live = list(range(len(requests)))
        if self.settings.form != "hierarchical":
            self._flat(requests, results)
            _report(on_result, live, [], results)
            return results
        self._plan(requests, results)
        number = 0
        while live:
            still = [i for i in live if _has_step(results[i], number)]
            _report(on_result, live, still, results)
            live = still
            if live:
                self._execute(requests, results, live, number)
            number += 1
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

    def _flat(self, requests: Sequence[Request], results: Sequence[AgentResult]) -> None:
        form, rendering = self.settings.form, self.settings.tool_rendering
        prompts = {
            i: flat_prompt(form, self.tokenizer, r.messages, r.tools, rendering)
            for i, r in enumerate(requests)
        }
        room = self.plan_tokens + self.call_tokens
        completions = self._complete(prompts, results, requests, "executor", room, "whole")
        for i, completion in completions.items():
            text = completion.text
            if form == "single_level":
                results[i].plan_text, text = split_single(text)
                results[i].plan = parse_plan(results[i].plan_text or "")
            self._add_step(requests[i], results[i], 0, text)

    def _plan(self, requests: Sequence[Request], results: Sequence[AgentResult]) -> None:
        rendering = self.settings.tool_rendering
        for request, result in zip(requests, results, strict=True):
            if request.plan is not None:
                result.plan_text, result.plan = plan_text(request.plan), request.plan
        prompts = {
            i: planner_prompt(self.tokenizer, r.messages, r.tools, rendering)
            for i, r in enumerate(requests)
            if r.plan is None
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
                results[i].sub_tasks[number],
                requests[i].tools,
                [
                    *requests[i].feedback,
                    *((step.sub_task, step.result) for step in results[i].steps),
                ],
                self.settings.tool_rendering,
            )
            for i in live
        }
        completions = self._complete(
            prompts, results, requests, "executor", self.call_tokens, str(number)
        )
        for i, completion in completions.items():
            self._add_step(requests[i], results[i], number, completion.text)

    def _add_step(self, request: Request, result: AgentResult, number: int, text: str) -> None:
        """The executor's text for sub-task ``number``, if the result has that many."""
        if number >= len(result.sub_tasks):
            return
        execution = parse_execution(text)
        returned = _returned(request.results, result.plan, number, execution)
        result.steps.append(StepResult(result.sub_tasks[number], text, execution, returned))

    def _complete(
        self,
        prompts: Mapping[int, list[int]],
        results: Sequence[AgentResult],
        requests: Sequence[Request],
        role: Role,
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
            stop=stops(self.settings.form, role),
            openings=openings(self.settings.form, role),
            keep=role == "executor" and self.settings.form == "hierarchical",
        )
        completions = {i: samples[0] for i, samples in zip(fitting, generated, strict=True)}
        for i, completion in completions.items():
            results[i].prompt_tokens += len(prompts[i])
            results[i].completion_tokens += len(completion.token_ids)
        return completions


def _has_step(result: AgentResult, number: int) -> bool:
    return result.too_long is None and number < len(result.sub_tasks)


def _returned(
    environment: Environment | None,
    plan: Plan | ParseFailure | None,
    number: int,
    execution: Execution | ParseFailure,
) -> Any:
    if environment is None or not isinstance(execution, Execution):
        return None
    return environment(plan if isinstance(plan, Plan) else Plan(()), number, execution.calls)


def _report(
    on_result: Callable[[int, AgentResult], None] | None,
    before: Sequence[int],
    still: Sequence[int],
    results: Sequence[AgentResult],
) -> None:
    if on_result is not None:
        for i in sorted(set(before) - set(still)):
            on_result(i, results[i])
