"""The training loop: roll out, compare, update, log, checkpoint.

Every step samples G_h plans per task and G_l executions per sub-task with the current weights, pays the
planner for what the *current* executor achieved and the executor for its own calls, and updates the
roles that learn in this arm from their own group-relative advantages.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cahl_core.errors import TrainingError
from cahl_core.files import atomic_dir, write_jsonl
from cahl_core.policy.team import Team
from cahl_core.progress import progress
from cahl_core.records import ToolTask
from cahl_core.roles import Role
from cahl_core.rollouts.supply import Supply
from cahl_core.signals import held_signals
from cahl_core.stage import StageRun
from cahl_core.traces.record import TraceWriter
from cahl_core.training import checkpoints
from cahl_core.training.alarm import CollapseAlarm
from cahl_core.training.alignment import alignment_metrics
from cahl_core.training.arms import learners, shuffle_credit
from cahl_core.training.credit import set_advantages, signal_trees, training_samples
from cahl_core.training.curriculum import Capability, Sampler, outcomes
from cahl_core.training.distributed import Workers
from cahl_core.training.guards import HackReport
from cahl_core.training.meter import StepMeter
from cahl_core.training.places import Places
from cahl_core.training.row_budget import RowBudget, explained
from cahl_core.training.summary import Row, summarise_trees
from cahl_core.training.trainee import Trainee, make_trainees
from cahl_core.training.tree import Sample, Tree
from cahl_core.training.update import update

DEV = ("planner_reward", "executor_reward", "task_success")


class Trainer:
    """One run. Guarantees: it can be stopped at any point and goes on as if it had not been.

    Between steps (and during rollouts) the weights are those of the last finished step, so SIGTERM or
    Ctrl-C there saves at once; during an update they wait until it is done.
    """

    def __init__(self, stage: StageRun, team: Team, workers: Workers, places: Places) -> None:
        self.stage = stage
        self.settings = stage.settings
        self.team = team
        self.workers = workers
        self.places = places
        self.supply = Supply(team, stage.settings, workers, stage.log)
        self.trainees = make_trainees(team, stage.settings)
        self.budget = RowBudget(stage.settings, stage.log, divisible=not workers.sharded)
        self.meter = StepMeter(stage, team, workers)
        self.capability = Capability(self.settings.train.curriculum)
        self.alarm = CollapseAlarm(self.settings.train.alarm)
        self.hacks = HackReport()
        self.traces = (
            TraceWriter(places.traces) if places.traces is not None and workers.is_main else None
        )
        self.rows: list[Row] = []
        self.alignment: list[Row] = []
        self._cursors: dict[str, Any] = {}
        self._saved = -1

    def train(self, tasks: Sequence[ToolTask], dev: Sequence[ToolTask], folder: Path) -> list[Row]:
        """Runs the remaining steps; returns one row of metrics per step done in all.

        Args:
            dev: the fixed tasks of the alignment metrics.
            folder: where checkpoints are found and written.
        """
        train = self.settings.train
        self.sampler = Sampler(tasks, self.settings.seed, train.curriculum)
        self.supply.connect(folder.parent / "adapters", folder.parent.name)
        self._resume(folder)
        self._discard_later()
        try:
            self.supply.start(len(self.rows), tasks)
            rows = self._run(dev, folder)
        except BaseException:
            self.supply.close(finished=False)
            raise
        self.supply.close(finished=True)
        return rows

    def _run(self, dev: Sequence[ToolTask], folder: Path) -> list[Row]:
        train = self.settings.train
        try:
            with progress("CAHL training", train.steps) as bar:
                bar.advance(len(self.rows))
                while not self._ended():
                    self._between_steps(dev)
                    self._step(len(self.rows), folder)
                    bar.advance(1, **_shown(self.rows[-1]))
            self._between_steps(dev, last=True)
        except (KeyboardInterrupt, SystemExit):
            # parts of sharded weights cannot be gathered where others may be anywhere in a step
            if not any(t.sharded for t in self._unique()):
                with held_signals():
                    self._save(folder)
            raise
        self._save(folder)
        return self.rows

    # --- one step ---------------------------------------------------------------------------------

    def _step(self, step: int, folder: Path) -> None:
        started = time.perf_counter()
        counted = self.supply.tokens
        self.meter.begin(step)
        with self.stage.phase("rollout"):
            trees, refills = self._collect(step)
        row: Row = {"step": float(step), "refills": float(refills)}
        rolled = time.perf_counter() - started
        sampled, encoded = self.workers.sum(
            [float(now - before) for now, before in zip(self.supply.tokens, counted, strict=True)]
        )
        row["sampled_tokens"], row["encoded_prompt_tokens"] = sampled, encoded
        row["sampled_tokens_per_second"] = sampled / rolled
        with held_signals():
            self._learn(trees, step, row)
            row |= self.meter.row()
            row["seconds/step"] = time.perf_counter() - started
            self._finish_step(row)
            if len(self.rows) % self.settings.train.checkpoint_every == 0:
                self._save(folder)

    def _collect(self, step: int) -> tuple[list[Tree], int]:
        """Rolls out a batch of tasks, and more where groups of a dynamic role carry no signal."""
        train = self.settings.train
        self.supply.publish(len(self.rows), self._saved)
        trees, roller = self.supply.first(step, self._draw)
        self._shuffle(trees)
        for batch in range(1, 1 + train.max_refills):
            if not self._lacking(trees, step):
                return trees, batch - 1
            new = self.supply.more(roller, self._draw(), f"{self.settings.seed}/{step}/{batch}")
            self._shuffle(new)
            trees += new
        return trees, train.max_refills

    def _draw(self) -> list[ToolTask]:
        return self.sampler.draw(self.settings.train.tasks_per_step, self.capability)

    def _shuffle(self, trees: Sequence[Tree]) -> None:
        if self.settings.train.arm == "shuffled_credit":
            shuffle_credit(trees, self.settings)

    def _lacking(self, trees: Sequence[Tree], step: int) -> bool:
        """Whether a role that learns now samples dynamically and has too few groups with signal."""
        set_advantages(trees, self.settings, self.workers)
        for role in learners(self.settings, step):
            own = self.trainees[role][1]
            if own.dynamic_sampling:
                (found,) = self.workers.sum([float(len(signal_trees(trees, role)))])
                if found < self.settings.train.tasks_per_step:
                    return True
        return False

    def _learn(self, trees: Sequence[Tree], step: int, row: Row) -> None:
        train = self.settings.train
        row |= summarise_trees(trees, self.workers) | self.supply.metrics(trees, step)
        groups = set_advantages(trees, self.settings, self.workers)
        totals = self.workers.sum(list(groups.values()))
        row |= dict(zip(groups, totals, strict=True))
        limit = len(range(self.workers.rank, train.tasks_per_step, self.workers.count))
        batches: dict[Role, list[Sample]] = {
            role: training_samples(trees, role, self.settings, limit)
            for role in learners(self.settings, step)
        }
        with self.stage.phase("update"), explained():
            reports = update(
                batches,
                {role: trainee for role, (trainee, _) in self.trainees.items()},
                self.settings,
                step,
                self.workers,
                train.steps,
                self.budget,
                self.stage.phase,
            )
        row["skipped_updates"] = float(sum(r.skipped for r in reports.values()))
        for role, report in reports.items():
            row |= {f"{role}/{k}": v for k, v in report.metrics(self.workers).items()}
        self.capability.update(self.workers.merge(outcomes(trees)))
        row |= self.capability.metrics() | self.sampler.metrics()
        row |= self._count_hacks(trees, step)
        self._trace(trees, step)

    def _count_hacks(self, trees: Sequence[Tree], step: int) -> Row:
        """The report of all processes for this step; the run's report grows by it."""
        mine, everyone = HackReport(), HackReport()
        mine.add(trees, step)
        for state in self.workers.gather([mine.to_json()]):
            everyone.merge(HackReport.from_json(state))
        self.hacks.merge(everyone)
        return everyone.metrics()

    def _finish_step(self, row: Row) -> None:
        self._log(row)  # which says what is not finite; JSON cannot hold it
        self.rows.append({key: value for key, value in row.items() if math.isfinite(value)})
        for failure in self.supply.failures[:3]:
            self.stage.log(f"warning: environment failed, the rollout is void: {failure}")
        self.supply.failures.clear()
        for note in self.team.take_notes():
            self.stage.log(f"warning: {note}")
        for warning in self.alarm.feed(row):
            self.stage.log(f"warning: {warning}")
        self._cursors = self._state()
        limit = self.settings.train.max_bad_steps
        if len(self.rows) >= limit and all(r["skipped_updates"] for r in self.rows[-limit:]):
            raise TrainingError(
                f"{limit} steps in a row had a non-finite loss or gradient; their updates were skipped",
                "lower train.*.learning_rate, or set model.dtype=float32",
            )

    def _ended(self) -> bool:
        train = self.settings.train
        budget = train.max_sampled_tokens
        sampled = sum(row["sampled_tokens"] for row in self.rows)
        return len(self.rows) >= train.steps or bool(budget and sampled >= budget)

    # --- between steps ----------------------------------------------------------------------------

    def _between_steps(self, dev: Sequence[ToolTask], last: bool = False) -> None:
        """Alignment metrics and snapshots of the weights after ``len(self.rows)`` steps."""
        train, step = self.settings.train, len(self.rows)
        every = train.evaluate_every
        if (last or step == 0 or (every and step % every == 0)) and dev:
            self._evaluate(dev, step)
        if train.snapshot_every and (last or step % train.snapshot_every == 0):
            self._snapshot(step)

    def _evaluate(self, dev: Sequence[ToolTask], step: int) -> None:
        if any(row["step"] == step for row in self.alignment):
            return
        with self.stage.phase("alignment"):
            self.supply.publish(step, self._saved)
            mine = self.workers.share(dev)
            trees = self.supply.roller.rollout(mine, "dev", plans=1, executions=1, greedy=True)
            everyone = self.workers.gather(trees)
        means = summarise_trees(trees, self.workers)
        row = {"step": float(step), **{f"dev/{name}": means[name] for name in DEV}}
        row |= alignment_metrics(everyone)
        self.alignment.append(row)
        self.stage.log_metrics({k: v for k, v in row.items() if k != "step"}, step)

    def _snapshot(self, step: int) -> None:
        folder = self.places.snapshots
        if folder is None:
            return
        if not self.workers.is_main:
            self.team.save(None)
            return
        with held_signals(), atomic_dir(folder / f"step-{step:06d}") as temporary:
            self.team.save(temporary)

    def _discard_later(self) -> None:
        """Removes traces and snapshots of steps that this run has yet to do: they are another's."""
        done = len(self.rows)
        if self.traces is not None:
            self.traces.discard_from(done)
        folder = self.places.snapshots
        if folder is not None and self.workers.is_main:
            for old in folder.glob("step-*"):
                if int(old.name.removeprefix("step-")) >= done:
                    shutil.rmtree(old)

    def _trace(self, trees: Sequence[Tree], step: int) -> None:
        """Keeps the first trees of traced steps, and shows some of them in MLflow."""
        if self.traces is not None:
            records = self.traces.write(step, trees, self.settings)
            self.stage.log_traces(records[: self.settings.train.trace.mlflow])

    def _log(self, row: Row) -> None:
        values = {f"train/{k}": v for k, v in row.items() if k != "step"}
        self.stage.log_metrics(values, int(row["step"]))

    # --- checkpoints ------------------------------------------------------------------------------

    def _unique(self) -> list[Trainee]:
        return list(dict.fromkeys(trainee for trainee, _ in self.trainees.values()))

    def _state(self) -> dict[str, Any]:
        """Everything but tensors, as of the last finished step."""
        return {
            "rows": self.rows,
            "alignment": self.alignment,
            "sampler": self.sampler.state(),
            "capability": self.capability.state(),
            "alarm": self.alarm.to_json(),
            "hacks": self.hacks.to_json(),
            "rollouts": self.supply.state(),
        }

    def _save(self, folder: Path) -> None:
        if not self.rows or self._saved == len(self.rows):
            return
        keep, main = self.settings.train.keep_checkpoints, self.workers.is_main
        with self.stage.phase("checkpoint"):
            checkpoints.save(
                folder, len(self.rows), self._unique(), self._cursors, keep, writes=main
            )
        self._saved = len(self.rows)
        if main and self.places.report is not None:
            write_jsonl(self.places.report.with_name("train_steps.jsonl"), self.rows)

    def _resume(self, folder: Path) -> None:
        self._cursors = self._state()
        done, state, warnings = checkpoints.load_latest(folder, self._unique(), self.workers)
        for warning in warnings:
            self.stage.log(f"warning: {warning}")
        if not done:
            return
        self.rows, self.alignment = state["rows"], state["alignment"]
        self.sampler.restore(state["sampler"])
        self.capability.restore(state["capability"])
        self.alarm.load_json(state["alarm"])
        self.hacks = HackReport.from_json(state["hacks"])
        self.supply.restore(state.get("rollouts", []))
        self._cursors, self._saved = self._state(), done
        self.stage.log(f"resumed after step {done} of {self.settings.train.steps}")
        for row in self.rows:
            self._log(row)


def _shown(row: Row) -> dict[str, str]:
    return {
        "planner": f"{row['planner_reward']:.3f}",
        "executor": f"{row['executor_reward']:.3f}",
    }
