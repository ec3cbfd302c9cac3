"""What the steps of a run will encode, sample and train on, from its settings and prepared tasks.

Prompts are the real ones of the tasks that the sampler will draw. What is not known before the run is
assumed, and said (`ASSUMPTIONS`): plans are the gold plans, completions as long as the gold targets.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cahl_core.config import Settings
from cahl_core.datasets.targets import executor_targets
from cahl_core.policy.batches import make_jobs
from cahl_core.policy.engine import Engine
from cahl_core.policy.packing import pack
from cahl_core.protocol.forms import flat_prompt
from cahl_core.protocol.prompts import executor_prompt, planner_prompt
from cahl_core.records import ToolTask
from cahl_core.roles import Role, roles_of
from cahl_core.training.curriculum import Sampler
from cahl_core.training.examples import examples

ASSUMPTIONS = (
    "plans have the gold plan's sub-tasks, each plan in words of its own",
    "completions are as long as the gold targets (bound: as long as max_tokens allows)",
)


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with its samples: completions of ``expected`` tokens, ``bound`` at most."""

    prompt: list[int]
    samples: int
    expected: int
    bound: int


@dataclass(slots=True)
class RoleLoad:
    """Tokens of one role in one step.

    Attributes:
        prompts: distinct prompts that are sampled from; ``samples`` in all.
        encoded: by generation, shared prefixes once per batch.
        sampled, sampled_bound: expected, and if every completion is cut off.
        packed, packed_bound: tokens of the update's rows (also the reference's, where it is scored).
        longest_row: of them, with the bound's lengths.
        batches: per generation batch its prompts' lengths and samples each.
        too_long: prompts that leave no room for a completion in ``model.max_context``.
    """

    prompts: int = 0
    samples: int = 0
    encoded: int = 0
    sampled: int = 0
    sampled_bound: int = 0
    longest: int = 0
    packed: int = 0
    packed_bound: int = 0
    longest_row: int = 0
    batches: list[tuple[list[int], int]] = field(default_factory=list)
    too_long: int = 0


@dataclass(frozen=True, slots=True)
class StepLoad:
    """One step: its load by role."""

    roles: dict[Role, RoleLoad]


def predict_steps(
    tasks: Sequence[ToolTask],
    tokenizer: Any,
    settings: Settings,
    steps: int,
    *,
    alike: bool = False,
) -> list[StepLoad]:
    """The first ``steps`` steps of a run on one process, without refills or a curriculum's refusals.

    Args:
        alike: all plans of a task have the same words, so that their executor prompts are the same.
    """
    sampler = Sampler(tasks, settings.seed)
    loads = []
    for _ in range(steps):
        drawn = sampler.draw(settings.train.tasks_per_step)
        roles = {
            role: role_load(_groups(drawn, tokenizer, role, settings, alike), role, settings)
            for role in roles_of(settings.model.form)
        }
        loads.append(StepLoad(roles))
    return loads


def role_load(groups: Iterable[Group], role: Role, settings: Settings) -> RoleLoad:
    """Adds up one role's groups of a step, batched and packed as generation and update do."""
    room, load, groups = settings.max_tokens(role), RoleLoad(), list(groups)
    fitting = [g for g in groups if len(g.prompt) + room <= settings.model.max_context]
    load.too_long = len(groups) - len(fitting)
    load.prompts, load.samples = len(fitting), sum(g.samples for g in fitting)
    load.longest = max((len(g.prompt) for g in fitting), default=0)
    load.sampled = sum(g.samples * g.expected for g in fitting)
    load.sampled_bound = sum(g.samples * g.bound for g in fitting)
    prompts, samples = [g.prompt for g in fitting], fitting[0].samples if fitting else 1
    for job in make_jobs(prompts, samples, room, _engine("batch_tokens")):
        own = [prompts[i] for i in job.prompts]
        load.batches.append(([len(p) for p in own], samples))
        load.encoded += sum(len(row) for row in pack(own, _engine("row_tokens")))
    load.packed, _ = _packed(fitting, [g.expected for g in fitting], settings)
    load.packed_bound, load.longest_row = _packed(fitting, [g.bound for g in fitting], settings)
    return load


def _groups(
    tasks: Sequence[ToolTask], tokenizer: Any, role: Role, settings: Settings, alike: bool
) -> Iterator[Group]:
    train, bound = settings.train, settings.max_tokens(role)
    for task in tasks:
        targets = [len(e.target) for e in examples(tokenizer, task, role, settings)]
        lengths = [min(length, bound) for length in targets]
        if settings.model.form != "hierarchical":
            prompt = _flat_prompt(task, tokenizer, settings)
            yield Group(prompt, train.plans_per_task * train.executions_per_plan, lengths[0], bound)
        elif role == "planner":
            prompt = planner_prompt(
                tokenizer, task.messages, task.tools, settings.model.tool_rendering
            )
            yield Group(prompt, train.plans_per_task, lengths[0], bound)
        else:
            yield from _executor_groups(task, tokenizer, settings, lengths, alike)


def _flat_prompt(task: ToolTask, tokenizer: Any, settings: Settings) -> list[int]:
    model = settings.model
    return flat_prompt(model.form, tokenizer, task.messages, task.tools, model.tool_rendering)


def _executor_groups(
    task: ToolTask, tokenizer: Any, settings: Settings, lengths: Sequence[int], alike: bool
) -> Iterator[Group]:
    train, rendering = settings.train, settings.model.tool_rendering
    for number, target in enumerate(executor_targets(task)[: train.max_sub_tasks]):
        sub, feedback = target.sub_task, target.feedback
        prompt = executor_prompt(tokenizer, sub, task.tools, feedback, rendering)
        other = replace(sub, task=f"~ {sub.task}")
        reworded = executor_prompt(tokenizer, other, task.tools, feedback, rendering)
        words = _differs(prompt, reworded)
        expected = lengths[min(number, len(lengths) - 1)]
        for plan in range(train.plans_per_task):
            own = list(prompt)
            if plan and not alike and words < len(own):
                own[words] = -plan  # a word of its own: no tokenizer has such an id
            yield Group(own, train.executions_per_plan, expected, settings.max_tokens("executor"))


def _differs(first: Sequence[int], second: Sequence[int]) -> int:
    same = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(same, min(len(first), len(second)))


def _packed(groups: Sequence[Group], lengths: Sequence[int], settings: Settings) -> tuple[int, int]:
    """Tokens of the update's rows, and of the longest; no two completions begin alike."""
    sequences, unique = [], -1_000_000
    for group, length in zip(groups, lengths, strict=True):
        for _ in range(group.samples):
            unique -= 1
            sequences.append([*group.prompt, unique, *[0] * (length - 1)])
    rows = pack(sequences, settings.train.row_tokens)
    return sum(map(len, rows)), max(map(len, rows), default=0)


def _engine(name: str) -> int:
    return int(inspect.signature(Engine).parameters[name].default)
