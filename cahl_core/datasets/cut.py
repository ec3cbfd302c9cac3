"""Whole dialogues to prompts: one task per run of gold calls that no user turn interrupts.

A dialogue record (``meta.form = "dialogue"``) holds its gold calls and their results inside its
messages; ``meta.answer_at[k]`` is the index of the message that makes the calls of step k. Calls that
follow one another without a word from the user are one request: a planner can and must plan them in one
go, so they become one task whose prompt ends before the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cahl_core.datasets.adapters.conversation import recorded_results
from cahl_core.datasets.adapters.nestful import ground
from cahl_core.datasets.references import dependencies, levels, occurs, prune, resolve
from cahl_core.records import Message, ToolCall, ToolTask

DIALOGUE = "dialogue"
CARRIED = ("services", "plan_texts", "origin", "required_known", "scenario", "split")


def is_dialogue(task: ToolTask) -> bool:
    """Whether the gold calls are inside the messages."""
    return task.meta.get("form") == DIALOGUE


def dialogue_problem(task: ToolTask) -> str | None:
    """Why ``meta.answer_at`` does not fit the messages and steps, or ``None``."""
    places = task.meta.get("answer_at")
    if not isinstance(places, list) or not all(type(p) is int for p in places):
        return "meta.answer_at is not a list of message indices"
    if len(places) != len(task.steps):
        return f"meta.answer_at has {len(places)} entries for {len(task.steps)} steps"
    if any(a >= b for a, b in pairwise(places)):
        return "meta.answer_at does not increase"
    for place in places:
        if not 0 < place < len(task.messages) or task.messages[place].role != "assistant":
            return f"meta.answer_at: message {place} is not an assistant's turn after a request"
    return None


def cut(task: ToolTask, max_result_chars: int) -> list[ToolTask]:
    """The tasks of a dialogue in order, ids ``<id>#<first step>``; any other task is its own one.

    Guarantees: every gold call is in exactly one task; no message of a task comes after its first
    call; values that only an earlier result of the same task gives are references (`ground`).
    """
    if not is_dialogue(task):
        return [task]
    return [_task(task, first, last, max_result_chars) for first, last in runs(task)]


def runs(task: ToolTask) -> Iterator[tuple[int, int]]:
    """First and last step of every run of steps without a user's turn between them."""
    places: list[int] = task.meta["answer_at"]
    first = 0
    for step in range(1, len(places) + 1):
        ended = step == len(places) or any(
            m.role == "user" for m in task.messages[places[step - 1] : places[step]]
        )
        if ended:
            yield first, step - 1
            first = step


def _task(task: ToolTask, first: int, last: int, max_result_chars: int) -> ToolTask:
    places: list[int] = task.meta["answer_at"]
    messages = task.messages[: places[first]]
    steps = task.steps[first : last + 1]
    end = places[last + 1] if last + 1 < len(places) else len(task.messages)
    turns = [message.to_json() for message in task.messages[places[first] : end]]
    results, _ = recorded_results(turns)
    parameters = {tool.name: tool.parameters for tool in task.tools}
    flat = [call for step in steps for call in step]
    said = " ".join(f"{m.content} {json.dumps(_values(m))}" for m in messages)
    calls, _, ungrounded = ground(flat, results, said, _offered(task))
    references = dependencies(calls)
    meta: dict[str, Any] = {key: task.meta[key] for key in CARRIED if key in task.meta}
    meta |= {
        "dialogue": task.id,
        "deps": [r.to_json() for r in references],
        "levels": levels(len(calls), references),
        "results": [
            None
            if result is None
            else prune(result, [r.path for r in references if r.source == number], max_result_chars)
            for number, result in enumerate(results, 1)
        ],
        "resolved": [resolve(c, results, parameters.get(c.name, {})) for c in calls],
    }
    if missing := [*ungrounded, *_nowhere(calls, said, results)]:
        meta["ungrounded"] = missing
    return ToolTask(
        f"{task.id}#{first}", task.source, messages, task.tools, _restep(calls, steps), None, meta
    )


def _values(message: Message) -> list[Any]:
    return [call.arguments for call in message.tool_calls]


def _offered(task: ToolTask) -> Mapping[str, dict[str, Any]]:
    return {tool.name: tool.to_json() for tool in task.tools}


def _restep(
    calls: Sequence[ToolCall], steps: Sequence[Sequence[ToolCall]]
) -> tuple[tuple[ToolCall, ...], ...]:
    remaining = iter(calls)
    return tuple(tuple(next(remaining) for _ in step) for step in steps)


def _nowhere(calls: Sequence[ToolCall], said: str, results: Sequence[Any]) -> Iterator[str]:
    """Identifiers that neither the dialogue nor a result gives: nobody could know them."""
    text = said.lower()
    for number, call in enumerate(calls, 1):
        for name, value in call.arguments.items():
            if not isinstance(value, str) or value.startswith("$var"):
                continue
            identifier = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
            known = value.lower() in text or any(occurs(r, value) for r in results[: number - 1])
            if identifier and " " not in value and "-" in value and not known:
                yield f"{number}.{name}"
