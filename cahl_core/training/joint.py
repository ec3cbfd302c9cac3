"""Joint CAHL training (arXiv 2606.09371; docs/method.md, the ``joint`` arm).

Each step samples G_h plans per task and G_l executions per sub-task with the current adapters, rewards
the planner with what the *current* executor achieved, the executor with its own calls, and updates
both adapters from their own group-relative advantages.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahl_core.errors import TrainingError
from cahl_core.files import atomic_dir, atomic_file, digest, tree_digest, write_json
from cahl_core.policy.backbone import ROLES, Policy
from cahl_core.policy.engine import Engine
from cahl_core.progress import progress
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.records import ToolTask
from cahl_core.stage import StageRun
from cahl_core.training import checkpoints
from cahl_core.training.data import Sampler, load_split, split_files
from cahl_core.training.distributed import Workers
from cahl_core.training.rollout import Roller, set_advantages
from cahl_core.training.trainee import REFERENCE_SUFFIX, Trainee
from cahl_core.training.tree import Tree
from cahl_core.training.update import update_role

MAX_BAD_STEPS = 5
PLOT = (
    "planner_reward", "executor_reward", "plan_validity", "reward_parameters", "reward_execution",
    "reward_form", "reward_syntax", "reward_semantics",
)  # fmt: skip
Row = dict[str, float]


def run(stage: StageRun) -> None:
    """Trains both roles; writes models/cahl, metrics/train.json, plots/train.csv."""
    settings, root = stage.settings, stage.root
    workers = Workers()
    tasks = load_split(root / "data/prepared", "train")
    for file in split_files(root / "data/prepared", "train"):
        stage.log_input(file, file.stem, "rl")
    with stage.phase("load"):
        policy = load_trainable(root, settings, workers)
    trainer = Trainer(stage, policy, workers)
    folder = stage.cache_dir(_key(stage)) / "checkpoints"
    rows = trainer.train(tasks, folder)
    if workers.is_main:
        _finish(stage, policy, rows)
    workers.wait()
    if workers.is_main:
        checkpoints.clear(folder.parent)


def load_trainable(root: Path, settings: Any, workers: Workers) -> Policy:
    """Backbone, both SFT adapters to train, and frozen copies of them as references."""
    policy = Policy.load(root / "data/backbone", None, settings.model, device=workers.device)
    for role in ROLES:
        policy.add_adapter(role, root / "models/sft" / role, trainable=True)
    for role in ROLES:
        policy.add_adapter(role + REFERENCE_SUFFIX, root / "models/sft" / role)
    return policy


class Trainer:
    """The loop: rollout, advantages, one update per role, log, checkpoint."""

    def __init__(self, stage: StageRun, policy: Policy, workers: Workers) -> None:
        self.stage = stage
        self.settings = stage.settings
        self.policy = policy
        self.workers = workers
        self.engine = Engine(policy)
        self.roller = Roller(self.engine, stage.settings)
        self.trainees = {
            role: Trainee(policy, role, own.learning_rate, own.grad_clip)
            for role, own in (
                ("planner", self.settings.train.planner),
                ("executor", self.settings.train.executor),
            )
        }

    def train(self, tasks: Sequence[ToolTask], folder: Path) -> list[Row]:
        """Runs the remaining steps; returns one row of metrics per step done in all."""
        train = self.settings.train
        done, extra, warnings = checkpoints.load_latest(folder, list(self.trainees.values()))
        rows: list[Row] = list(extra.get("rows", []))
        for warning in warnings:
            self.stage.log(warning)
        if done:
            self.stage.log(f"resumed after step {done} of {train.steps}")
        for row in rows:
            self._log(row)
        bad = 0
        sampler = Sampler(tasks, self.settings.seed)
        with progress("CAHL training", train.steps) as bar:
            bar.advance(done)
            for step in range(done, train.steps):
                row = self.step(sampler.draw(step, train.tasks_per_step), step)
                bad = bad + 1 if row["non_finite_updates"] else 0
                if bad > MAX_BAD_STEPS:
                    raise TrainingError(
                        f"{bad} steps in a row had a non-finite gradient",
                        "lower train.*.learning_rate, or set model.dtype=float32",
                    )
                rows.append(row)
                self._log(row)
                bar.advance(
                    1,
                    planner=f"{row['planner_reward']:.3f}",
                    executor=f"{row['executor_reward']:.3f}",
                )
                if (step + 1) % train.checkpoint_every == 0 and self.workers.is_main:
                    self._save(folder, step + 1, rows)
        return rows

    def step(self, tasks: Sequence[ToolTask], step: int) -> Row:
        """One training step on the given tasks."""
        train = self.settings.train
        started = time.perf_counter()
        decoded = self.engine.decoded_tokens
        prefilled = self.engine.prefilled_tokens
        self.engine.weights_changed()
        trees = self.roller.rollout(
            self.workers.share(tasks),
            f"{self.settings.seed}/{step}",
            plans=train.plans_per_task,
            executions=train.executions_per_plan,
        )
        generated = time.perf_counter()
        row: Row = {"step": float(step)}
        row |= self._summary(trees)
        row["non_finite_updates"] = 0.0
        for role in ROLES:
            warmup = getattr(train, role).warmup_steps
            scale = min(1.0, (step + 1) / max(1, warmup))
            clock = time.perf_counter()
            samples = [
                s for t in trees for g in t.groups(role) for s in g
                if s.in_signal_group and s.completion.token_ids
            ]  # fmt: skip
            report = update_role(
                role, samples, self.trainees[role], self.settings, scale, self.workers
            )
            row |= {f"{role}/{k}": v for k, v in report.metrics(self.workers).items()}
            row["non_finite_updates"] += not math.isfinite(report.grad_norm)
            row[f"seconds/update_{role}"] = time.perf_counter() - clock
        ended = time.perf_counter()
        sampled, encoded = self.workers.sum(
            [self.engine.decoded_tokens - decoded, self.engine.prefilled_tokens - prefilled]
        )
        row["sampled_tokens"], row["encoded_prompt_tokens"] = sampled, encoded
        row["seconds/rollout"] = generated - started
        row["seconds/step"] = ended - started
        row["sampled_tokens_per_second"] = sampled / (generated - started)
        return row

    def _summary(self, trees: Sequence[Tree]) -> Row:
        """Mean rewards by part and role, and group counts, over all processes."""
        sums: dict[str, list[float]] = {}
        for tree in trees:
            for node in tree.plans:
                assert node.reward is not None and node.sample is not None
                _add(sums, "planner_reward", node.reward.total)
                _add(sums, "plan_validity", node.reward.form)
                _add(sums, "reward_parameters", node.reward.parameters)
                _add(sums, "reward_execution", node.reward.execution)
                _add(sums, "plan_tokens", len(node.sample.completion.token_ids))
                _add(sums, "plan_truncated", not node.sample.completion.finished)
                if not isinstance(node.plan, ParseFailure):
                    _add(sums, "sub_tasks", len(node.plan.sub_tasks))
                for sub in node.nodes:
                    _add(sums, "sub_task_unaligned", sub.gold is None)
                    for reward in sub.rewards:
                        _add(sums, "executor_reward", reward.total)
                        _add(sums, "reward_form", reward.form)
                        _add(sums, "reward_syntax", reward.syntax)
                        _add(sums, "reward_semantics", reward.semantics)
        counts = set_advantages(trees, self.settings)
        names = list(SUMMARY)
        totals = self.workers.sum([sum(sums.get(n, [])) for n in names])
        sizes = self.workers.sum([float(len(sums.get(n, []))) for n in names])
        row = {n: t / s if s else 0.0 for n, t, s in zip(names, totals, sizes, strict=True)}
        groups = self.workers.sum(list(counts.values()))
        return row | dict(zip(counts, groups, strict=True))

    def _log(self, row: Mapping[str, float]) -> None:
        values = {f"train/{k}": v for k, v in row.items() if k != "step"}
        self.stage.log_metrics(values, int(row["step"]))

    def _save(self, folder: Path, step: int, rows: list[Row]) -> None:
        with self.stage.phase("checkpoint"):
            checkpoints.save(folder, step, list(self.trainees.values()), {"rows": rows})


SUMMARY = (
    *PLOT, "plan_tokens", "plan_truncated", "sub_tasks", "sub_task_unaligned",
)  # fmt: skip


def _add(sums: dict[str, list[float]], key: str, value: float) -> None:
    sums.setdefault(key, []).append(float(value))


def _key(stage: StageRun) -> str:
    settings, root = stage.settings, stage.root
    return digest(
        [
            settings.train.model_dump(mode="json"),
            settings.model.model_dump(mode="json"),
            settings.seed,
            [tree_digest(file) for file in split_files(root / "data/prepared", "train")],
            tree_digest(root / "data/backbone"),
            tree_digest(root / "models/sft"),
        ]
    )


def _finish(stage: StageRun, policy: Policy, rows: list[Row]) -> None:
    root = stage.root
    with atomic_dir(root / "models/cahl") as folder:
        for role in ROLES:
            policy.save_adapter(role, folder / role)
    _write_plot(root / "plots/train.csv", rows)
    metrics = summarise(rows)
    write_json(root / "metrics/train.json", metrics)
    stage.log_metrics({f"train_summary/{k}": v for k, v in metrics.items()})
    stage.log_artifact(root / "models/cahl", "adapters")
    stage.log_artifact(root / "plots/train.csv", "plots")
    stage.metadata(**metrics, dtype=str(policy.dtype), device=str(policy.device))
    for name in ("rollout", "update_planner", "update_executor"):
        stage.phases[name] = sum(r[f"seconds/{name}"] for r in rows)


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    """Means over the first and the last quarter of the steps, and totals; no durations."""
    width = max(1, len(rows) // 4)
    out: dict[str, float] = {"steps": float(len(rows))}
    for name in PLOT:
        out[f"{name}_first"] = sum(r[name] for r in rows[:width]) / width
        out[f"{name}_last"] = sum(r[name] for r in rows[-width:]) / width
    for name in ("sampled_tokens", "encoded_prompt_tokens", "non_finite_updates"):
        out[name] = sum(r[name] for r in rows)
    return out


def _write_plot(path: Path, rows: Sequence[Row]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", *PLOT])
        for row in rows:
            writer.writerow([int(row["step"]), *(f"{row[name]:.6f}" for name in PLOT)])
