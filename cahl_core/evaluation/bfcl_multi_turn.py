"""BFCL multi-turn (v3 and v4): four categories of 200 conversations with simulated tools.

Judged by the official checker: in every turn that has gold calls, at least one call, all simulators in
the same state as after the gold calls, and the gold calls' results among the results so far. Turns
without gold calls (where a tool or a value is missing) are not judged, as in the official package.
How turns are run: `bfcl_turns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cahl_core.evaluation.bfcl.formulas import EDITIONS, multi_turn
from cahl_core.evaluation.bfcl.formulas import MULTI_TURN as CATEGORIES
from cahl_core.evaluation.bfcl.items import check_version, checksums
from cahl_core.evaluation.bfcl.schemas import tool
from cahl_core.evaluation.bfcl.shares import accuracies
from cahl_core.evaluation.bfcl_records import (
    agent_results,
    conversation_efficiency,
    executed,
    outcome,
    transcript,
)
from cahl_core.evaluation.bfcl_simulator import BfclSimulator, TurnVerdict
from cahl_core.evaluation.bfcl_turns import Dialogue, TurnRunner
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record, Solver
from cahl_core.files import digest
from cahl_core.records import Message, ToolCall, ToolSpec
from cahl_core.serving.results import AgentResult

EMPTY = "multi_turn:empty_turn_model_response"
PROTOCOL = {
    "turns": "per turn one plan and one executor text per sub-task, whose calls are run on the "
    "official simulators; flat forms: one text after another until one holds no call",
    "bound": "calls in more than 20 texts of one turn fail the item, as in the official loop",
    "decoding": "a text outside the grammar ends its turn; calls before it count",
    "held_back": "miss_func: at its turn the tools join the list and the official sentence is said; "
    "tools held back can be called before, as in the official executor",
    "references": "$varN.path$ is replaced by this turn's N-th result before a call is run and scored",
}
NOTES = (
    "multi_turn_long_context_38 and _46 need 34 calls in one turn: with one call per text, as in the "
    "hierarchical form, the bound of 20 makes them unreachable; several calls in one text do reach them.",
    "Half of the conversations differ between v3 and v4: their columns are different tests.",
    "Turns without gold calls are not judged (the official checker leaves them out): calls made too "
    "early there can still let an item pass.",
    "The simulators' methods are called with values; the official loop evaluates text, in which a "
    "string argument that looks like a call is rewritten. Scores come from the official checker.",
)

# It asks five times and is judged on six turns.
UNANSWERABLE: dict[str, tuple[str, ...]] = {"v3": ("multi_turn_base_154",), "v4": ()}
UNPASSABLE = "{} has more gold turns than questions: no answer passes; it stays in the scores."


@dataclass(frozen=True, slots=True)
class Conversation:
    """One item: what is said in each turn, the tools offered in it, and its gold calls."""

    said: tuple[tuple[Message, ...], ...]
    tools: tuple[tuple[ToolSpec, ...], ...]
    gold: tuple[tuple[ToolCall, ...], ...]


class BfclMultiTurn:
    """The benchmark ``bfcl_v3_multi_turn`` or ``bfcl_v4_multi_turn``.

    Args:
        wheel: the unzipped package of that version.
        timeout: seconds the worker may take for one request.
        call_timeout: seconds one call may take; a longer one fails as the model's call.
    """

    def __init__(
        self, version: Literal["v3", "v4"], wheel: Path, timeout: float, call_timeout: float = 10
    ) -> None:
        self.version = version
        self.name = f"bfcl_{version}_multi_turn"
        self.title = f"BFCL {version} multi-turn"
        self.simulator = BfclSimulator(wheel, timeout, call_timeout)
        self._items: list[Item] = []
        self._steps = 0

    def depends_on(self) -> Any:
        """Digests of the simulators and of the bound on steps, which the items do not show."""
        self.items()
        return [self.simulator.sources(), self._steps]

    def close(self) -> None:
        """Ends the simulators' process; it starts again when it is needed."""
        self.simulator.end()

    def items(self) -> Sequence[Item]:
        """All 800, by category, in the package's order."""
        if not self._items:
            reply = self.simulator.load(CATEGORIES)
            check_version(reply["version"], EDITIONS[self.version], self.simulator.wheel)
            tools = [(tool(document), digest(document)) for document in reply["documents"]]
            self._steps = reply["steps"]
            self._items = [_item(record, tools, reply["added"]) for record in reply["items"]]
        return self._items

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        """The attempts move together, turn by turn; each is emitted after its last one."""
        self.items()
        runner = TurnRunner(solver, self.simulator, self._steps)
        keys = [f"{a.item.id}/{a.sample}" for a in attempts]
        dialogues = [Dialogue(k, a.seed) for k, a in zip(keys, attempts, strict=True)]
        live = list(zip(attempts, dialogues, strict=True))
        with self.simulator.opened({d.key: a.item.id for a, d in live}):
            number = 0
            while live:
                for attempt, dialogue in live:
                    dialogue.tools = attempt.item.data.tools[number]
                runner.run([d for _, d in live], [a.item.data.said[number] for a, _ in live])
                number += 1
                for attempt, dialogue in live:
                    if _done(attempt, dialogue):
                        emit(attempt, dialogue.to_json())
                live = [(a, d) for a, d in live if not _done(a, d)]

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        """The official verdicts, each on simulators of its own."""
        pairs = list(zip(attempts, records, strict=True))
        verdicts = self.simulator.score([(a.item.id, _whole_turns(r)) for a, r in pairs])
        return [_score(a, r, v) for (a, r), v in zip(pairs, verdicts, strict=True)]

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """``errors``; ``multi_turn``, the leaderboard's column, where all four categories are whole."""
        kinds = sorted({s.error_type for s in scores if s.error_type})
        errors = {k: sum(s.error_type == k for s in scores) for k in kinds}
        counts = {c: sum(i.category == c for i in self.items()) for c in CATEGORIES}
        mean = multi_turn(accuracies(scores, counts))
        return {"errors": errors} | ({} if mean is None else {"multi_turn": mean})

    def about(self) -> dict[str, Any]:
        """Protocol, notes, checksums, counts."""
        counts = {c: sum(i.category == c for i in self.items()) for c in CATEGORIES}
        files = [f"BFCL_{self.version}_{c}.json" for c in CATEGORIES]
        data = [*files, *(f"possible_answer/{f}" for f in files)]
        return {
            "protocol": dict(PROTOCOL),
            "notes": [*NOTES, *(UNPASSABLE.format(i) for i in UNANSWERABLE[self.version])],
            "data": checksums(self.simulator.wheel, data),
            "counts": counts,
        }

    def example(self, attempt: Attempt, record: Record) -> str:
        """The conversation with its calls and results, and the gold calls."""
        item: Conversation = attempt.item.data
        gold = [f"gold (turn {n}): {_calls(turn)}" for n, turn in enumerate(item.gold, 1)]
        return "\n".join([transcript(item.said, record["turns"]), *gold])


