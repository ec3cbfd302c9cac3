"""Models that know the right texts, for tests of BFCL's conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from characters import CharacterTokenizer, Text

from cahl_core.config import ModelSettings
from cahl_core.protocol.parsing import parse_execution, parse_plan
from cahl_core.protocol.texts import execution_text, plan_text
from cahl_core.records import Plan, SubTask, ToolCall
from cahl_core.serving.agent import Agent
from cahl_core.serving.results import WHOLE_REQUEST, AgentResult, Request, StepResult
from cahl_core.train_config import Form

# seed of a request (item/turn/text) → the calls that are due, in groups of one text each
Due = Callable[[str], Sequence[Sequence[ToolCall]]]


def place(seed: str) -> tuple[str, int, int]:
    """(item or item/sample, turn, text) of a request's seed."""
    item, turn, text = seed.rsplit("/", 2)
    return item, int(turn), int(text)


@dataclass
class Player:
    """A solver that plays due calls without prompts, and words where none are left."""

    due: Due
    form: Form = "hierarchical"
    words: Callable[[str], str] = lambda seed: "done"

    def run(self, requests: Sequence[Request], on_result: Any = None) -> list[AgentResult]:
        return [self._hierarchical(r) if self._planned else self._flat(r) for r in requests]

    @property
    def _planned(self) -> bool:
        return self.form == "hierarchical"

    def _hierarchical(self, request: Request) -> AgentResult:
        steps = list(self.due(request.seed)) if request.plan is None else []
        plan = request.plan or Plan(tuple(sub_task(s[0]) for s in steps))
        result = AgentResult(plan_text(plan), plan)
        for number, asked in enumerate(plan.sub_tasks):
            made = steps[number] if number < len(steps) else ()
            self._step(
                request, result, asked, number, execution_text(made, self.words(request.seed))
            )
        return result

    def _flat(self, request: Request) -> AgentResult:
        steps, (_, _, number) = self.due(request.seed), place(request.seed)
        made = steps[number] if number < len(steps) else ()
        result = AgentResult(form=self.form)
        if self.form == "single_level":
            result.plan = Plan(tuple(map(sub_task, made)))
            result.plan_text = plan_text(result.plan)
        self._step(
            request, result, WHOLE_REQUEST, 0, execution_text(made, self.words(request.seed))
        )
        return result

    @staticmethod
    def _step(
        request: Request, result: AgentResult, asked: SubTask, number: int, text: str
    ) -> None:
        execution = parse_execution(text)
        plan = result.plan if isinstance(result.plan, Plan) else Plan(())
        returned = request.results(plan, number, execution.calls) if request.results else None
        result.steps.append(StepResult(asked, text, execution, returned))


def sub_task(call: ToolCall) -> SubTask:
    return SubTask("call", call.name, call.arguments)


def scripted_agent(
    write: Callable[[str, str, str], str], form: Form = "hierarchical", max_context: int = 1 << 22
) -> tuple[Agent, dict[str, str]]:
    """The real agent whose text for a seed is ``write(role, seed, label)``, and the prompts it got.

    ``label`` is the agent's own: ``plan``, ``whole``, or the number of the sub-task.
    """
    prompts_by_seed: dict[str, str] = {}

    def generate(
        prompts: Sequence[Sequence[int]], role: str, *, seeds: Sequence[str], **_: Any
    ) -> list[list[Text]]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            prompts_by_seed[seed] = "".join(map(chr, prompt))
        parts = [seed.rpartition("/") for seed in seeds]
        return [[Text(write(role, seed, label))] for seed, _, label in parts]

    settings = ModelSettings(max_context=max_context, form=form)
    agent = Agent(generate, CharacterTokenizer(), settings, plan_tokens=1, call_tokens=1)  # type: ignore[arg-type]
    return agent, prompts_by_seed


def parsed_plan(text: str) -> Plan:
    plan = parse_plan(text)
    assert isinstance(plan, Plan)
    return plan
