"""What a run of chained calls did, against the gold calls: steps, success, the answer in words.

Calls are compared with references replaced by results, under `canonical`'s equality. Where a result is
not recorded a reference stays as it is; it is then read as a reference to the gold call that the earlier
call made (equal gold calls count as one), so that NESTFUL's chains can be judged without results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.call_schema import schema_fault
from cahl_core.canonical import EXACT, canonical
from cahl_core.datasets.targets import resolved_gold
from cahl_core.environments.base import resolved_call
from cahl_core.evaluation import qa_metrics
from cahl_core.evaluation.chained_references import renumbered
from cahl_core.explain import CallVerdict, explain_execution
from cahl_core.protocol.parsing import Execution, ParseFailure, parse_execution
from cahl_core.records import ToolCall, ToolTask
from cahl_core.serving.results import AgentResult
from cahl_core.train_config import ValueSettings

FAILURES = {
    "plan_failure": "the plan cannot be read",
    "execution_failure": "an executor's text cannot be read",
    "prompt_too_long": "a prompt left no room for its text",
}


@dataclass(frozen=True, slots=True)
class MadeCall:
    """One call of a run.

    Attributes:
        call: references replaced by results where these are known.
        compared: the same, references that are left naming gold calls.
        fault: why it does not fit its tool's schema, or ``None``.
    """

    call: ToolCall
    compared: ToolCall
    fault: str | None


@dataclass(frozen=True, slots=True)
class Chain:
    """A run beside its gold.

    Attributes:
        gold: gold calls as they are compared, in order.
        matched: for each gold call whether the run made exactly it; each call counts once.
        extra: calls that match no gold call, or one that another call has matched.
    """

    made: tuple[MadeCall, ...]
    gold: tuple[ToolCall, ...]
    matched: tuple[bool, ...]
    extra: int

    def verdicts(self, task: ToolTask, rules: ValueSettings = EXACT) -> list[CallVerdict]:
        """A verdict per call and argument (`explain.explain_execution`)."""
        calls = tuple(m.compared for m in self.made)
        return explain_execution(Execution(calls), self.gold, task.tools, rules)


def judge_run(result: AgentResult, task: ToolTask, rules: ValueSettings = EXACT) -> Chain:
    """Which gold calls a free run made, exactly, and what else it called."""
    gold, same = _gold_as_compared(task, rules)
    classes = {_key(call, rules): same[j + 1] for j, call in enumerate(gold)}
    open_ = Counter(_key(call, rules) for call in gold)
    made: list[MadeCall] = []
    numbers: dict[int, int] = {}
    for number, alone, call in _resolved(result, task):
        compared = ToolCall(call.name, renumbered(call.arguments, numbers))
        key = _key(compared, rules)
        if alone and key in classes:
            numbers[number] = classes[key]
        made.append(MadeCall(call, compared, schema_fault(call, task.tools)))
    found = Counter(_key(m.compared, rules) for m in made) & open_
    matched = []
    for call in gold:
        matched.append(found[_key(call, rules)] > 0)
        found[_key(call, rules)] -= matched[-1]
    return Chain(tuple(made), tuple(gold), tuple(matched), len(made) - sum(matched))


def _gold_as_compared(
    task: ToolTask, rules: ValueSettings
) -> tuple[list[ToolCall], dict[int, int]]:
    """Gold calls, references left naming the first of equal calls, and number → that number."""
    first: dict[str, int] = {}
    same: dict[int, int] = {}
    calls = []
    for number, call in enumerate(resolved_gold(task), 1):
        call = ToolCall(call.name, renumbered(call.arguments, same))
        same[number] = first.setdefault(_key(call, rules), number)
        calls.append(call)
    return calls, same


def _resolved(result: AgentResult, task: ToolTask) -> Iterator[tuple[int, bool, ToolCall]]:
    """Every call with the number that references name it by, and whether that is its alone."""
    if result.form != "hierarchical":  # one text: references count its calls
        for step in result.steps:
            results = list(step.result) if isinstance(step.result, list) else []
            calls = step.execution.calls if isinstance(step.execution, Execution) else ()
            for number, call in enumerate(calls, 1):
                yield number, True, resolved_call(call, task, results[: number - 1])
        return
    for number, step in enumerate(result.steps, 1):
        earlier = [s.result for s in result.steps[: number - 1]]
        calls = step.execution.calls if isinstance(step.execution, Execution) else ()
        for call in calls:
            yield number, len(calls) == 1, resolved_call(call, task, earlier)


def _key(call: ToolCall, rules: ValueSettings) -> str:
    return f"{call.name}\n{canonical(call.arguments, rules)}"


# --- teacher-forced ------------------------------------------------------------------------------


def forced_call(text: str | None, number: int, task: ToolTask) -> ToolCall | str:
    """The one call of the text for gold call ``number`` (from 0), resolved, or why there is none."""
    if text is None:
        return FAILURES["prompt_too_long"]
    execution = parse_execution(text)
    if isinstance(execution, ParseFailure):
        return f"the text cannot be read: {execution.reason}"
    if len(execution.calls) != 1:
        return (
            f"{len(execution.calls)} calls, one is due" if execution.calls else "answered in words"
        )
    return resolved_call(execution.calls[0], task, task.results[:number])


def forced_correct(
    texts: Sequence[str | None], task: ToolTask, rules: ValueSettings = EXACT
) -> list[bool]:
    """For the text written after the gold calls before k, whether it is exactly gold call k."""
    gold, same = _gold_as_compared(task, rules)
    judged = []
    for number, (text, due) in enumerate(zip(texts, gold, strict=True)):
        call = forced_call(text, number, task)
        if isinstance(call, str):
            judged.append(False)
            continue
        made = ToolCall(call.name, renumbered(call.arguments, same))
        judged.append(_key(made, rules) == _key(due, rules))
    return judged


# --- verdict on the whole ------------------------------------------------------------------------


def failure(
    result: AgentResult, chain: Chain, task: ToolTask, rules: ValueSettings = EXACT
) -> tuple[str, str] | None:
    """Why the task was not solved (a word for counting, a sentence), or ``None``: it was.

    Solved: every text can be read, every gold call was made with exactly its values, and no call is
    invalid. Calls beyond the gold ones cost nothing here; they are counted as extra and redundant.
    Where no call is due: none was made, and every text can be read (a clean abstention).
    """
    if result.outcome in FAILURES:
        return result.outcome, result.too_long or _unreadable(result)
    if not task.calls:
        names = ", ".join(m.call.name for m in chain.made)
        return ("needless_call", f"no call is due, but {names} was called") if chain.made else None
    for made in chain.made:
        if made.fault is not None:
            return "invalid_call", f"{made.call.name}: {made.fault}"
    if all(chain.matched):
        return None
    return _unmet(chain, task, rules)


def _unreadable(result: AgentResult) -> str:
    if isinstance(result.plan, ParseFailure):
        return f"{FAILURES['plan_failure']}: {result.plan.reason}"
    if result.outcome == "plan_failure":
        return FAILURES["plan_failure"]
    for number, step in enumerate(result.steps, 1):
        if isinstance(step.execution, ParseFailure):
            return f"the text of sub-task {number} cannot be read: {step.execution.reason}"
    return FAILURES["execution_failure"]


def _unmet(chain: Chain, task: ToolTask, rules: ValueSettings) -> tuple[str, str]:
    number = chain.matched.index(False)
    due = chain.gold[number]
    if not chain.made:
        return "no_call", f"{len(chain.gold)} calls are due, none was made"
    verdict = next((v for v in chain.verdicts(task, rules) if v.number == number), None)
    if verdict is None or verdict.name is None:
        return "missing_call", f"call {number + 1} ({due.name}) was not made"
    wrong = [f"{a.name} {a.verdict}" for a in verdict.arguments if a.verdict != "equal"]
    said = ", ".join(wrong) or "made fewer times than due"
    return "wrong_arguments", f"call {number + 1} ({due.name}): {said}"


def chain_scores(chain: Chain, task: ToolTask) -> dict[str, float | None]:
    """``step_accuracy_free``: gold calls made exactly, as a share; ``extra_calls``: their number."""
    steps = sum(chain.matched) / len(chain.matched) if task.calls else None
    return {"step_accuracy_free": steps, "extra_calls": float(chain.extra)}


def response_scores(response: str | None, meta: Mapping[str, Any]) -> dict[str, float | None]:
    """``response_exact`` and ``response_cover`` where ``meta.answer`` is given (`qa_metrics`).

    Against the answer or one of ``meta.answer_aliases``, whichever fits best; no response scores 0.
    """
    answer = meta.get("answer")
    if not isinstance(answer, str) or not qa_metrics.normalise(answer):
        return {"response_exact": None, "response_cover": None}
    aliases = meta.get("answer_aliases")
    accepted = (
        [answer, *(a for a in aliases if isinstance(a, str))]
        if isinstance(aliases, list)
        else [answer]
    )
    said = response or ""
    return {
        "response_exact": qa_metrics.exact(said, accepted),
        "response_cover": qa_metrics.covers(said, accepted),
    }
