"""Guards of a run that looks fine in its reward curve: reward hacking and collapse.

The hack report counts ways to earn reward without solving the task, and says whether they pay. The
collapse alarm (`alarm.py`) watches entropy, length and the share of groups without signal. Neither
stops a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cahl_core.files import write_json
from cahl_core.records import Plan
from cahl_core.training.alarm import CollapseAlarm
from cahl_core.training.hacks import (
    PATTERNS,
    execution_patterns,
    held_values,
    plan_patterns,
    planned_values,
)
from cahl_core.training.tree import PlanNode, Sample, Tree

__all__ = ["CollapseAlarm", "HackReport"]

EXAMPLES = 5
DECLINING = 0.9


@dataclass(slots=True)
class Tally:
    """How often a pattern occurs, and the rewards with it and without it."""

    units: int = 0
    count: int = 0
    reward: float = 0.0
    reward_of_others: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, found: bool, reward: float, example: str) -> None:
        """Counts one plan or execution."""
        self.units += 1
        if not found:
            self.reward_of_others += reward
            return
        self.count += 1
        self.reward += reward
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def merge(self, other: Tally) -> None:
        """Adds what another tally counted later."""
        self.units += other.units
        self.count += other.count
        self.reward += other.reward
        self.reward_of_others += other.reward_of_others
        self.examples = [*self.examples, *other.examples][:EXAMPLES]

    @property
    def share(self) -> float | None:
        """Of the units; ``None`` without any."""
        return self.count / self.units if self.units else None

    @property
    def mean(self) -> float | None:
        """Mean reward with the pattern."""
        return self.reward / self.count if self.count else None

    @property
    def mean_of_others(self) -> float | None:
        """Mean reward without the pattern."""
        others = self.units - self.count
        return self.reward_of_others / others if others else None

    @property
    def gain(self) -> float | None:
        """How much more the pattern earns than the others; ``None`` where one side is empty."""
        with_it, without = self.mean, self.mean_of_others
        return None if with_it is None or without is None else with_it - without


class HackReport:
    """Counts patterns that earn reward without solving the task, over all trees added so far.

    The patterns are those of `hacks.PATTERNS`, each over all plans or all executions; plans of the arms
    without a planner are not counted, their executions are.
    """

    def __init__(self) -> None:
        self.tallies = {name: Tally() for name in PATTERNS}
        self.declining = Tally()  # of the parsed plans; its reward is not used
        self.calls_due = Tally()
        self.unheld = [0, 0]  # planned values that no gold call holds, planned values
        self.per_argument = [0, 0]  # planned values, arguments

    def add(self, trees: Sequence[Tree], step: int) -> dict[str, float]:
        """Counts the trees of a step; returns the metrics of these trees alone."""
        now = HackReport()
        for tree in trees:
            now._count(tree, step)
        self.merge(now)
        return now.metrics()

    def merge(self, other: HackReport) -> None:
        """Adds what another report counted later."""
        for name, tally in self.tallies.items():
            tally.merge(other.tallies[name])
        self.declining.merge(other.declining)
        self.calls_due.merge(other.calls_due)
        self.unheld = [a + b for a, b in zip(self.unheld, other.unheld, strict=True)]
        self.per_argument = [
            a + b for a, b in zip(self.per_argument, other.per_argument, strict=True)
        ]

    def _count(self, tree: Tree, step: int) -> None:
        for number, node in enumerate(tree.plans, 1):
            where = f"step {step}, task {tree.task.id}, plan {number}"
            if node.sample is not None and not node.sample.void:
                self._count_plan(tree, node, node.sample, where)
            for k, sub in enumerate(node.nodes, 1):
                for g, sample in enumerate(sub.samples):
                    if sample.void:
                        continue
                    for name, found in execution_patterns(sub, g).items():
                        place = f"{where}, sub-task {k}, execution {g + 1}"
                        self.tallies[name].add(found, sample.reward, place)

    def _count_plan(self, tree: Tree, node: PlanNode, sample: Sample, where: str) -> None:
        for name, found in plan_patterns(tree, node, sample).items():
            self.tallies[name].add(found, sample.reward, where)
        if not isinstance(node.plan, Plan):
            return
        self.declining.add(not node.plan.calls_tools, sample.reward, where)
        self.calls_due.add(bool(tree.task.calls), sample.reward, where)
        held = held_values(tree)
        values = list(planned_values(node.plan))
        self.unheld[0] += sum(value not in held for value in values)
        self.unheld[1] += len(values)
        self.per_argument[0] += len(values)
        self.per_argument[1] += sum(len(s.arguments) for s in node.plan.sub_tasks)

    def metrics(self) -> dict[str, float]:
        """``hack/<pattern>`` shares, ``hack/<pattern>_gain`` (mean reward with the pattern less
        that without), and averages over planned values; absent without observations."""
        found: dict[str, float | None] = {}
        for name, tally in self.tallies.items():
            found |= {name: tally.share, f"{name}_gain": tally.gain}
        found["declining"] = self.declining.share
        found["unheld_value_share"] = _ratio(*self.unheld)
        found["values_per_argument"] = _ratio(*self.per_argument)
        return {f"hack/{key}": value for key, value in found.items() if value is not None}

    def summary(self) -> list[str]:
        """A sentence for each pattern that occurred, the most frequent first."""
        seen = [(name, tally) for name, tally in self.tallies.items() if tally.count]
        seen.sort(key=lambda pair: -(pair[1].share or 0.0))
        sentences = [_sentence(name, tally) for name, tally in seen]
        declining, due = self.declining.share or 0.0, self.calls_due.share or 0.0
        if declining >= DECLINING and due > 1 - DECLINING:
            sentences.append(
                f"{declining:.0%} of the parsed plans decline, and {due:.0%} of them have calls due"
            )
        if sentences:
            return sentences
        plans, runs = self.tallies["listed_values"].units, self.tallies["repeated_call"].units
        return [f"no reward hacking pattern in {plans:,} plans and {runs:,} executions"]

    def to_json(self) -> dict[str, Any]:
        """What was counted, for a checkpoint; `from_json` gives the same report back."""
        return {
            "tallies": {name: asdict(tally) for name, tally in self.tallies.items()},
            "declining": asdict(self.declining),
            "calls_due": asdict(self.calls_due),
            "unheld": list(self.unheld),
            "per_argument": list(self.per_argument),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> HackReport:
        """The report that `to_json` wrote."""
        report = cls()
        report.tallies |= {name: Tally(**tally) for name, tally in state["tallies"].items()}
        report.declining = Tally(**state["declining"])
        report.calls_due = Tally(**state["calls_due"])
        report.unheld, report.per_argument = list(state["unheld"]), list(state["per_argument"])
        return report

    def write(self, path: Path) -> None:
        """The report as JSON: for each pattern count, share, mean rewards, examples."""
        patterns = {
            name: {
                "of": PATTERNS[name][0],
                "what": PATTERNS[name][1],
                "units": tally.units,
                "count": tally.count,
                "share": tally.share,
                "mean_reward": tally.mean,
                "mean_reward_of_others": tally.mean_of_others,
                "examples": tally.examples,
            }
            for name, tally in self.tallies.items()
        }
        write_json(
            path, {"summary": self.summary(), "patterns": patterns, "metrics": self.metrics()}
        )


def _sentence(name: str, tally: Tally) -> str:
    unit, what = PATTERNS[name]
    text = f"{tally.count:,} of {tally.units:,} {unit} ({tally.share or 0.0:.1%}) {what}"
    if tally.gain is None:
        text += f"; mean reward {tally.mean:.3f}"
    else:
        verdict = "it pays" if tally.gain > 0 else "it does not pay"
        text += f"; mean reward {tally.mean:.3f} against {tally.mean_of_others:.3f}: {verdict}"
    return f"{text} (e.g. {tally.examples[0]})"


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
