"""BFCL v4 memory (key-value and recursive summary): what a model noted down, and finds again.

37 conversations of five scenarios fill the memory through the model's own calls, each scenario's one
after another with the memory carried over; then 155 questions are asked, each with the memory as its
scenario left it. An answer is right if the official checker finds a gold answer in the last message
that is no call.

The conversations of a scenario are held once per solver and sample, before its first question, and
kept in ``notes`` one by one: a killed evaluation goes on with the next one, and all questions, now or
later, meet the same memory. Every record holds the memory that its question met, so a score depends
on the record alone. Items alternate between the scenarios, whose conversations move together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cahl_core.evaluation.bfcl.formulas import V4
from cahl_core.evaluation.bfcl.items import check_version, checksums
from cahl_core.evaluation.bfcl.schemas import tool
from cahl_core.evaluation.bfcl_memory_writing import MemoryWriting, spoken
from cahl_core.evaluation.bfcl_records import (
    agent_results,
    conversation_efficiency,
    outcome,
    transcript,
)
from cahl_core.evaluation.bfcl_simulator import BfclSimulator, Opened
from cahl_core.evaluation.bfcl_turns import Dialogue, TurnRunner, last_words
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record, Solver
from cahl_core.files import digest, dump_json
from cahl_core.records import Message, Plan, SubTask, ToolSpec
from cahl_core.serving.results import AgentResult, Request

Backend = Literal["kv", "rec_sum"]
ANSWER = "Answer the question in words."
PROTOCOL = {
    "writing": "37 conversations, in each scenario one after another; the memory holds what the "
    "model's own calls wrote; turns as in BFCL multi-turn",
    "asking": "155 questions, each with its scenario's memory; the last message that is no call is "
    "judged by the official agentic_checker",
    "answer": f"hierarchical: a plan without an answer in words is followed by the sub-task "
    f"'{ANSWER}' with the question, the visible memory and the results so far",
    "bound": "calls in more than 20 texts of one turn end a conversation; what was written stays",
}
NOTES = (
    "`stored` is the share of questions whose gold answer stands in the memory at all: a wrong answer "
    "to a stored one was lost in reading, not in writing.",
    "memory_vector (an embedding model) and web_search (a search key) cannot be run offline: there is "
    "no agentic score, and so no v4 overall.",
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question, its scenario, the tools, and the gold answers."""

    text: str
    scenario: str
    tools: tuple[ToolSpec, ...]
    gold: tuple[str, ...]


class BfclMemory:
    """The benchmark ``bfcl_v4_memory_kv`` or ``bfcl_v4_memory_rec_sum``.

    Args:
        wheel: the unzipped package of v4.
        timeout: seconds the worker may take for one request.
        call_timeout: seconds one call may take; a longer one fails as the model's call.
    """

    def __init__(
        self, backend: Backend, wheel: Path, timeout: float, call_timeout: float = 10
    ) -> None:
        self.category = f"memory_{backend}"
        self.name = f"bfcl_v4_{self.category}"
        self.title = f"BFCL v4 memory ({backend})"
        self.simulator = BfclSimulator(wheel, timeout, call_timeout)
        self.notes: Path | None = None
        self._items: list[Item] = []
        self._tools: tuple[ToolSpec, ...] = ()
        self._writing: Any = None
        self._told = ""

    def keep_notes(self, folder: Path) -> None:
        """Conversations that filled a memory are kept in ``folder``, one model's under one key."""
        self.notes = folder

    def depends_on(self) -> Any:
        """Digest of the simulators, the conversations that fill the memory, and its tools."""
        self.items()
        return [self.simulator.sources(), self._told, [t.to_json() for t in self._tools]]

    def close(self) -> None:
        """Ends the simulators' process; it starts again when it is needed."""
        self.simulator.end()

    def items(self) -> Sequence[Item]:
        """The 155 questions, taken from the scenarios in turn."""
        if not self._items:
            reply = self.simulator.load([self.category])
            check_version(reply["version"], V4, self.simulator.wheel)
            records = reply["items"]
            self._tools = tuple(tool(reply["documents"][n]) for n in records[0]["functions"])
            writing = [r for r in records if "prereq" in r["id"]]
            talks: dict[str, list[str]] = {}
            for record in sorted(writing, key=lambda r: len(r["depends_on"])):
                talks.setdefault(record["scenario"], []).append(record["id"])
            self._writing = MemoryWriting(self.simulator, talks, self._tools, reply["steps"])
            told = digest([[r["id"], r["question"]] for r in writing])
            asked = [r for r in records if "prereq" not in r["id"]]
            self._told = told
            self._items = [self._item(r, told) for r in _alternating(asked)]
        return self._items

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        """Fills the memories that are not filled yet, then asks all questions together."""
        self.items()
        needed = {(a.item.data.scenario, a.sample) for a in attempts}
        self._writing.notes = self.notes
        memories = self._writing.after(solver, sorted(needed))
        runner = TurnRunner(solver, self.simulator, self._writing.steps)
        kept = [memories[a.item.data.scenario, a.sample] for a in attempts]
        dialogues = [Dialogue(f"{a.item.id}/{a.sample}", a.seed, self._tools) for a in attempts]
        begun = [
            self.simulator.open(d.key, a.item.id, m)
            for d, a, m in zip(dialogues, attempts, kept, strict=True)
        ]
        try:
            runner.run(dialogues, [spoken(o)[0] for o in begun])
            _ask_for_answers(solver, dialogues, attempts, begun)
        except BaseException:
            self.simulator.end()
            raise
        for attempt, dialogue, memory in zip(attempts, dialogues, kept, strict=True):
            self.simulator.close(dialogue.key)
            emit(attempt, {**dialogue.to_json(), "memory": memory})

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        """The official verdicts on the last messages that are no calls."""
        words = [_answer(r) for r in records]
        given = [(a.item.id, w or "") for a, w in zip(attempts, words, strict=True)]
        stored = [(a.item.id, _text(r["memory"])) for a, r in zip(attempts, records, strict=True)]
        verdicts = self.simulator.judge([*given, *stored])
        scores = []
        for i, (attempt, record) in enumerate(zip(attempts, records, strict=True)):
            score = _score(attempt, record, words[i], verdicts[i].valid)
            found = float(verdicts[len(given) + i].valid)
            scores.append(replace(score, scores={"stored": found}))
        return scores

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """Accuracy by scenario, and of the questions whose answer was stored."""
        scenario = {i.id: i.data.scenario for i in self.items()}
        groups: dict[str, list[float]] = {}
        for score in scores:
            groups.setdefault(scenario[score.id], []).append(score.correct)
        read = [s.correct for s in scores if s.scores["stored"]]
        return {
            "scenarios": {k: sum(v) / len(v) for k, v in sorted(groups.items())},
            "stored_n": len(read),
            **({"stored_accuracy": sum(read) / len(read)} if read else {}),
        }

    def about(self) -> dict[str, Any]:
        """Protocol, notes, checksums, counts."""
        self.items()
        talks = [
            f"memory_prereq_conversation/memory_{s}.json"
            for s in sorted(self._writing.conversations)
        ]
        data = ["BFCL_v4_memory.json", "possible_answer/BFCL_v4_memory.json", *talks]
        return {
            "protocol": dict(PROTOCOL),
            "notes": list(NOTES),
            "data": checksums(self.simulator.wheel, data),
            "counts": {self.category: len(self._items)},
        }

    def example(self, attempt: Attempt, record: Record) -> str:
        """The question with its texts and calls, the memory it met, and the gold answers."""
        question: Question = attempt.item.data
        return "\n".join(
            [
                f"memory: {dump_json(record['memory'])}",
                transcript([[Message("user", question.text)]], record["turns"]),
                f"answer: {_answer(record)}",
                f"gold: {' | '.join(question.gold)}",
            ]
        )

    def _item(self, record: Mapping[str, Any], writing: str) -> Item:
        question = record["question"][0][-1]["content"]
        shown = {
            "question": record["question"],
            "conversations": writing,
            "tools": digest([t.to_json() for t in self._tools]),
        }
        data = Question(question, record["scenario"], self._tools, tuple(record["gold"]))
        return Item(record["id"], self.category, shown, data)


