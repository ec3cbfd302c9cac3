"""The form of a trace: one JSON record per rollout tree, task → plans → sub-tasks → samples.

`record.py` writes it and checks what it reads against it; docs/traces.md says it in words.
"""

from __future__ import annotations

from typing import Any, NotRequired

# pydantic reads typing's own TypedDict from Python 3.12 on
from typing_extensions import TypedDict

VERSION = 1


class CallTrace(TypedDict):
    """A tool call."""

    name: str
    arguments: dict[str, Any]


class FailureTrace(TypedDict):
    """Why a text is outside the grammar; ``position`` counts characters from 0."""

    reason: str
    position: int


class ArgumentTrace(TypedDict):
    """`explain.ArgumentVerdict`: ``verdict`` is equal, differs, missing or extra."""

    name: str
    made: Any
    due: Any
    verdict: str
    at: str | None


class VerdictTrace(TypedDict):
    """`explain.CallVerdict`: a call made or planned, and the gold call it was compared with."""

    name: str | None
    due: str | None
    number: int | None
    valid: bool | None
    note: str
    arguments: list[ArgumentTrace]


class StepTrace(TypedDict):
    """`explain.StepVerdict`: what one execution did for one gold step."""

    step: int
    sub_tasks: list[int]
    semantics: float


class PlanBreakdownTrace(TypedDict):
    """`explain.PlanBreakdown`: where R_param (``calls``) and R_exe (``steps``, ``extra``) come from."""

    calls: list[VerdictTrace]
    steps: list[list[StepTrace]]
    extra: int
    covered: bool
    succeeded: list[bool]


class SampledTrace(TypedDict):
    """What plans and executions have in common.

    ``reward`` is what the advantage was computed from, ``parts`` the reward's parts before
    weighting and their ``total`` (``None`` where nothing was judged).
    ``void`` marks what was not sampled or what a broken environment cost: nothing learns from it.
    ``version`` counts the updates behind the weights that a rollout server sampled with.
    """

    version: NotRequired[int]
    text: str
    prompt_tokens: int
    tokens: int
    finished: bool
    failure: FailureTrace | None
    reward: float
    advantage: float
    in_signal: bool
    void: bool
    parts: dict[str, float] | None


class PlanSampleTrace(SampledTrace):
    """The text of a plan; ``breakdown`` is ``None`` where it is outside the grammar."""

    breakdown: PlanBreakdownTrace | None


class SampleTrace(SampledTrace):
    """One execution of a sub-task; ``calls`` have their references replaced by results.

    ``breakdown`` is ``None`` where no gold step is known: nothing was judged.
    """

    breakdown: list[VerdictTrace] | None
    calls: list[CallTrace]
    response: str | None
    result: Any


class SubTaskTrace(TypedDict):
    """One executed sub-task; ``column`` is its gold step from 0, ``gold`` the calls due there."""

    task: str
    tool: str | None
    arguments: dict[str, Any]
    column: int | None
    gold: list[CallTrace] | None
    prompt: str | None
    samples: list[SampleTrace]


class PlanTrace(TypedDict):
    """One plan; ``sample`` is ``None`` in the arms without a planner."""

    sample: PlanSampleTrace | None
    plan: list[dict[str, Any]] | None
    sub_tasks: list[SubTaskTrace]


class TaskTrace(TypedDict):
    """The request; ``gold`` as the record has it, ``resolved`` with references replaced."""

    id: str
    source: str
    messages: list[dict[str, Any]]
    tools: list[str]
    gold: list[CallTrace]
    resolved: list[CallTrace]


class TraceRecord(TypedDict):
    """One rollout tree of one training step."""

    version: int
    arm: str
    seed: int
    step: int
    task: TaskTrace
    weights: dict[str, Any]
    prompt: str | None
    plans: list[PlanTrace]
