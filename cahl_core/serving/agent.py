"""Inference in every form: plan once, then one executor text per sub-task; or one text for all.

All requests move together: one batch of plans, then for k = 1, 2, … one batch with the k-th
sub-task of every request that has one. In the flat forms one batch is all there is. Nothing a model
writes raises; it becomes an outcome. How a text comes to be is the writer's business (`writers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cahl_core.config import ModelSettings
from cahl_core.errors import PromptTooLongError
from cahl_core.protocol.parsing import (
    Execution,
    ParseFailure,
    parse_execution,
    parse_plan,
    split_single,
)
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
from cahl_core.serving.writers import Ask, EngineWriter, Generate, Writer
from cahl_core.train_config import Form

__all__ = [
    "Agent", "AgentResult", "Environment", "Generate", "Outcome", "Request", "StepResult",
    "WritingAgent",
]  # fmt: skip


class WritingAgent:
    """The form's roles behind one `run`, whoever writes their texts.

    Args:
        form: which texts there are.
        plan_tokens, call_tokens: bounds of one plan and of one executor text; the one text of a flat
            form may have as many as both together.
    """

    def __init__(self, writer: Writer, form: Form, *, plan_tokens: int, call_tokens: int) -> None:
        self.writer = writer
        self.plan_tokens = plan_tokens
        self.call_tokens = call_tokens
        self._form = form

    @property
    def form(self) -> Form:
        """The form of the model that answers."""
        return self._form

    def run(
        self,
        requests: Sequence[Request],
        on_result: Callable[[int, AgentResult], None] | None = None,
    ) -> list[AgentResult]:
        """One result per request, in order.

        A prompt that leaves no room for its completion ends its request as ``prompt_too_long``; it
        is never cut. ``on_result(i, result)`` is told each result as soon as it is whole.
        """
        results = [AgentResult(form=self.form) for _ in requests]
        live = list(range(len(requests)))
        if self.form != "hierarchical":
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
        asks = {i: Ask(r, f"{r.seed}/whole") for i, r in enumerate(requests)}
        room = self.plan_tokens + self.call_tokens
        for i, text in self._write(asks, results, "executor", room).items():
            if self.form == "single_level":
                results[i].plan_text, text = split_single(text)
                results[i].plan = parse_plan(results[i].plan_text or "")
            self._add_step(requests[i], results[i], 0, text)

    def _plan(self, requests: Sequence[Request], results: Sequence[AgentResult]) -> None:
        asks: dict[int, Ask] = {}
        for i, (request, result) in enumerate(zip(requests, results, strict=True)):
            if request.plan is None:
                asks[i] = Ask(request, f"{request.seed}/plan")
            else:
                result.plan_text, result.plan = plan_text(request.plan), request.plan
        for i, text in self._write(asks, results, "planner", self.plan_tokens).items():
            results[i].plan_text = text
            results[i].plan = parse_plan(text)

    def _execute(
        self,
        requests: Sequence[Request],
        results: Sequence[AgentResult],
        live: Sequence[int],
        number: int,
    ) -> None:
        asks = {
            i: Ask(
                requests[i],
                f"{requests[i].seed}/{number}",
                results[i].sub_tasks[number],
                (*requests[i].feedback, *((s.sub_task, s.result) for s in results[i].steps)),
            )
            for i in live
        }
        for i, text in self._write(asks, results, "executor", self.call_tokens).items():
            self._add_step(requests[i], results[i], number, text)

    def _add_step(self, request: Request, result: AgentResult, number: int, text: str) -> None:
        """The executor's text for sub-task ``number``, if the result has that many."""
        if number >= len(result.sub_tasks):
            return
        execution = parse_execution(text)
        returned = _returned(request.results, result.plan, number, execution)
        result.steps.append(StepResult(result.sub_tasks[number], text, execution, returned))

    def _write(
        self,
        asks: Mapping[int, Ask],
        results: Sequence[AgentResult],
        role: Role,
        max_tokens: int,
    ) -> dict[int, str]:
        """Texts of the prompts that fit; the others are marked as too long."""
        texts: dict[int, str] = {}
        written = self.writer.write(list(asks.values()), role, max_tokens) if asks else []
        for i, found in zip(asks, written, strict=True):
            results[i].prompt_tokens += found.prompt_tokens
            results[i].completion_tokens += found.completion_tokens
            results[i].too_long = found.too_long
            if found.too_long is None:
                texts[i] = found.text
        return texts


class Agent(WritingAgent):
    """The form's roles with an engine of this process.

    Args:
        generate: an engine's ``generate``.
        tokenizer: the backbone's tokenizer.
        settings: form, tool rendering and ``max_context``.
        plan_tokens, call_tokens: as of `WritingAgent`.
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
        writer = EngineWriter(generate, tokenizer, settings, temperature)
        super().__init__(writer, settings.form, plan_tokens=plan_tokens, call_tokens=call_tokens)
        self.generate = generate
        self.tokenizer = tokenizer
        self.settings = settings
        self.temperature = temperature


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
