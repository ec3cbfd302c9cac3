"""What an agent is asked and what came of it, the same for every form of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cahl_core.protocol.parsing import Execution, ParseFailure, parse_execution, parse_plan
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec
from cahl_core.train_config import Form

Outcome = Literal["calls", "abstained", "plan_failure", "execution_failure", "prompt_too_long"]

# (plan, number of the sub-task from 0, its calls) → what they returned; None where nobody can tell.
# In a flat form there is one sub-task, the whole request; without a planner the plan is empty.
Environment = Callable[[Plan, int, Sequence[ToolCall]], Any]

# The only sub-task of a flat form: its words are the request's, which is not repeated here.
WHOLE_REQUEST = SubTask("", None, {})


@dataclass(frozen=True, slots=True)
class Request:
    """What an agent is asked, with what, and who answers its calls (``None``: nobody).

    Attributes:
        plan: given instead of asked for: the planner writes nothing (an oracle's plan, a single
            sub-task). The flat forms have no use for it.
        feedback: sub-tasks that were carried out before, with their results: what the executor sees
            before its own.
        continues: a later request will repeat this one's messages: what was encoded of them is kept.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    results: Environment | None = None
    seed: str = ""
    plan: Plan | None = None
    feedback: tuple[tuple[SubTask, Any], ...] = ()
    continues: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """One sub-task as the executor carried it out."""

    sub_task: SubTask
    text: str
    execution: Execution | ParseFailure
    result: Any = None


@dataclass(slots=True)
class AgentResult:
    """Everything one request led to.

    In ``low_only`` there is no plan. In ``single_level`` the one text is kept in its two parts:
    ``plan_text`` up to ``</plan>``, and the rest as the only step. ``calls`` holds the calls of the
    texts that parsed, also where another one did not.
    """

    plan_text: str | None = None
    plan: Plan | ParseFailure | None = None
    steps: list[StepResult] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    too_long: str | None = None
    form: Form = "hierarchical"

    def to_json(self) -> dict[str, Any]:
        """What was written, and what `from_json` needs to parse it again."""
        return {
            "plan_text": self.plan_text,
            "steps": [{"text": s.text, "result": s.result} for s in self.steps],
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "too_long": self.too_long,
            "form": self.form,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AgentResult:
        """Rebuilds a result from its texts."""
        text = record["plan_text"]
        form = record.get("form", "hierarchical")
        result = cls(text, None if text is None else parse_plan(text), form=form)
        for sub_task, step in zip(result.sub_tasks, record["steps"], strict=False):
            execution = parse_execution(step["text"])
            result.steps.append(StepResult(sub_task, step["text"], execution, step["result"]))
        result.prompt_tokens = record["prompt_tokens"]
        result.completion_tokens = record["completion_tokens"]
        result.too_long = record["too_long"]
        return result

    @property
    def sub_tasks(self) -> tuple[SubTask, ...]:
        """What the executor is to carry out, in order."""
        if self.form == "low_only":
            return (WHOLE_REQUEST,)
        if not isinstance(self.plan, Plan):
            return ()
        return self.plan.sub_tasks if self.form == "hierarchical" else (WHOLE_REQUEST,)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(
            call
            for step in self.steps
            if isinstance(step.execution, Execution)
            for call in step.execution.calls
        )

    @property
    def response(self) -> str | None:
        """The last answer in words, if any step gave one."""
        said = [s.execution.response for s in self.steps if isinstance(s.execution, Execution)]
        return next((text for text in reversed(said) if text), None)

    @property
    def outcome(self) -> Outcome:
        """``abstained`` needs a valid plan (if there is a planner) and valid texts without a call."""
        if self.too_long is not None:
            return "prompt_too_long"
        if not isinstance(self.plan, Plan) and self.form != "low_only":
            return "plan_failure"
        if any(isinstance(s.execution, ParseFailure) for s in self.steps):
            return "execution_failure"
        return "calls" if self.calls else "abstained"