def _ask_for_answers(
    solver: Solver,
    dialogues: Sequence[Dialogue],
    attempts: Sequence[Attempt],
    begun: Sequence[Opened],
) -> None:
    """Where a plan has led to no words, one more executor text is asked for them."""
    if solver.form != "hierarchical":
        return
    silent, requests = [], []
    for dialogue, attempt, opened in zip(dialogues, attempts, begun, strict=True):
        result = dialogue.turns[-1].results[-1]
        if dialogue.over or result.response is not None:
            continue
        question = {"question": attempt.item.data.text, "memory": opened.visible}
        plan = Plan((SubTask(ANSWER, None, question),))
        feedback = _feedback(dialogue, result)
        seed = f"{dialogue.seed}/0/1"
        messages = tuple(dialogue.messages)
        silent.append(dialogue)
        requests.append(Request(messages, dialogue.tools, seed=seed, plan=plan, feedback=feedback))
    for dialogue, result in zip(silent, solver.run(requests), strict=True):
        dialogue.turns[-1].results.append(result)
        dialogue.too_long = result.too_long is not None


def _feedback(dialogue: Dialogue, result: AgentResult) -> tuple[tuple[SubTask, Any], ...]:
    """The plan's sub-tasks with what their calls returned."""
    return tuple((step.sub_task, step.result) for step in result.steps)


def _alternating(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of each scenario in their order, one of each in turn."""
    seen: dict[str, int] = {}
    ranked = []
    for record in records:
        scenario = record["scenario"]
        ranked.append((seen.get(scenario, 0), scenario, record))
        seen[scenario] = seen.get(scenario, 0) + 1
    return [record for _, _, record in sorted(ranked, key=lambda r: r[:2])]


def _answer(record: Record) -> str | None:
    """The last message that is no call, ``None`` where a conversation was ended or has none."""
    if record["forced"] or record["too_long"]:
        return None
    results = agent_results(record["turns"][-1])
    return next((w for w in map(last_words, reversed(results)) if w), None)


def _score(attempt: Attempt, record: Record, words: str | None, valid: bool) -> ItemScore:
    turns = record["turns"]
    kind = None if valid else "agentic:answer_not_found" if words else "agentic:no_last_message"
    if record["too_long"]:
        kind = "agentic:prompt_too_long"
    elif record["forced"]:
        kind = "agentic:force_terminated"
    return ItemScore(
        attempt.item.id,
        attempt.item.category,
        float(valid),
        outcome([r for turn in turns for r in agent_results(turn)]),
        error_type=kind,
        error="" if valid else (words or "")[:300],
        sample=attempt.sample,
        **conversation_efficiency(turns, [attempt.item.data.tools] * len(turns)),
    )


def _text(memory: Any) -> str:
    """All that a memory holds, a line each: JSON's escapes would hide the words behind a line break."""
    if isinstance(memory, Mapping):
        return "\n".join(_text(part) for pair in memory.items() for part in pair)
    if isinstance(memory, list):
        return "\n".join(map(_text, memory))
    return "" if memory is None else str(memory)
