"""Reading the records of BFCL conversations: calls, texts, outcome, efficiency; pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.call_metrics import call_key
from cahl_core.evaluation.outcomes import efficiency
from cahl_core.records import ToolCall, ToolSpec
from cahl_core.serving.results import AgentResult

FAILURES = ("prompt_too_long", "plan_failure", "execution_failure")
WIDTH = 400  # characters of one result in an example


def agent_results(turn: Mapping[str, Any]) -> list[AgentResult]:
    """The texts of one turn, parsed again."""
    return [AgentResult.from_json(r) for r in turn["results"]]


def executed(turn: Mapping[str, Any]) -> list[list[ToolCall | None]]:
    """The calls of a turn, step by step; ``None`` for one that was given up."""
    return [
        [None if c.get("timed_out") else ToolCall(c["name"], c["arguments"]) for c in step]
        for step in turn["steps"]
    ]


def outcome(results: Sequence[AgentResult]) -> str:
    """The worst kind of output among a conversation's texts; calls before abstention."""
    kinds = [r.outcome for r in results]
    return next((k for k in (*FAILURES, "calls") if k in kinds), "abstained")


def conversation_efficiency(
    turns: Sequence[Mapping[str, Any]],
    tools: Sequence[Sequence[ToolSpec]],
    gold: Sequence[ToolCall] | None = None,
) -> dict[str, Any]:
    """`outcomes.efficiency` of a conversation; calls are redundant by what they did to the state.

    Args:
        tools: what each turn was offered.
        gold: of a solved item, the calls it needed.
    """
    results = [(r, tools[n]) for n, turn in enumerate(turns) for r in agent_results(turn)]
    measured = efficiency([r for r, _ in results], [t for _, t in results])
    return {**measured, "redundant": redundant(turns, gold)}


def redundant(turns: Sequence[Mapping[str, Any]], gold: Sequence[ToolCall] | None = None) -> int:
    """Calls that were made before in the very state they were made in again (no call in between, nor
    the earlier one itself, changed it); in a solved item instead those beyond the gold calls."""
    calls = [call for turn in turns for step in turn["steps"] for call in step]
    keys = [call_key(ToolCall(c["name"], c["arguments"])) for c in calls]
    if gold is not None:
        return sum((Counter(keys) - Counter(map(call_key, gold))).values())
    count, since = 0, set[str]()
    for key, call in zip(keys, calls, strict=True):
        count += key in since
        since = set() if call["changed"] else since | {key}
    return count


def transcript(said: Sequence[Sequence[Any]], turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation for people: messages, texts as written, results cut to `WIDTH` characters."""
    lines: list[str] = []
    for number, (messages, turn) in enumerate(zip(said, turns, strict=False), 1):
        lines += [f"{m.role} (turn {number}): {m.content}" for m in messages]
        for result in agent_results(turn):
            lines += [f"  plan: {result.plan_text}"] if result.plan_text is not None else []
            lines += [f"  text: {step.text}" for step in result.steps]
            lines += [f"  {result.too_long}"] if result.too_long else []
        lines += [
            f"  {call['name']}({call['arguments']}) → {cut(call['result'])}"
            for step in turn["steps"]
            for call in step
        ]
    return "\n".join(lines)


def cut(text: str) -> str:
    """At most `WIDTH` characters, and how many there were."""
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}… ({len(text)} characters)"
