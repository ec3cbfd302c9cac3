"""Which records of a user's file can be scored, and what is wrong with the others.

The adapters and rules are those of ``cahl data validate``, without the limits that only training has.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cahl_core.canonical import canonical
from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import CONVERTERS
from cahl_core.datasets.adapters.base import ReadLimits, Record, converted
from cahl_core.datasets.checks import RULES, Problem, check, parse
from cahl_core.datasets.cut import cut, dialogue_problem, is_dialogue
from cahl_core.datasets.raw import RawRecord
from cahl_core.datasets.references import resolve
from cahl_core.datasets.validity import plain, without_control_characters
from cahl_core.records import ToolTask

CONVERSATIONS = ("openai-messages", "sharegpt", "glaive", "toolace", "apigen-mt")
NO_LIMIT = 10**9
# what to change, by rule; the rule's meaning is in `checks.RULES`
FIXES = {
    "unreadable_file": "write the file again; what could be read of it was used",
    "invalid_utf8": "save the file as UTF-8",
    "not_json": "write one JSON value per line (json.dumps); no NaN, no comments, no trailing commas",
    "record_too_large": "split the record, or raise prepare.max_text_chars",
    "malformed": "docs/data.md shows the form of a record",
    "tool_without_schema": 'give the tool "parameters": {"type": "object", "properties": {…}}',
    "empty_request": "give a message of role user with text",
    "duplicate_tool": "offer each tool once",
    "recursive_schema": "write the schema out to the depth you need",
    "remote_schema": "copy the schema that it refers to into the record",
    "unknown_tool": "offer the tool, or correct the gold call's name",
    "unknown_argument": "declare the argument under the tool's properties, or take it out of the call",
    "missing_argument": "give the argument in the gold call, or take it off the tool's required list",
    "wrong_type": "correct the gold value or the tool's schema",
    "bad_reference": "a reference is a whole value, $varN.path$, to a call before it and a path in its "
    "recorded result",
    "cyclic_reference": "let references only lead to earlier calls",
    "step_order": "move the call that is referred to into an earlier step",
    "bad_dialogue": "let meta.answer_at name the assistant's messages that make the gold calls",
    "no_gold": "give the gold calls under answers ([] where no call is right), or let the conversation "
    "go on to the assistant's calls or answer",
}
FLAWS = {
    "control_characters": "a text holds control characters; they are shown to the model as they are",
    "ungrounded": "a gold value is a choice among results that no plan can know",
    "duplicate": "the request is that of an earlier record, so it counts twice",
    "resolved_differs": "meta.resolved is not what the references give in meta.results; it is the gold",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One record that broke a rule, or one flaw of a record that is scored."""

    where: str
    id: str
    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.id}: {self.detail}"

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}


def converted_records(
    raw: Sequence[RawRecord], source: str, format: str, settings: PrepareSettings
) -> Iterator[tuple[str, Record]]:
    """Every value's records in the form of `ToolTask`, with the value's place."""
    limits = ReadLimits(settings.max_result_chars, settings.max_text_chars)
    for number, value in enumerate(raw):
        for record in converted(CONVERTERS[format], value, source, f"{source}-{number}", limits):
            yield value.where, record if _has_gold(record, format) else _without_gold(record)


def _has_gold(record: Record, format: str) -> bool:
    """Whether the record says what is right: gold calls, that none is, or an answer in words."""
    if "malformed" in record or record.get("answers"):
        return True
    answered = "answer" in (record.get("meta") or {})
    return answered if format in CONVERSATIONS else "answers" in record


def _without_gold(record: Record) -> Record:
    reason = "no field 'answers' and no call or answer of an assistant after the request"
    return {"id": record["id"], "source": record["source"], "malformed": reason, "rule": "no_gold"}


