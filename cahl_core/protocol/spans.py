"""Where things stand in a text that parses: character spans for traces.

Apart from the parsers, so that training does not pay for them. A span is ``(start, end)``, so that
``text[start:end]`` is the JSON of the sub-task or call, or the words, without its tags.
"""

from __future__ import annotations

from dataclasses import dataclass

from cahl_core.protocol import parsing
from cahl_core.protocol.json_text import ParseFailure, Span, elements, skip_space


@dataclass(frozen=True, slots=True)
class Spans:
    """``sub_tasks`` and ``calls`` are parallel to those of the parsed value."""

    sub_tasks: tuple[Span, ...] = ()
    calls: tuple[Span, ...] = ()
    response: Span | None = None
    think: Span | None = None


def plan_spans(text: str) -> Spans:
    """Spans of a plan; all empty where `parse_plan` fails.

    >>> plan_spans('<plan>[{"task": "", "tool": null, "arguments": {}}]</plan>').sub_tasks
    ((7, 50),)
    """
    if isinstance(parsing.parse_plan(text), ParseFailure):
        return Spans()
    return Spans(sub_tasks=_sub_tasks(text))


def execution_spans(text: str) -> Spans:
    """Spans of an execution; all empty where `parse_execution` fails.

    >>> execution_spans("<response> No. </response>").response
    (11, 14)
    """
    if isinstance(parsing.parse_execution(text), ParseFailure):
        return Spans()
    return _execution(text, 0, ())


def single_spans(text: str) -> Spans:
    """Spans of plan and execution in one text; all empty where `parse_single` fails."""
    if isinstance(parsing.parse_single(text), ParseFailure):
        return Spans()
    after = text.find(parsing.PLAN_CLOSE) + len(parsing.PLAN_CLOSE)
    return _execution(text, after, _sub_tasks(text))


def _sub_tasks(text: str) -> tuple[Span, ...]:
    start, end = _between(text, 0, parsing.PLAN_OPEN, parsing.PLAN_CLOSE)
    return tuple(elements(text, start, end))


def _execution(text: str, position: int, sub_tasks: tuple[Span, ...]) -> Spans:
    """The spans from ``position`` on of a text that parses."""
    position = skip_space(text, position)
    think = response = None
    calls: list[Span] = []
    if text.startswith(parsing.THINK_OPEN, position):
        think = _between(text, position, parsing.THINK_OPEN, parsing.THINK_CLOSE)
        position = skip_space(text, think[1] + len(parsing.THINK_CLOSE))
    if text.startswith(parsing.RESPONSE_OPEN, position):
        span = _between(text, position, parsing.RESPONSE_OPEN, parsing.RESPONSE_CLOSE)
        response = _trimmed(text, *span)
    while text.startswith(parsing.CALL_OPEN, position):
        start, end = _between(text, position, parsing.CALL_OPEN, parsing.CALL_CLOSE)
        calls.append(_trimmed(text, start, end))
        position = skip_space(text, end + len(parsing.CALL_CLOSE))
    return Spans(sub_tasks, tuple(calls), response, think)


def _between(text: str, position: int, opening: str, closing: str) -> Span:
    start = text.index(opening, position) + len(opening)
    return start, text.index(closing, start)


def _trimmed(text: str, start: int, end: int) -> Span:
    body = text[start:end]
    lead = len(body) - len(body.lstrip())
    return start + min(lead, len(body)), start + max(len(body.rstrip()), lead)
