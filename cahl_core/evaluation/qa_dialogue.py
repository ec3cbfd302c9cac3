"""How a model works on a question with a search tool, in each form; nothing here judges.

Hierarchical: the plan, an executor text per sub-task with what was found as feedback, and, if no text
was an answer in words, one more executor text for a given last sub-task. Flat: text, search, text, …
until a text is an answer or the searches are used up; the last text has no tool. Without a backend
there is no tool from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cahl_core.environments.search import SEARCH, Limits, SearchBackend, SearchSession, was_searched
from cahl_core.evaluation.core import Record, Solver
from cahl_core.files import dump_json
from cahl_core.protocol.parsing import Execution
from cahl_core.records import Message, Plan, SubTask, ToolSpec
from cahl_core.serving.results import AgentResult, Request, StepResult

ANSWER = "Answer the question in a few words: "


@dataclass(slots=True)
class Question:
    """One question while it is worked on.

    Attributes:
        runs: what was written so far, each with whether the tool was offered.
    """

    text: str
    seed: str
    session: SearchSession | None
    runs: list[tuple[AgentResult, bool]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messages.append(Message("user", self.text))

    def request(self, *, tool: bool, **options: Any) -> Request:
        """What is asked next; draws are keyed by how many texts there are."""
        tools: tuple[ToolSpec, ...] = (SEARCH,) if tool else ()
        seed = f"{self.seed}/{len(self.runs)}" if self.runs else self.seed
        results = self.session if tool else None
        return Request(tuple(self.messages), tools, results, seed, **options)

    def record(self) -> Record:
        """What `runs_of` reads back."""
        return {"runs": [{"tool": tool, "result": r.to_json()} for r, tool in self.runs]}


def converse(
    solver: Solver,
    questions: Sequence[tuple[str, str]],
    backend: SearchBackend | None,
    limits: Limits,
    on_done: Callable[[int, Record], None],
) -> None:
    """Works on (question, seed) pairs together and tells each one's record as soon as it is whole.

    Raises:
        SearchError: the backend failed.
    """
    live = [
        Question(text, seed, SearchSession(backend, limits) if backend else None)
        for text, seed in questions
    ]
    numbers = {id(q): i for i, q in enumerate(live)}

    def finish(question: Question) -> None:
        on_done(numbers[id(question)], question.record())

    if solver.form == "hierarchical":
        _plan_and_answer(solver, live, backend is not None, finish)
    else:
        _in_turns(solver, live, limits.max_calls if backend else 0, finish)


def _plan_and_answer(
    solver: Solver, questions: Sequence[Question], tool: bool, finish: Callable[[Question], None]
) -> None:
    silent: list[Question] = []

    def planned(number: int, result: AgentResult) -> None:
        question = questions[number]
        question.runs.append((result, tool))
        if result.response is None:
            silent.append(question)
        else:
            finish(question)

    solver.run([q.request(tool=tool) for q in questions], planned)
    if silent:
        solver.run([_answer_request(q) for q in silent], _whole(silent, False, finish))


def _answer_request(question: Question) -> Request:
    """The executor sees sub-tasks only, so the question is in this one's words."""
    plan = Plan((SubTask(ANSWER + question.text, None, {}),))
    steps = question.runs[0][0].steps
    feedback = tuple((step.sub_task, step.result) for step in steps)
    return question.request(tool=False, plan=plan, feedback=feedback)


def _in_turns(
    solver: Solver, questions: Sequence[Question], turns: int, finish: Callable[[Question], None]
) -> None:
    searching, last = list(questions), []
    for _ in range(turns):
        if not searching:
            break
        results = solver.run([q.request(tool=True) for q in searching])
        again = []
        for question, result in zip(searching, results, strict=True):
            question.runs.append((result, True))
            if result.response is not None:
                finish(question)
            elif result.calls:
                question.messages += _history(result.steps[0])
                again.append(question)
            else:  # outside the grammar or too long: more searching would repeat it
                last.append(question)
        searching = again
    last += searching
    if last:
        solver.run([q.request(tool=False) for q in last], _whole(last, False, finish))


def _whole(
    questions: Sequence[Question], tool: bool, finish: Callable[[Question], None]
) -> Callable[[int, AgentResult], None]:
    def told(number: int, result: AgentResult) -> None:
        questions[number].runs.append((result, tool))
        finish(questions[number])

    return told


def _history(step: StepResult) -> list[Message]:
    """The calls of a text and their results, as later texts see them."""
    if not isinstance(step.execution, Execution):
        return []
    return [
        Message("assistant", "", step.execution.calls),
        *(Message("tool", dump_json(r), name=SEARCH.name) for r in results_of(step)),
    ]


def results_of(step: StepResult) -> list[Any]:
    """One result per call of the step."""
    if not isinstance(step.execution, Execution) or not step.execution.calls:
        return []
    return [step.result] if len(step.execution.calls) == 1 else list(step.result or [])


def runs_of(record: Record) -> list[tuple[AgentResult, tuple[ToolSpec, ...]]]:
    """A record's runs, each with the tools it was offered."""
    return [
        (AgentResult.from_json(run["result"]), (SEARCH,) if run["tool"] else ())
        for run in record["runs"]
    ]


def answer_of(record: Record) -> str | None:
    """The last answer in words, or ``None``."""
    said = (result.response for result, _ in reversed(runs_of(record)))
    return next((text for text in said if text is not None), None)


def searches_of(record: Record) -> int:
    """Calls that the backend carried out."""
    return sum(
        was_searched(found)
        for result, _ in runs_of(record)
        for step in result.steps
        for found in results_of(step)
    )