def _item(record: Mapping[str, Any], documents: Sequence[tuple[ToolSpec, str]], added: str) -> Item:
    """One item; ``documents`` are the tools with their digests, which records index."""
    where = f"BFCL item {record['id']}"
    numbers, said, offered = list(record["functions"]), [], []
    for number, messages in enumerate(record["question"]):
        if joining := record["held_back"].get(str(number)):
            numbers = numbers + joining
            messages = [{"role": "user", "content": added}]
        said.append(tuple(Message.from_json(m, where) for m in messages))
        offered.append(numbers)
    gold = tuple(tuple(ToolCall.from_json(c, where) for c in t) for t in record["gold_calls"])
    shown = {
        "said": [[m.to_json() for m in turn] for turn in said],
        "tools": [digest([documents[n][1] for n in turn]) for turn in offered],
        "simulators": record["seed"],
    }
    tools = tuple(tuple(documents[n][0] for n in turn) for turn in offered)
    data = Conversation(tuple(said), tools, gold)
    return Item(record["id"], record["category"], shown, data)


def _done(attempt: Attempt, dialogue: Dialogue) -> bool:
    return dialogue.over or len(dialogue.turns) == len(attempt.item.data.said)


def _whole_turns(record: Record) -> list[list[list[ToolCall | None]]]:
    """The calls by turn and step; without the turn that ended the conversation too early."""
    turns = [executed(t) for t in record["turns"]]
    return turns[:-1] if record["forced"] or record["too_long"] else turns


def _score(attempt: Attempt, record: Record, verdict: TurnVerdict) -> ItemScore:
    item: Conversation = attempt.item.data
    turns = record["turns"]
    gold = [c for turn in item.gold for c in turn] if verdict.valid else None
    results = [r for turn in turns for r in agent_results(turn)]
    kind, error = _fault(record, verdict, results)
    return ItemScore(
        attempt.item.id,
        attempt.item.category,
        float(verdict.valid),
        outcome(results),
        {"turns_right": verdict.turn / len(item.gold)},
        error_type=kind,
        error=error,
        sample=attempt.sample,
        **conversation_efficiency(turns, item.tools, gold),
    )


def _fault(
    record: Record, verdict: TurnVerdict, results: Sequence[AgentResult]
) -> tuple[str | None, str]:
    """Official error type and text; an empty turn with a text outside the grammar has its own."""
    if record["too_long"]:
        too_long = (r.too_long for r in results if r.too_long)
        return "multi_turn:prompt_too_long", next(too_long, "")
    if record["forced"]:
        return "multi_turn:force_terminated", f"too many steps in turn {len(record['turns'])}"
    if verdict.error_type == EMPTY:
        failed = outcome(agent_results(record["turns"][verdict.turn]))
        if failed in ("plan_failure", "execution_failure"):
            return "multi_turn:decode_failure", f"{verdict.error} ({failed})"
    return verdict.error_type, verdict.error


def _calls(calls: Sequence[ToolCall]) -> str:
    return ", ".join(f"{c.name}({c.arguments})" for c in calls) or "(none)"
