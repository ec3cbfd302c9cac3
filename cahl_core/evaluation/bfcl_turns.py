"""Conversations with BFCL's simulators, turn by turn, in every form of the model.

Hierarchical: one plan per turn, made from the conversation so far; then one executor text per
sub-task, with the results of the earlier ones. Flat: text after text, each with the results of the
earlier ones in the conversation, until one holds no call. In all forms:

- a text outside the grammar ends the turn: what the plan has after it is not carried out;
- the turn in which calls are made in a 21st text ends the conversation, which is failed (the
  official bound of 20 steps);
- ``$varN.path$`` stands for a result of this turn: of sub-task N, in the flat forms of its N-th call;
- a prompt that is too long ends the conversation, which is failed.

Later turns see calls (references replaced) as an assistant's, results as a tool's, and words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cahl_core.datasets.references import resolve
from cahl_core.evaluation.bfcl_simulator import BfclSimulator, CallResult
from cahl_core.evaluation.core import Solver
from cahl_core.protocol.parsing import Execution
from cahl_core.records import Message, Plan, ToolCall, ToolSpec
from cahl_core.serving.results import AgentResult, Request

Executed = tuple[ToolCall, CallResult]


@dataclass(slots=True)
class Turn:
    """One turn: the model's texts, and the calls of each text that made any, as executed."""

    results: list[AgentResult] = field(default_factory=list)
    steps: list[list[Executed]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Results of calls are kept once: with the calls, as the official executor shows them."""
        texts = [r.to_json() for r in self.results]
        for text in texts:
            text["steps"] = [{**step, "result": None} for step in text["steps"]]
        return {"results": texts, "steps": [[_executed(*c) for c in s] for s in self.steps]}


@dataclass(slots=True)
class Dialogue:
    """One sample's conversation; ``key`` is that of its open simulators."""

    key: str
    seed: str
    tools: tuple[ToolSpec, ...] = ()
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    forced: bool = False
    too_long: bool = False

    @property
    def over(self) -> bool:
        """Failed before its last turn was done."""
        return self.forced or self.too_long

    def to_json(self) -> dict[str, Any]:
        return {
            "turns": [turn.to_json() for turn in self.turns],
            "forced": self.forced,
            "too_long": self.too_long,
        }


class TurnRunner:
    """Runs turns of many dialogues together.

    Args:
        limit: texts with calls that a turn may have.
    """

    def __init__(self, solver: Solver, simulator: BfclSimulator, limit: int) -> None:
        self.solver, self.simulator, self.limit = solver, simulator, limit

    def run(self, dialogues: Sequence[Dialogue], said: Sequence[Sequence[Message]]) -> None:
        """One more turn of every dialogue, begun by what is ``said`` in it."""
        for dialogue, messages in zip(dialogues, said, strict=True):
            dialogue.messages += messages
            dialogue.turns.append(Turn())
        live = list(dialogues)
        while live:
            live = self._texts(live)
            if self.solver.form == "hierarchical":
                break

    def _texts(self, live: Sequence[Dialogue]) -> list[Dialogue]:
        """One plan or one flat text of each; the dialogues whose turn goes on."""
        calls = [Calls(self.simulator, d, self.solver.form, self.limit) for d in live]
        requests = [
            Request(
                tuple(d.messages),
                d.tools,
                environment,
                f"{d.seed}/{len(d.turns) - 1}/{len(d.turns[-1].results)}",
                continues=True,
            )
            for d, environment in zip(live, calls, strict=True)
        ]
        results = self.solver.run(requests)
        for dialogue, made, result in zip(live, calls, results, strict=True):
            dialogue.turns[-1].results.append(result)
            dialogue.too_long = result.too_long is not None
            dialogue.messages += history(made.steps, result)
        return [d for d, made in zip(live, calls, strict=True) if made.steps and not d.over]


class Calls:
    """What answers the calls of one request: an `Environment` on one dialogue's simulators."""

    def __init__(self, simulator: BfclSimulator, dialogue: Dialogue, form: str, limit: int) -> None:
        self.simulator, self.dialogue, self.limit = simulator, dialogue, limit
        self.by_sub_task = form == "hierarchical"
        self.steps: list[list[Executed]] = []
        self.results: list[Any] = []
        self.ended = False
        if not self.by_sub_task:
            self.results = [r.value for s in dialogue.turns[-1].steps for _, r in s]

    def __call__(self, plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        """The calls' results, or ``None`` where there is no call or the turn has ended."""
        if self.by_sub_task and number != len(self.results):  # an earlier text was no execution
            self.ended = True
        if self.ended:
            return None
        if calls and len(self.dialogue.turns[-1].steps) == self.limit:
            self.dialogue.forced = self.ended = True
            return None
        step: list[Executed] = []
        for call in calls:
            done = self._execute(call)
            step.append(done)
            if not self.by_sub_task:
                self.results.append(done[1].value)
        returned = shown(step)
        if self.by_sub_task:
            self.results.append(returned)
        if step:
            self.steps.append(step)
            self.dialogue.turns[-1].steps.append(step)
        return returned

    def _execute(self, call: ToolCall) -> Executed:
        spec = next((t for t in self.dialogue.tools if t.name == call.name), None)
        arguments = resolve(call, self.results, spec.parameters if spec else {})
        # a reference that leads nowhere stays as it is written: a tool may refuse it
        made = call if arguments is None else ToolCall(call.name, arguments)
        return made, self.simulator.call(self.dialogue.key, made)


def shown(step: Sequence[Executed]) -> Any:
    """What the executor of the next sub-task reads: one call's result, or a list of them."""
    values = [result.value for _, result in step]
    return values[0] if len(values) == 1 else values or None


def history(steps: Sequence[Sequence[Executed]], result: AgentResult) -> list[Message]:
    """What later turns see of a text or of a plan's texts."""
    messages: list[Message] = []
    for step in steps:
        messages.append(Message("assistant", "", tuple(call for call, _ in step)))
        messages += [Message("tool", done.text, name=call.name) for call, done in step]
    if result.response:
        messages.append(Message("assistant", result.response))
    return messages


def last_words(result: AgentResult) -> str | None:
    """The official last message that is no call: words, or a text that cannot be decoded."""
    for step in reversed(result.steps):
        if not isinstance(step.execution, Execution):
            return step.text
        if not step.execution.calls:
            return step.execution.response
    return result.plan_text if not result.steps and result.form == "single_level" else None


def _executed(call: ToolCall, result: CallResult) -> dict[str, Any]:
    record = {**call.to_json(), "result": result.text, "changed": result.changed}
    return {**record, "timed_out": True} if result.timed_out else record
