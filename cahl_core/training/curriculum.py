"""Which tasks a training step gets: a stateful sampler, and what the executor is able to do.

The capability of a tool is a Beta posterior of the executor's solve rate, its counts decayed each step
so that it follows the policy. It decides which tasks are admitted and is logged; it is never a baseline,
which would bias the gradient (docs/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.records import ToolTask
from cahl_core.train_config import CurriculumSettings
from cahl_core.training.credit import solved
from cahl_core.training.data import epoch_order, weights_of
from cahl_core.training.tree import Tree

NO_TOOL = ""  # the sub-task that answers in words


def outcomes(trees: Sequence[Tree]) -> dict[str, tuple[float, float]]:
    """Per gold tool the executor samples that met their gold, and those that did not."""
    counts: dict[str, tuple[float, float]] = {}
    for tree in trees:
        for sub in (n for p in tree.plans for n in p.nodes if n.gold is not None):
            for name in dict.fromkeys(c.name for c in sub.gold or ()) or {NO_TOOL: None}:
                right = float(sum(solved(sub)))
                s, f = counts.get(name, (0.0, 0.0))
                counts[name] = (s + right, f + len(sub.rewards) - right)
    return counts


class Capability:
    """Per tool a Beta(prior + successes, prior + failures) posterior of the executor's solve rate."""

    def __init__(self, settings: CurriculumSettings) -> None:
        self.settings = settings
        self.counts: dict[str, tuple[float, float]] = {}

    def update(self, outcomes: Mapping[str, tuple[float, float]]) -> None:
        """One step: all counts decay, then ``outcomes`` (tool → successes, failures) are added."""
        decay = self.settings.decay
        self.counts = {t: (s * decay, f * decay) for t, (s, f) in self.counts.items()}
        for tool, (successes, failures) in sorted(outcomes.items()):
            s, f = self.counts.get(tool, (0.0, 0.0))
            self.counts[tool] = (s + successes, f + failures)

    def mean(self, tool: str) -> float:
        """The posterior mean; a tool never tried has 1/2.

        >>> capability = Capability(CurriculumSettings(prior=1.0))
        >>> capability.update({"find": (3.0, 0.0)})
        >>> capability.mean("find"), capability.mean("book")
        (0.8, 0.5)
        """
        successes, failures = self.counts.get(tool, (0.0, 0.0))
        prior = self.settings.prior
        return (prior + successes) / (2 * prior + successes + failures)

    def predicted(self, tools: Sequence[str]) -> float:
        """A task's solve rate: that of its weakest gold tool."""
        return min(self.mean(tool) for tool in tools or (NO_TOOL,))

    def metrics(self) -> dict[str, float]:
        """For the log: how many tools were met, their mean, and how many lie outside the bounds."""
        means = [self.mean(tool) for tool in self.counts]
        if not means:
            return {}
        return {
            "capability/tools": float(len(means)),
            "capability/mean": math.fsum(means) / len(means),
            "capability/weak_tools": float(sum(m < self.settings.low for m in means)),
            "capability/mastered_tools": float(sum(m > self.settings.high for m in means)),
        }

    def state(self) -> dict[str, Any]:
        """JSON; `restore` takes it back exactly."""
        return {tool: list(counts) for tool, counts in self.counts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.counts = {tool: (float(s), float(f)) for tool, (s, f) in state.items()}


class Sampler:
    """Draws tasks pass by pass; every pass is a fresh weighted order (`epoch_order`).

    With the ``capability`` curriculum a task whose predicted solve rate lies outside
    ``[low, high]`` waits for a later pass; one refused ``max_wait`` times is admitted the next time, so
    none starves and every draw ends.
    """

    def __init__(
        self, tasks: Sequence[ToolTask], seed: int, settings: CurriculumSettings | None = None
    ) -> None:
        self.tasks = tasks
        self.seed = seed
        self.settings = settings or CurriculumSettings()
        self.weights = weights_of(tasks)
        self.epoch = self.position = self.refused = 0
        self.waiting: dict[int, int] = {}
        self._order: tuple[int, list[int]] | None = None
        self._tools: dict[int, tuple[str, ...]] = {}

    def draw(self, count: int, capability: Capability | None = None) -> list[ToolTask]:
        """The next ``count`` admitted tasks; moves the cursor."""
        chosen: list[ToolTask] = []
        while len(chosen) < count:
            index = self._next()
            if capability is None or self._admitted(index, capability):
                chosen.append(self.tasks[index])
        return chosen

    def state(self) -> dict[str, Any]:
        """JSON; `restore` goes on with the draw after it."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "refused": self.refused,
            "waiting": [[index, times] for index, times in self.waiting.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.refused = int(state["refused"])
        self.waiting = {int(index): int(times) for index, times in state["waiting"]}

    def metrics(self) -> dict[str, float]:
        """For the log: the pass, and what the curriculum holds back."""
        return {
            "sampler/epoch": float(self.epoch),
            "sampler/waiting": float(len(self.waiting)),
            "sampler/refused": float(self.refused),
        }

    def _next(self) -> int:
        order = self._current()
        if self.position >= len(order):
            self.epoch, self.position = self.epoch + 1, 0
            order = self._current()
        self.position += 1
        return order[self.position - 1]

    def _current(self) -> list[int]:
        if self._order is None or self._order[0] != self.epoch:
            key = f"{self.seed}/tasks/{self.epoch}"
            self._order = (self.epoch, epoch_order(self.weights, key))
        return self._order[1]

    def _admitted(self, index: int, capability: Capability) -> bool:
        if self.settings.kind == "none":
            return True
        if index not in self._tools:
            names = dict.fromkeys(call.name for call in self.tasks[index].calls)
            self._tools[index] = tuple(names)
        times = self.waiting.get(index, 0)
        rate = capability.predicted(self._tools[index])
        if self.settings.low <= rate <= self.settings.high or times >= self.settings.max_wait:
            self.waiting.pop(index, None)
            return True
        self.waiting[index] = times + 1
        self.refused += 1
        return False
