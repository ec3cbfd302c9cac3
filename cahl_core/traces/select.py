"""Which records, plans and executions are asked for, and what all records of a step come to."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cahl_core.advantages import zero_variance

Role = Literal["planner", "executor"]
Sort = Literal["step", "reward", "advantage"]
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """What is shown: bounds and signal of the role's texts, of plans where no role is given.

    In the arms without a planner the texts are the executions, whatever the role.
    """

    role: Role | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    only_signal: bool = False

    @property
    def narrows(self) -> bool:
        """Whether some texts may be left out."""
        return self.only_signal or self.min_reward is not None or self.max_reward is not None

    def wants(self, sampled: Mapping[str, Any]) -> bool:
        """Whether one text fulfils the query; what was not judged fulfils no narrower one."""
        if sampled["parts"] is None:
            return not self.narrows
        reward = sampled["reward"]
        return (
            (self.min_reward is None or reward >= self.min_reward)
            and (self.max_reward is None or reward <= self.max_reward)
            and (not self.only_signal or bool(sampled["in_signal"]))
        )

    def subject(self, record: Record) -> Role:
        """Whose texts the bounds are about, in this record."""
        if self.role == "executor" or all(plan["sample"] is None for plan in record["plans"]):
            return "executor"
        return "planner"

    def texts(self, record: Record) -> list[Mapping[str, Any]]:
        """The role's texts that fulfil the query."""
        return [s for g in groups(record, self.subject(record)) for s in g if self.wants(s)]


def groups(record: Record, role: Role) -> list[list[Mapping[str, Any]]]:
    """The texts compared with one another, as in `training.tree.Tree.groups`."""
    if role == "planner":
        found = [[p["sample"] for p in record["plans"] if p["sample"] is not None]]
    else:
        nodes = [n for p in record["plans"] for n in p["sub_tasks"] if n["gold"] is not None]
        found = [node["samples"] for node in nodes]
    whole = ([s for s in group if not s["void"]] for group in found)
    return [group for group in whole if group]


@dataclass(slots=True)
class Totals:
    """Sums over one role's groups of a step."""

    texts: int = 0
    reward: float = 0.0
    failures: int = 0
    groups: int = 0
    flat: int = 0

    def add(self, group: Sequence[Mapping[str, Any]]) -> None:
        """Counts a group; one of equal rewards teaches nothing."""
        rewards = [float(sampled["reward"]) for sampled in group]
        self.texts += len(group)
        self.reward += sum(rewards)
        self.failures += sum(sampled["failure"] is not None for sampled in group)
        self.groups += 1
        self.flat += zero_variance(rewards)

    def cells(self) -> tuple[str, str, str, str]:
        """Texts, mean reward, parse failures, flat groups of all groups; – without any."""
        if not self.texts:
            return "–", "–", "–", "–"
        mean = f"{self.reward / self.texts:.3f}"
        return str(self.texts), mean, str(self.failures), f"{self.flat}/{self.groups}"


@dataclass(slots=True)
class StepSummary:
    """What the traced trees of one step come to."""

    trees: int = 0
    planner: Totals = field(default_factory=Totals)
    executor: Totals = field(default_factory=Totals)

    def add(self, record: Record) -> None:
        """Counts one tree."""
        self.trees += 1
        for group in groups(record, "planner"):
            self.planner.add(group)
        for group in groups(record, "executor"):
            self.executor.add(group)


SUMMARY_HEADER = (
    "step", "trees", "plans", "plan reward", "unparsed", "flat",
    "executions", "exec. reward", "unparsed", "flat",
)  # fmt: skip


def summary_rows(steps: Mapping[int, StepSummary]) -> list[tuple[str, ...]]:
    """A row per step under `SUMMARY_HEADER`."""
    return [
        (str(step), str(found.trees), *found.planner.cells(), *found.executor.cells())
        for step, found in sorted(steps.items())
    ]


@dataclass(slots=True)
class Selection:
    """The records to show and what was read on the way to them."""

    records: list[Record]
    matching: int
    steps: dict[int, StepSummary]

    @property
    def read(self) -> int:
        """Records read in all."""
        return sum(found.trees for found in self.steps.values())


def select(records: Iterable[Record], query: Query, sort: Sort, limit: int | None) -> Selection:
    """Keeps the first ``limit`` matching records in the order asked for, and no others in memory.

    ``reward`` and ``advantage`` put the tree with the highest one first (of its matching texts);
    equal ones stay in the order of the steps.
    """
    selection = Selection([], 0, {})
    matching = counted(records, query, selection)
    if sort == "step":
        for record in matching:
            if limit is None or len(selection.records) < limit:
                selection.records.append(record)
        return selection
    key = _key(query, sort)
    keyed = ((-key(record), number, record) for number, record in enumerate(matching))
    best = sorted(keyed, key=_place) if limit is None else heapq.nsmallest(limit, keyed, _place)
    selection.records = [record for _, _, record in best]
    return selection


def counted(records: Iterable[Record], query: Query, selection: Selection) -> Iterator[Record]:
    """The matching records one by one; ``selection`` counts all that are read."""
    for record in records:
        selection.steps.setdefault(record["step"], StepSummary()).add(record)
        if not query.narrows or query.texts(record):
            selection.matching += 1
            yield record


def _key(query: Query, sort: Sort) -> Callable[[Record], float]:
    return lambda record: max((s[sort] for s in query.texts(record)), default=float("-inf"))


def _place(item: tuple[float, int, Record]) -> tuple[float, int]:
    return item[0], item[1]
