"""Supervised warm start: the LoRA adapters of the form's roles on one frozen backbone.

The planner learns the rule-made plan of a request; the executor learns, for each sub-task of that
plan with the recorded results before it, the gold call (in a flat form: all calls of the request).
Examples of one record share their tool list and are packed so that it is encoded once.

With ``model.weights=shared_adapter`` one adapter learns both: the steps of both roles are interleaved
in a fixed order, and it is saved once for each role.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cahl_core.config import ModelSettings, Settings, SftSettings
from cahl_core.errors import TrainingError
from cahl_core.files import atomic_dir, atomic_file, digest, tree_digest, write_json
from cahl_core.policy.backbone import Policy
from cahl_core.policy.logprobs import row_logprobs
from cahl_core.policy.packing import Packed
from cahl_core.progress import progress
from cahl_core.records import ToolTask
from cahl_core.roles import ROLES, Role, roles_of
from cahl_core.stage import StageRun
from cahl_core.training import checkpoints
from cahl_core.training.data import load_split, split_files
from cahl_core.training.distributed import Workers
from cahl_core.training.examples import Drawn, Example, batches, examples, rows_of
from cahl_core.training.sharding import in_step, shard
from cahl_core.training.trainee import Trainee

MAX_BAD_STEPS = 5
DEV_TASKS = 16
SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Course:
    """What one adapter learns: the role whose batch each of its optimizer steps takes."""

    adapter: str
    turns: tuple[Role, ...]

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(role for role in ROLES if role in self.turns)


def run(stage: StageRun) -> None:
    """Trains the adapters; writes models/sft, metrics/sft.json, plots/sft_loss.csv."""
    settings, root = stage.settings, stage.root
    workers = Workers()
    train = load_split(root / "data/prepared", "train")
    dev = load_split(root / "data/prepared", "dev")[:DEV_TASKS]
    train_files = split_files(root / "data/prepared", "train")
    for file in train_files:
        stage.log_input(file, file.stem, "sft")
    planned = courses(settings.model, settings.sft)
    key = digest(
        [
            settings.sft.model_dump(mode="json"),
            settings.model.model_dump(mode="json"),
            settings.seed,
            [tree_digest(file) for file in train_files],
            tree_digest(root / "data/backbone"),
        ]
    )
    workers.agree("settings and inputs", key)
    with stage.phase("load"):
        policy = Policy.load(root / "data/backbone", None, settings.model, device=workers.device)
        for index, course in enumerate(planned):
            policy.new_adapter(course.adapter, settings.seed + index)
        shard(policy, workers)
    losses: dict[Role, list[float]] = {}
    metrics: dict[str, float] = {}
    for course in planned:
        with stage.phase(course.adapter):
            learned, drawn = _train(stage, policy, course, train, key, workers)
        losses |= learned
        with stage.phase("dev"):
            for role in course.roles:
                value = dev_loss(policy, course.adapter, role, dev, settings, workers)
                metrics |= _metrics(role, learned[role], drawn[role], value)
    if workers.is_main:
        _finish(stage, policy, planned, losses, metrics)
    workers.wait()
    if workers.is_main:
        checkpoints.clear(stage.cache_dir(key))


def _finish(
    stage: StageRun,
    policy: Policy,
    planned: Sequence[Course],
    losses: Mapping[Role, Sequence[float]],
    metrics: dict[str, float],
) -> None:
    root = stage.root
    with atomic_dir(root / "models/sft") as folder:
        for course in planned:
            for role in course.roles:
                policy.save_adapter(course.adapter, folder / role)
    _write_plot(root / "plots/sft_loss.csv", losses)
    write_json(root / "metrics/sft.json", metrics)
    stage.log_metrics({f"sft/{k}": v for k, v in metrics.items()})
    stage.log_artifact(root / "models/sft", "adapters")
    stage.log_artifact(root / "plots/sft_loss.csv", "plots")
    stage.metadata(**metrics, dtype=str(policy.dtype), device=str(policy.device))


def courses(model: ModelSettings, sft: SftSettings) -> list[Course]:
    """One course per adapter: per role of the form, or one that both roles share."""
    roles = roles_of(model.form)
    steps = role_steps(sft, roles)
    if model.weights == "shared_adapter" and len(roles) > 1:
        return [Course(SHARED, interleaved(steps))]
    return [Course(role, (role,) * steps[role]) for role in roles]


def role_steps(sft: SftSettings, roles: Sequence[Role] = ROLES) -> dict[Role, int]:
    """Optimizer steps per role; each gets at least one, a lone role all of them."""
    if len(roles) == 1:
        return {roles[0]: sft.steps}
    executor = min(max(1, round(sft.steps * sft.executor_share)), max(1, sft.steps - 1))
    return {"planner": max(1, sft.steps - executor), "executor": executor}


def interleaved(steps: Mapping[Role, int]) -> tuple[Role, ...]:
    """The steps of all roles, each spread evenly over the whole.

    >>> interleaved({"planner": 3, "executor": 2})
    ('planner', 'executor', 'planner', 'executor', 'planner')
    """
    total = sum(steps.values())
    done = dict.fromkeys(steps, 0)
    turns: list[Role] = []
    for number in range(1, total + 1):
        behind = {role: steps[role] * number - done[role] * total for role in steps}
        role = max(behind, key=lambda r: behind[r])
        done[role] += 1
        turns.append(role)
    return tuple(turns)


def _train(
    stage: StageRun,
    policy: Policy,
    course: Course,
    tasks: Sequence[ToolTask],
    key: str,
    workers: Workers,
) -> tuple[dict[Role, list[float]], dict[Role, Drawn]]:
    """Runs a course to its end; the losses and the examples drawn, per role."""
    settings, sft = stage.settings, stage.settings.sft
    name, total = course.adapter, len(course.turns)
    trainee = Trainee(policy, name, sft.learning_rate, sft.grad_clip, sft.weight_decay)
    folder = stage.cache_dir(key) / name
    done, extra, warnings = checkpoints.load_latest(folder, [trainee], workers)
    for warning in warnings:
        stage.log(warning)
    losses = {role: list(extra.get("losses", {}).get(role, [])) for role in course.roles}
    if done:
        stage.log(f"{name}: resumed after step {done} of {total}")
    drawn = {role: Drawn() for role in course.roles}
    streams = {r: batches(policy.tokenizer, tasks, r, settings, drawn[r]) for r in course.roles}
    for role in course.turns[:done]:
        next(streams[role])
    policy.activate(name)
    bad = 0
    with progress(f"SFT {name}", total) as bar:
        bar.advance(done)
        for step, role in list(enumerate(course.turns))[done:]:
            loss, tokens = _step(policy, next(streams[role]), workers)
            workers.sum_gradients(trainee.parameters)
            norm = trainee.step(schedule(step, total, sft.warmup_share))
            bad = bad + 1 if not math.isfinite(norm) else 0
            if bad > MAX_BAD_STEPS:
                raise TrainingError(
                    f"SFT {name}: {bad} steps in a row had a non-finite gradient",
                    "lower sft.learning_rate, or set model.dtype=float32",
                )
            losses[role].append(loss)
            bar.advance(1, loss=f"{loss:.3f}")
            values = {"loss": loss, "grad_norm": norm, "target_tokens": float(tokens)}
            stage.log_metrics({f"sft/{role}/{k}": v for k, v in values.items()}, step)
            if (step + 1) % sft.checkpoint_every == 0 or step + 1 == total:
                extra = {"losses": losses}
                checkpoints.save(folder, step + 1, [trainee], extra, writes=workers.is_main)
    for role in course.roles:
        if drawn[role].left_out:
            stage.log(drawn[role].sentence(role, settings.model.max_context))
    return losses, drawn


def schedule(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up, then a half cosine down to a tenth."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * share))


def _step(
    policy: Policy, batch: list[tuple[Packed, list[Example]]], workers: Workers
) -> tuple[float, int]:
    """Backward of the batch's mean loss per target token; returns it and the number of tokens.

    Every process makes the same batch and takes its share of the rows; gradients are not yet summed.
    """
    total = sum(len(e[i].target) for row, e in batch for i in row.indices)
    value = 0.0
    mine = workers.share(batch)
    with in_step(policy, workers, len(mine)):
        for row, pending in mine:
            loss = row_loss(policy, row, pending) / total
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
    return workers.sum([value])[0], total


def row_loss(policy: Policy, row: Packed, pending: Sequence[Example]) -> torch.Tensor:
    """Summed negative log-likelihood of the row's targets."""
    scored = row_logprobs(policy, row, [len(e.prompt) for e in pending])
    return -scored.values[torch.cat(scored.members)].sum()


