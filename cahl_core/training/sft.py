"""Supervised warm start: LoRA adapters ``planner`` and ``executor`` on one frozen backbone.

The planner learns the rule-made plan of a request; the executor learns, for each sub-task of that
plan with the recorded results before it, the gold call. Examples of one record share their tool list
and are packed so that it is encoded once.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cahl_core.config import Settings, SftSettings
from cahl_core.datasets.targets import executor_targets, planner_target
from cahl_core.errors import TrainingError
from cahl_core.files import atomic_dir, atomic_file, digest, tree_digest, write_json
from cahl_core.policy.backbone import ROLES, Policy, Role
from cahl_core.policy.logprobs import row_logprobs
from cahl_core.policy.packing import Packed, pack
from cahl_core.progress import progress
from cahl_core.protocol.prompts import execution_text, executor_prompt, plan_text, planner_prompt
from cahl_core.records import ToolTask
from cahl_core.stage import StageRun
from cahl_core.training import checkpoints
from cahl_core.training.data import epoch_order, load_split, split_files, weights_of
from cahl_core.training.trainee import Trainee

MAX_BAD_STEPS = 5
DEV_TASKS = 16


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the target that follows it, as token ids."""

    prompt: list[int]
    target: list[int]


def run(stage: StageRun) -> None:
    """Trains both adapters; writes models/sft, metrics/sft.json, plots/sft_loss.csv."""
    settings, root = stage.settings, stage.root
    train = load_split(root / "data/prepared", "train")
    dev = load_split(root / "data/prepared", "dev")
    train_files = split_files(root / "data/prepared", "train")
    for file in train_files:
        stage.log_input(file, file.stem, "sft")
    with stage.phase("load"):
        policy = Policy.load(root / "data/backbone", None, settings.model)
        for index, role in enumerate(ROLES):
            policy.new_adapter(role, settings.seed + index)
    key = digest(
        [
            settings.sft.model_dump(mode="json"),
            settings.model.model_dump(mode="json"),
            settings.seed,
            [tree_digest(file) for file in train_files],
            tree_digest(root / "data/backbone"),
        ]
    )
    losses: dict[Role, list[float]] = {}
    metrics: dict[str, float] = {}
    for role in ROLES:
        with stage.phase(role):
            losses[role] = _train(stage, policy, role, train, key)
        with stage.phase("dev"):
            metrics[f"{role}_dev_loss"] = dev_loss(policy, role, dev[:DEV_TASKS], settings)
        metrics[f"{role}_first_loss"], metrics[f"{role}_last_loss"] = _ends(losses[role])
        metrics[f"{role}_steps"] = float(len(losses[role]))
    with atomic_dir(root / "models/sft") as folder:
        for role in ROLES:
            policy.save_adapter(role, folder / role)
    _write_plot(root / "plots/sft_loss.csv", losses)
    write_json(root / "metrics/sft.json", metrics)
    stage.log_metrics({f"sft/{k}": v for k, v in metrics.items()})
    stage.log_artifact(root / "models/sft", "adapters")
    stage.log_artifact(root / "plots/sft_loss.csv", "plots")
    stage.metadata(**metrics, dtype=str(policy.dtype), device=str(policy.device))
    checkpoints.clear(stage.cache_dir(key))


def examples(tokenizer: Any, task: ToolTask, role: Role, settings: Settings) -> list[Example]:
    """The supervised examples of one record for one role; targets end with the end-of-turn token."""
    rendering = settings.model.tool_rendering
    if role == "planner":
        prompt = planner_prompt(tokenizer, task.messages, task.tools, rendering)
        return [Example(prompt, target_ids(tokenizer, plan_text(planner_target(task))))]
    out = []
    for target in executor_targets(task):
        prompt = executor_prompt(tokenizer, target.sub_task, task.tools, target.feedback, rendering)
        text = execution_text(target.calls or (), target.response)
        out.append(Example(prompt, target_ids(tokenizer, text)))
    return out


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a completion, closed by the end-of-turn token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def rows_of(
    groups: Iterator[list[Example]], row_tokens: int, max_context: int
) -> Iterator[tuple[Packed, list[Example]]]:
    """Packs groups of examples, in order, into rows of about ``row_tokens``.

    Examples beyond ``max_context`` are left out here; the caller has counted them.
    """
    pending: list[Example] = []
    size = 0
    for group in groups:
        group = [e for e in group if len(e.prompt) + len(e.target) <= max_context]
        if not group:
            continue
        added = len(group[0].prompt) + sum(
            len(e.target) + len(e.prompt) - len(group[0].prompt) // 2 for e in group
        )
        if pending and size + added > row_tokens:
            yield from _packed(pending, row_tokens)
            pending, size = [], 0
        pending += group
        size += added
    if pending:
        yield from _packed(pending, row_tokens)


def _packed(pending: list[Example], row_tokens: int) -> Iterator[tuple[Packed, list[Example]]]:
    for row in pack([[*e.prompt, *e.target] for e in pending], row_tokens):
        yield row, pending


