"""Where training's rollout trees come from: this process's engine or servers, in time or ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.policy.team import Team
from cahl_core.records import ToolTask
from cahl_core.rollouts.ahead import Ahead, tasks_by_id
from cahl_core.rollouts.probe import verify
from cahl_core.rollouts.served import Served
from cahl_core.training.distributed import Workers
from cahl_core.training.rollout import Roller
from cahl_core.training.summary import Row
from cahl_core.training.tree import Sample, Tree

Draw = Callable[[], list[ToolTask]]
Log = Callable[[str], None]


class Supply:
    """Rolls out with the weights that were published last, or ahead of them (`Ahead`)."""

    def __init__(self, team: Team, settings: Settings, workers: Workers, log: Log) -> None:
        self.team, self.settings, self.workers, self.log = team, settings, workers, log
        self.served: Served | None = None
        self._ahead: Ahead | None = None
        self._interrupted: list[dict[str, Any]] = []
        self._tasks: Sequence[ToolTask] = ()
        self._counted = (0, 0, 0)
        self.roller = Roller(team, settings)
        self.failures: list[str] = self.roller.failures

    def connect(self, folder: Path, key: str) -> None:
        """Reaches the servers, if there are any, before anything else is done.

        Args:
            folder: for the adapters, unless the settings name a directory. key: of the run.

        Raises:
            RolloutServerError, ConfigError: as `Served` has it.
        """
        own = self.settings.train.rollouts
        if not own.servers:
            return
        self.served = Served(self.team, self.settings, self.workers, folder, key)
        self.roller = Roller(self.served, self.settings)
        self.failures = self.roller.failures
        if own.ahead:
            self._ahead = Ahead(self.served, self.settings)

    def start(self, version: int, tasks: Sequence[ToolTask]) -> None:
        """Publishes the first version and compares the servers' numbers with ours.

        Raises:
            RolloutServerError: a server samples from other weights.
        """
        self._tasks = tasks
        if self.served is not None:
            self.publish(version, 0)
            gaps = verify(self.served)
            widest = max(gaps.values(), default=0.0)
            self.log(
                f"{len(self.served.pool.servers)} rollout servers; their log-probabilities are "
                f"within {widest:.3g} nats per token of ours"
            )

    def publish(self, version: int, saved: int) -> None:
        """Makes the current weights, after ``version`` updates, those that are sampled from.

        Args:
            saved: steps in the newest checkpoint: what a restart from it needs stays on disk.
        """
        if self.served is None:
            self.team.weights_changed()
            return
        self.served.publish(version)
        if self._ahead is None:
            self.served.keep((), version)
            return
        needed = {*self._ahead.versions(), *(int(c["version"]) for c in self._interrupted)}
        self.served.keep(needed, max(0, saved - self._ahead.ahead))

    def first(self, step: int, draw: Draw) -> tuple[list[Tree], Roller]:
        """The first batch of ``step``, and what to roll out more of it with.

        Args:
            draw: the next tasks, of all processes.
        """
        if self._ahead is None:
            return self.more(self.roller, draw(), f"{self.settings.seed}/{step}"), self.roller
        self._launch_interrupted()
        for number in self._ahead.missing(step):
            tasks = draw()
            self._ahead.launch(number, tasks, self.workers.share(tasks), None)
        collection = self._ahead.take(step)
        self.failures += collection.roller.failures
        collection.roller.failures = self.failures
        return collection.trees, collection.roller

    def more(self, roller: Roller, tasks: Sequence[ToolTask], seed: str) -> list[Tree]:
        """This process's share of ``tasks``, rolled out now."""
        train = self.settings.train
        return roller.rollout(
            self.workers.share(tasks),
            seed,
            plans=train.plans_per_task,
            executions=train.executions_per_plan,
        )

    @property
    def tokens(self) -> tuple[int, int]:
        """Sampled and encoded tokens so far, of steps that were begun."""
        source = self.served or self.team
        return source.decoded_tokens, source.prefilled_tokens

    def metrics(self, trees: Sequence[Tree], step: int) -> Row:
        """What servers add to a step's row: staleness in updates, tries in vain, uncertain samples."""
        if self.served is None:
            return {}
        versions = [s.completion.version for s in _samples(trees)]
        ages = [float(step - v) for v in versions if v is not None]
        total, count = self.workers.sum([sum(ages), float(len(ages))])
        counts = self.served.pool.counts
        now = (counts.retries, counts.outages, sum(t.void for t in self.served.tallies))
        new = [float(a - b) for a, b in zip(now, self._counted, strict=True)]
        self._counted = now
        retries, outages, void = self.workers.sum(new)
        return {
            "rollouts/staleness_mean": total / count if count else 0.0,
            "rollouts/staleness_max": max(self.workers.gather([max(ages, default=0.0)])),
            "rollouts/retries": retries,
            "rollouts/outages": outages,
            "rollouts/uncertain_samples": void,
        }

    def state(self) -> list[dict[str, Any]]:
        """The collections under way, for a checkpoint."""
        return [*self._interrupted, *(self._ahead.state() if self._ahead is not None else [])]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Takes over what `state` gave: those tasks were drawn, but nothing was learnt from them."""
        self._interrupted = list(state)

    def close(self, finished: bool) -> None:
        """`Served.close`, where there are servers."""
        if self.served is not None:
            self.served.close(finished)

    def _launch_interrupted(self) -> None:
        assert self._ahead is not None
        for old in self._interrupted:
            tasks = tasks_by_id(self._tasks, old["tasks"])
            mine, step = self.workers.share(tasks), int(old["step"])
            if not self._ahead.launch(step, tasks, mine, int(old["version"])):
                self.log(
                    f"warning: version {old['version']} of the adapters is gone; step {step} is "
                    "sampled with the current ones"
                )
        self._interrupted = []


def _samples(trees: Sequence[Tree]) -> list[Sample]:
    plans = [p for tree in trees for p in tree.plans]
    own = [p.sample for p in plans if p.sample is not None]
    return own + [s for p in plans for node in p.nodes for s in node.samples]