def dev_loss(
    policy: Policy,
    adapter: str,
    role: Role,
    tasks: Sequence[ToolTask],
    settings: Settings,
    workers: Workers,
) -> float:
    """Mean negative log-likelihood per target token on held-out tasks, in nats."""
    groups = (examples(policy.tokenizer, t, role, settings) for t in tasks)
    total, count = 0.0, 0
    policy.activate(adapter)
    rows = list(rows_of(groups, settings.sft.row_tokens, settings.model.max_context))
    mine = workers.share(rows)
    with torch.no_grad(), in_step(policy, workers, len(mine)):
        for row, pending in mine:
            total += float(row_loss(policy, row, pending))
            count += sum(len(pending[i].target) for i in row.indices)
    total, tokens = workers.sum([total, float(count)])
    return total / max(tokens, 1.0)


def _metrics(role: Role, losses: Sequence[float], drawn: Drawn, dev: float) -> dict[str, float]:
    """A role's entries of metrics/sft.json; first and last are means over a tenth of the steps."""
    width = max(1, len(losses) // 10)
    return {
        f"{role}_dev_loss": dev,
        f"{role}_first_loss": sum(losses[:width]) / width,
        f"{role}_last_loss": sum(losses[-width:]) / width,
        f"{role}_steps": float(len(losses)),
        f"{role}_left_out": float(drawn.left_out),
        f"{role}_encoded_over_least": drawn.encoded / max(1, drawn.least),
    }


def _write_plot(path: Path, losses: Mapping[Role, Sequence[float]]) -> None:
    """A column for either role, whatever the form: the plot's definition names both."""
    curves = [losses.get(role, ()) for role in ROLES]
    with atomic_file(path) as temporary, temporary.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", *(f"{role}_loss" for role in ROLES)])
        for step in range(max(map(len, curves))):
            cells = [f"{c[step]:.6f}" if step < len(c) else "" for c in curves]
            writer.writerow([step, *cells])
