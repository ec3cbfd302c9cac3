"""Asynchronous rollouts: the next steps are sampled while this step's update runs.

Step t learns from rollouts of version t - k (of version 0 in the first k steps), k =
``train.rollouts.max_staleness``: always the same one, whatever is fast or slow, so a run is reproducible.
Tasks are drawn by the training thread, in the order of the steps.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cahl_core.config import Settings
from cahl_core.records import ToolTask
from cahl_core.rollouts.served import Served, View
from cahl_core.training.rollout import Roller
from cahl_core.training.tree import Tree

TICK = 0.5


@dataclass
class Collection:
    """The first batch of one step, under way or done. ``trees`` is final when ``done`` is set."""

    step: int
    version: int
    tasks: Sequence[ToolTask]
    roller: Roller
    view: View
    trees: list[Tree] = field(default_factory=list)
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> list[Tree]:
        """The trees; raises what ended the collection instead. A signal interrupts the waiting."""
        while not self.done.wait(TICK):
            pass
        if self.error is not None:
            raise self.error
        return self.trees


class Ahead:
    """Collections under way, one per step; at most ``max_staleness`` run at a time.

    With ``max_staleness`` above 1 an environment (``train.environment``) is called from several threads.
    """

    def __init__(self, source: Served, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.ahead = settings.train.rollouts.ahead
        self._running: dict[int, Collection] = {}
        self._slots = threading.Semaphore(max(1, self.ahead))

    def missing(self, step: int) -> range:
        """The steps up to ``step`` plus the staleness that nobody has begun."""
        first = max(self._running, default=step - 1) + 1
        last = min(step + self.ahead, self.settings.train.steps - 1)
        return range(first, last + 1)

    def launch(
        self, step: int, tasks: Sequence[ToolTask], mine: Sequence[ToolTask], version: int | None
    ) -> bool:
        """Begins the rollouts of ``step``.

        Args:
            tasks: of all processes; ``mine``: the share of this one.
            version: to sample with; ``None``: the one published last.

        Returns:
            Whether ``version`` was still there; if not, the last one is used.
        """
        published = None if version is None else self.source.at(version)
        view = self.source.view(published)
        roller = Roller(view, self.settings)
        collection = Collection(step, view.published.version, tasks, roller, view)
        self._running[step] = collection
        work = threading.Thread(
            target=self._run, args=(collection, mine), daemon=True, name=f"rollouts-{step}"
        )
        work.start()
        return version is None or published is not None

    def take(self, step: int) -> Collection:
        """The finished collection of ``step``; its tokens count from now on."""
        collection = self._running[step]
        collection.wait()
        del self._running[step]
        self.source.count(collection.view)
        return collection

    def versions(self) -> set[int]:
        """Versions that are still sampled from."""
        return {c.version for c in self._running.values()}

    def state(self) -> list[dict[str, Any]]:
        """What is under way, as JSON: after a restart these tasks are sampled anew."""
        return [
            {"step": c.step, "version": c.version, "tasks": [t.id for t in c.tasks]}
            for c in self._running.values()
        ]

    def _run(self, collection: Collection, mine: Sequence[ToolTask]) -> None:
        train = self.settings.train
        with self._slots:
            try:
                collection.trees = collection.roller.rollout(
                    mine,
                    f"{self.settings.seed}/{collection.step}",
                    plans=train.plans_per_task,
                    executions=train.executions_per_plan,
                )
            except BaseException as error:
                collection.error = error
            finally:
                collection.done.set()


def tasks_by_id(tasks: Sequence[ToolTask], ids: Sequence[str]) -> list[ToolTask]:
    """The tasks of these ids, in their order; one pass over ``tasks``, which may lie on disk."""
    wanted = set(ids)
    found = {task.id: task for task in tasks if task.id in wanted}
    return [found[i] for i in ids]