def batches(
    policy: Policy, tasks: Sequence[ToolTask], role: Role, settings: Settings, seed: int
) -> Iterator[list[tuple[Packed, list[Example]]]]:
    """Endless optimizer batches of about ``tokens_per_step`` packed tokens, reshuffled per epoch."""
    sft = settings.sft
    weights = weights_of(tasks)
    epoch = 0
    while True:
        order = epoch_order(weights, f"{seed}/{role}/{epoch}")
        groups = (examples(policy.tokenizer, tasks[i], role, settings) for i in order)
        batch: list[tuple[Packed, list[Example]]] = []
        for row in rows_of(groups, sft.row_tokens, settings.model.max_context):
            batch.append(row)
            if sum(len(r) for r, _ in batch) >= sft.tokens_per_step:
                yield batch
                batch = []
        if epoch == 0 and not batch and not tasks:
            raise TrainingError("no training task is left", "see data/prepared/quarantine.jsonl")
        if batch:
            yield batch
        epoch += 1


def _train(
    stage: StageRun, policy: Policy, role: Role, tasks: Sequence[ToolTask], key: str
) -> list[float]:
    settings, sft = stage.settings, stage.settings.sft
    total = role_steps(sft)[role]
    trainee = Trainee(policy, role, sft.learning_rate, sft.grad_clip, sft.weight_decay)
    folder = stage.cache_dir(key) / role
    done, extra, warnings = checkpoints.load_latest(folder, [trainee])
    for warning in warnings:
        stage.log(warning)
    losses: list[float] = list(extra.get("losses", []))
    if done:
        stage.log(f"{role}: resumed after step {done} of {total}")
    stream = batches(policy, tasks, role, settings, settings.seed)
    for _ in range(done):
        next(stream)
    policy.activate(role)
    bad = 0
    with progress(f"SFT {role}", total) as bar:
        bar.advance(done)
        for step in range(done, total):
            loss, tokens = _step(policy, next(stream))
            norm = trainee.step(schedule(step, total, sft.warmup_share))
            bad = bad + 1 if not math.isfinite(norm) else 0
            if bad > MAX_BAD_STEPS:
                raise TrainingError(
                    f"SFT {role}: {bad} steps in a row had a non-finite gradient",
                    "lower sft.learning_rate, or set model.dtype=float32",
                )
            losses.append(loss)
            bar.advance(1, loss=f"{loss:.3f}")
            values = {"loss": loss, "grad_norm": norm, "target_tokens": float(tokens)}
            stage.log_metrics({f"sft/{role}/{k}": v for k, v in values.items()}, step)
            if (step + 1) % sft.checkpoint_every == 0 or step + 1 == total:
                checkpoints.save(folder, step + 1, [trainee], {"losses": losses})
    return losses


def role_steps(sft: SftSettings) -> dict[Role, int]:
    """Optimizer steps per role; each gets at least one."""
    executor = min(max(1, round(sft.steps * sft.executor_share)), max(1, sft.steps - 1))
    return {"planner": max(1, sft.steps - executor), "executor": executor}


def schedule(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up, then a half cosine down to a tenth."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * share))


def _step(policy: Policy, batch: list[tuple[Packed, list[Example]]]) -> tuple[float, int]:
    """Backward of the batch's mean loss per target token; returns it and the number of tokens."""
    total = sum(len(e[i].target) for row, e in batch for i in row.indices)
    value = 0.0
    for row, pending in batch:
        loss = row_loss(policy, row, pending) / total
        loss.backward()  # type: ignore[no-untyped-call]
        value += float(loss.detach())
    return value, total


def row_loss(policy: Policy, row: Packed, pending: Sequence[Example]) -> torch.Tensor:
    """Summed negative log-likelihood of the row's targets."""
    scored = row_logprobs(policy, row, [len(e.prompt) for e in pending])
    return -scored.values[torch.cat(scored.members)].sum()


def dev_loss(policy: Policy, role: Role, tasks: Sequence[ToolTask], settings: Settings) -> float:
    """Mean negative log-likelihood per target token on held-out tasks, in nats."""
    groups = (examples(policy.tokenizer, t, role, settings) for t in tasks)
    total, count = 0.0, 0
    policy.activate(role)
    with torch.no_grad():
        for row, pending in rows_of(groups, settings.sft.row_tokens, settings.model.max_context):
            total += float(row_loss(policy, row, pending))
            count += sum(len(pending[i].target) for i in row.indices)
    return total / max(count, 1)


def _ends(losses: Sequence[float]) -> tuple[float, float]:
    width = max(1, len(losses) // 10)
    return sum(losses[:width]) / width, sum(losses[-width:]) / width


def _write_plot(path: Path, losses: dict[Role, list[float]]) -> None:
    length = max(map(len, losses.values()))
    with atomic_file(path) as temporary, temporary.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", *(f"{role}_loss" for role in ROLES)])
        for step in range(length):
            cells = [losses[r][step] if step < len(losses[r]) else None for r in ROLES]
            writer.writerow([step, *("" if c is None else f"{c:.6f}" for c in cells)])
