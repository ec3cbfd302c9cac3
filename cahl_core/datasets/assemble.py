"""Kept tasks to the three splits: augmentation, derived tasks, and the order they are written in.

Everything is decided by digests and seeds of ids, never by the order or number of the records around.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cahl_core.config import PrepareSettings
from cahl_core.datasets import negatives
from cahl_core.datasets.catalogue import Catalogue
from cahl_core.datasets.contamination import normalise
from cahl_core.datasets.derive import KINDS, derive
from cahl_core.datasets.intake import Intake
from cahl_core.datasets.judge import Judge, Prompt, Redo
from cahl_core.datasets.parallel import Run
from cahl_core.datasets.splits import (
    DEV,
    SPLITS,
    TRAIN,
    UNSEEN,
    Assignment,
    assign,
    offers,
    without_tools,
)
from cahl_core.datasets.store import LineStore
from cahl_core.errors import ConfigError, DataError
from cahl_core.files import digest, dump_json
from cahl_core.records import ToolTask

MAX_PARENTS = 20_000  # derived tasks are made from at most this many records of a split
REAL_SHARE = 0.5  # of the declined requests: real ones whose tools were taken away


@dataclass
class Splits:
    """Line numbers in ``tasks`` and ``facts`` per split, in the order they are written in."""

    tasks: LineStore
    facts: LineStore
    order: dict[str, list[int]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


def derived_shares(settings: PrepareSettings) -> dict[str, float]:
    """The shares by kind.

    Raises:
        ConfigError: they leave no place for original records.
    """
    shares = {kind: float(getattr(settings, f"{kind}_share")) for kind in KINDS}
    if sum(shares.values()) >= 1:
        raise ConfigError(
            f"the shares of derived tasks sum to {sum(shares.values()):g}, must be below 1",
            "lower " + ", ".join(f"prepare.{kind}_share" for kind in KINDS),
        )
    return shares


class Assembler:
    """Builds the splits of one intake into new line stores."""

    def __init__(self, found: Intake, judge: Judge, run: Run) -> None:
        self.found = found
        self.run = run
        self.settings = judge.settings.prepare
        self.benchmarks = judge.benchmarks
        self.shares = derived_shares(self.settings)
        self.taken: set[tuple[str, ...]] = set()

    def assemble(self, tasks: LineStore, facts: LineStore) -> Splits:
        """All splits; ``dev`` before ``train``, so that a derived request of dev is never trained on.

        Raises:
            DataError: no record was kept.
        """
        kept = [n for n, keep in enumerate(self.found.kept) if keep]
        if not kept:
            raise DataError(
                "no record of any source is usable",
                "data/prepared/quarantine.jsonl has the reasons",
            )
        original = 1 - sum(self.shares.values())
        assignment = assign(
            [self.found.members[n] for n in kept],
            max(round(self.settings.dev_tasks * original), 1),
            self.settings.unseen_tool_tasks,
            self.settings.seed,
        )
        splits = Splits(tasks, facts)
        for split in (UNSEEN, DEV, TRAIN):
            numbers = [kept[i] for i in assignment.indices(split)]
            self._split(split, numbers, assignment, splits)
        return splits

    def _split(
        self, split: str, numbers: Sequence[int], assignment: Assignment, out: Splits
    ) -> None:
        added: list[tuple[str, int]] = []
        for prompt in self._originals(split, numbers, assignment):
            added.append((prompt.id, _store(out, prompt)))
            if split != TRAIN:
                self.taken.add(_words(ToolTask.from_json(json.loads(prompt.line))))
        if split != UNSEEN:
            total = self.settings.dev_tasks if split == DEV else None
            parents = self._parents(numbers, assignment)
            for prompt in self._derived(
                split, parents, self._passes(numbers), total, assignment.unseen_tools, out.dropped
            ):
                added.append((prompt.id, _store(out, prompt)))
        seed = self.settings.seed
        added.sort(key=lambda item: digest([seed, "order", item[0]]))
        out.order[split] = [number for _, number in added]

    # --- originals -------------------------------------------------------------------------------

    def _originals(
        self, split: str, numbers: Sequence[int], assignment: Assignment
    ) -> Iterator[Prompt]:
        """Each kept task of the split once, augmented in training only, without hidden tools."""
        hidden = assignment.unseen_tools if split != UNSEEN else frozenset[str]()
        written = b"|".join(re.escape(dump_json(name).encode()) for name in sorted(hidden))
        shows = re.compile(b'"name":(?:' + written + b")") if hidden else None
        again: list[int] = []
        for number in numbers:
            if self._stays(number, split == TRAIN, hidden, shows):
                yield self._as_it_is(number)
            else:
                again.append(number)
        redone = (Redo(self.found.before(n), hidden, self._augment(n, split)) for n in again)
        prompts = itertools.chain.from_iterable(self.run(redone))
        for number, prompt in zip(again, prompts, strict=True):
            # one that is longer than its augmented form stays in that
            yield self._as_it_is(number) if prompt.quarantined is not None else prompt

    def _augment(self, number: int, split: str) -> bool:
        return split == TRAIN and self.found.plain_of[number] >= 0

    def _stays(
        self,
        number: int,
        training: bool,
        hidden: frozenset[str],
        shows: re.Pattern[bytes] | None,
    ) -> bool:
        """Whether a task is written as it was read: no hidden tool, augmented in training only."""
        if not training and self.found.plain_of[number] >= 0:
            return False
        if shows is None:
            return True
        lines = {self.found.tasks.line(number), self.found.before(number)}
        return hidden.isdisjoint(self.found.added[number]) and not any(map(shows.search, lines))

    def _as_it_is(self, number: int) -> Prompt:
        member = self.found.members[number]
        line, facts = self.found.tasks.line(number), self.found.facts.line(number)
        return Prompt(member.id, b"", line, facts, member.gold_tools)

    def _passes(self, numbers: Sequence[int]) -> float:
        """How many of the records one pass over the split takes, by the weights of their sources."""
        weights = self.settings.weights
        return sum(weights.get(self.found.sources[n], 1.0) for n in numbers)

    # --- derived ---------------------------------------------------------------------------------

    def _parents(self, numbers: Sequence[int], assignment: Assignment) -> list[ToolTask]:
        tasks = (
            without_tools(
                ToolTask.from_json(json.loads(self.found.before(n))), assignment.unseen_tools
            )
            for n in _sampled(numbers, self.found, self.settings.seed)
        )
        return [task for task in tasks if task.tools]

    def _derived(
        self,
        split: str,
        parents: Sequence[ToolTask],
        originals: float,
        total: int | None,
        hidden: frozenset[str],
        dropped: Counter[str],
    ) -> Iterator[Prompt]:
        """Derived tasks whose request is new, no test question, and short enough."""
        whole = total or round(originals / (1 - sum(self.shares.values())))
        counts = {kind: round(whole * share) for kind, share in self.shares.items()}
        made = self._fresh(self._made(split, parents, counts), hidden, dropped)
        before, kept = dropped.total(), 0
        for prompt in itertools.chain.from_iterable(self.run(made)):
            if prompt.quarantined is None:
                kept += 1
                yield prompt
            else:
                dropped[prompt.quarantined.rule] += 1
        refused = dropped.total() - before
        dropped["not_made"] += sum(counts.values()) - kept - refused

    def _fresh(
        self, tasks: Iterable[ToolTask], hidden: frozenset[str], dropped: Counter[str]
    ) -> Iterator[ToolTask]:
        for task in tasks:
            text = _words(task)
            if text in self.taken and "request_of" not in task.meta:
                dropped["duplicate"] += 1
            elif self.benchmarks.of_task(task) is not None:
                dropped["benchmark_overlap"] += 1
            elif offers(task, hidden):
                dropped["unseen_tool"] += 1
            else:
                self.taken.add(text)
                yield task

    def _made(
        self, split: str, parents: Sequence[ToolTask], counts: Mapping[str, int]
    ) -> Iterator[ToolTask]:
        """Real requests first (tools taken away, questions asked in dialogues), then by rule."""
        left = dict(counts)
        real = itertools.islice(
            self._declined(split, parents), round(REAL_SHARE * counts["irrelevance"])
        )
        for task in real:
            left["irrelevance"] -= 1
            yield task
        groups = {task.meta.get("dialogue", task.id) for task in parents}
        asks = (a for a in self.found.asks if a.meta.get("derived_from") in groups)
        for task in itertools.islice(asks, counts["missing_argument"]):
            left["missing_argument"] -= 1
            yield task
        yield from derive(parents, left, self.settings.seed, split)

    def _declined(self, split: str, parents: Sequence[ToolTask]) -> Iterator[ToolTask]:
        if not parents:
            return
        pool = [tool for _, tool in sorted(Catalogue.of(parents).tools.items())]
        seed = self.settings.seed
        for parent in sorted(parents, key=lambda t: digest([seed, split, "declined", t.id])):
            generator = random.Random(f"{seed} declined {parent.id}")
            task = negatives.without_gold_tools(parent, pool, generator)
            if task is not None:
                yield replace(task, meta={**task.meta, "request_of": parent.id})


def _sampled(numbers: Sequence[int], found: Intake, seed: int) -> list[int]:
    """All numbers, or ``MAX_PARENTS`` of them by digest."""
    if len(numbers) <= MAX_PARENTS:
        return list(numbers)
    ordered = sorted(numbers, key=lambda n: digest([seed, "parents", found.members[n].id]))
    return sorted(ordered[:MAX_PARENTS])


def _words(task: ToolTask) -> tuple[str, ...]:
    return normalise(" ".join(m.content for m in task.messages))


def _store(out: Splits, prompt: Prompt) -> int:
    out.facts.append(prompt.facts)
    return out.tasks.append(prompt.line)


__all__ = ["SPLITS", "Assembler", "Splits", "derived_shares"]
