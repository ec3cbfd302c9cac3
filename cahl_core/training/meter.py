"""What a training step cost: seconds and memory peaks by phase, as metrics of the step's row."""

from __future__ import annotations

from cahl_core.memory import gib
from cahl_core.policy.team import Team
from cahl_core.stage import StageRun
from cahl_core.training.distributed import Workers
from cahl_core.training.summary import Row

PHASES = ("rollout", "reference", "update")
ENGINE = ("prefill", "decode")


class StepMeter:
    """Reads the stage's clocks and peaks, and the engines' clocks, around every step.

    ``seconds/update`` includes ``seconds/reference``; ``seconds/rollout`` includes
    ``seconds/prefill`` and ``seconds/decode``, and what is left of it is spent on prompts, parsing,
    environments and rewards.
    """

    def __init__(self, stage: StageRun, team: Team, workers: Workers) -> None:
        self._stage, self._team, self._workers = stage, team, workers
        self._before: Row = {}

    def begin(self, step: int) -> None:
        """To be called before a step; what ran since the last one is logged by itself."""
        self._stage.log_metrics(gib(self._stage.memory.take()), step)
        self._before = self._clocks()

    def row(self) -> Row:
        """Seconds of this process; peaks of the process that had the highest.

        Keys: ``seconds/<phase>``, ``memory/<phase>_peak_gib``. All processes must call this.
        """
        now = self._clocks()
        row = {f"seconds/{name}": now[name] - self._before[name] for name in now}
        peaks = self._stage.memory.take()
        most = {name: self._workers.most(peaks.get(name, 0)) for name in PHASES}
        return row | gib({name: value for name, value in most.items() if value})

    def _clocks(self) -> Row:
        clocks = {name: self._stage.phases.get(name, 0.0) for name in PHASES}
        return clocks | {name: getattr(self._team, f"seconds_{name}") for name in ENGINE}