def judged(
    records: Iterable[tuple[str, Record]], settings: PrepareSettings
) -> tuple[list[tuple[ToolTask, str]], list[Finding], list[Finding]]:
    """Tasks with their places, what is set aside, and the flaws of what is not."""
    unlimited = settings.model_copy(
        update={"max_tools": NO_LIMIT, "max_steps": NO_LIMIT, "max_result_chars": NO_LIMIT}
    )
    tasks: list[tuple[ToolTask, str]] = []
    aside: list[Finding] = []
    flaws: list[Finding] = []
    for where, record in records:
        for found in _tasks_of(record, where, settings.max_result_chars):
            problem, noted = (
                _judge(found, unlimited) if isinstance(found, ToolTask) else (found, [])
            )
            record_id = plain(found.id if isinstance(found, ToolTask) else str(record.get("id")))
            if problem is not None:
                # the place stands before the detail already
                detail = plain(problem[1].removeprefix(f"{where}: "))
                aside.append(Finding(where, record_id, problem[0], detail))
            elif isinstance(found, ToolTask):
                tasks.append((found, where))
                flaws += [Finding(where, record_id, rule, plain(detail)) for rule, detail in noted]
    return tasks, aside, flaws


def _tasks_of(record: Record, where: str, result_chars: int) -> Iterator[ToolTask | Problem]:
    """The tasks of one record, or what is wrong with it."""
    task = parse(record, where)
    if not isinstance(task, ToolTask) or not is_dialogue(task):
        yield task
    elif (reason := dialogue_problem(task)) is not None:
        yield "bad_dialogue", reason
    else:
        parts = cut(task, result_chars)
        yield from parts
        if not parts:
            yield "bad_dialogue", "no gold call in it"


def _judge(task: ToolTask, settings: PrepareSettings) -> tuple[Problem | None, list[Problem]]:
    """What makes the task impossible to score, and its other flaws."""
    flaws = []
    problem = check(task, settings)
    if problem is not None and problem[0] == "control_characters":
        flaws.append(problem)
        cleaned, _ = without_control_characters(task.to_json())
        problem = check(ToolTask.from_json(cleaned), settings)
    if problem is not None and problem[0] == "ungrounded":
        flaws.append(problem)
        meta = {k: v for k, v in task.meta.items() if k != "ungrounded"}
        problem = check(replace(task, meta=meta), settings)
    if problem is None and (differs := _resolved_differs(task)) is not None:
        flaws.append(("resolved_differs", differs))
    return (None if problem is None else _explained(problem, task)), flaws


def _explained(problem: Problem, task: ToolTask) -> Problem:
    """The problem with what the record offers instead."""
    rule, detail = problem
    names = [tool.name for tool in task.tools]
    if rule == "unknown_tool":
        wanted = next((c.name for c in task.calls if c.name not in names), "")
        near = difflib.get_close_matches(wanted, names, 1)
        offered = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        instead = f"nearest: {near[0]}" if near else f"offered: {offered or 'none'}"
        detail += f" is not offered; {instead}"
    if rule == "unknown_argument":
        call = next((c for c in task.calls if f"({c.name})" in detail), None)
        spec = next((t for t in task.tools if call is not None and t.name == call.name), None)
        detail += f"; it has: {', '.join(spec.properties) or 'none'}" if spec else ""
    return rule, detail


def _resolved_differs(task: ToolTask) -> str | None:
    schemas = {t.name: t.parameters for t in task.tools}
    for k, (call, values) in enumerate(
        zip(task.calls, task.meta.get("resolved") or [], strict=False)
    ):
        found = resolve(call, task.results[:k], schemas.get(call.name, {}))
        if found is None or values is None:
            continue
        for name, value in found.items():
            if canonical(value) != canonical(values.get(name)):
                return (
                    f"call {k + 1}: {name}: {value!r} in results, {values.get(name)!r} in resolved"
                )
    return None


def meaning(rule: str) -> str:
    """What a rule or a flaw says of a record."""
    known = {**RULES, **FLAWS, "no_gold": "the record has no gold calls to score against"}
    return known[rule]
