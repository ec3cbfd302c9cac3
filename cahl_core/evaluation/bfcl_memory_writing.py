"""The conversations that fill a memory: held once per solver, scenario and sample, and kept."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cahl_core.evaluation.bfcl_simulator import BfclSimulator, Opened
from cahl_core.evaluation.bfcl_turns import Dialogue, TurnRunner
from cahl_core.evaluation.core import Record, Solver
from cahl_core.files import read_json, write_json
from cahl_core.records import Message, ToolSpec


class MemoryWriting:
    """The prerequisite conversations of one backend.

    Attributes:
        conversations: scenario → ids, in the order in which they are held.
        notes: folder of one solver under one key: each conversation is kept there as it ends, and one
            that is there is not held again. ``None`` keeps them with this object only.

    A conversation that ends early leaves what it wrote before.
    """

    def __init__(
        self,
        simulator: BfclSimulator,
        conversations: Mapping[str, Sequence[str]],
        tools: tuple[ToolSpec, ...],
        steps: int,
    ) -> None:
        self.simulator, self.conversations = simulator, conversations
        self.tools, self.steps = tools, steps
        self.notes: Path | None = None
        self._held: dict[str, Any] = {}
        self._holder: Callable[[], Solver | None] = lambda: None

    def after(
        self, solver: Solver, needed: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], Any]:
        """The memory of every (scenario, sample) after all its conversations, held now or before."""
        runner = TurnRunner(solver, self.simulator, self.steps)
        memories: dict[tuple[str, int], Any] = dict.fromkeys(needed)
        for number in range(max(len(ids) for ids in self.conversations.values())):
            due = [(s, n) for s, n in needed if number < len(self.conversations[s])]
            missing = []
            for scenario, sample in due:
                held = self._recall(solver, self.conversations[scenario][number], sample)
                if held is None:
                    missing.append((scenario, sample))
                else:
                    memories[scenario, sample] = held["memory"]
            for key, memory in self._converse(runner, number, missing, memories).items():
                memories[key] = memory
        return memories

    def _converse(
        self,
        runner: TurnRunner,
        number: int,
        scenarios: Sequence[tuple[str, int]],
        memories: Mapping[tuple[str, int], Any],
    ) -> dict[tuple[str, int], Any]:
        """Holds the ``number``-th conversation of each scenario; what it leaves in the memory."""
        ids = [self.conversations[s][number] for s, _ in scenarios]
        dialogues = [
            Dialogue(f"{i}/{n}", f"{i}/{n}" if n else i, self.tools)
            for i, (_, n) in zip(ids, scenarios, strict=True)
        ]
        try:
            said = [
                spoken(self.simulator.open(d.key, i, memories[s]))
                for d, i, s in zip(dialogues, ids, scenarios, strict=True)
            ]
            for turn in range(max(map(len, said), default=0)):
                pairs = zip(dialogues, said, strict=True)
                live = [(d, s[turn]) for d, s in pairs if turn < len(s) and not d.over]
                runner.run([d for d, _ in live], [s for _, s in live])
        except BaseException:
            self.simulator.end()
            raise
        left = {}
        for dialogue, item, key in zip(dialogues, ids, scenarios, strict=True):
            left[key] = self.simulator.close(dialogue.key)
            record = {"id": item, **dialogue.to_json(), "memory": left[key]}
            self._keep(item, key[1], record)
        return left

    def _recall(self, solver: Solver, item: str, sample: int) -> Any:
        """A conversation that this solver has held, or ``None``."""
        name = _file(item, sample)
        if self._holder() is not solver:  # a weak reference: it must not keep a model's weights
            self._held, self._holder = {}, weakref.ref(solver)
        if name not in self._held and self.notes is not None and (self.notes / name).exists():
            self._held[name] = read_json(self.notes / name)
        return self._held.get(name)

    def _keep(self, item: str, sample: int, record: Record) -> None:
        name = _file(item, sample)
        self._held[name] = record
        if self.notes is not None:
            self.notes.mkdir(parents=True, exist_ok=True)
            write_json(self.notes / name, record)


def spoken(opened: Opened) -> list[list[Message]]:
    return [[Message.from_json(m) for m in turn] for turn in opened.messages or []]


def _file(item: str, sample: int) -> str:
    return f"{re.sub(r'[^a-z0-9_-]', '', item)}-{sample}.json"
