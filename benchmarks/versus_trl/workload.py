"""What every arm is given: the same prompt tokens, numbers of samples, lengths and rewards.

Needs numpy only, so that both environments import it. Prompts are random tokens: samples then differ
from their first token on, which gives our packed rows nothing to share but the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIRST_TOKEN = 100  # the ones below are control tokens in common vocabularies


@dataclass(frozen=True)
class Point:
    """One setting of the comparison; a step has ``tasks`` tasks.

    ``single``: ``samples`` completions of ``tokens`` tokens for a prompt of ``prompt`` tokens.
    ``joint`` (``plans`` > 0): ``plans`` plans of ``tokens`` tokens for every prompt; for each of a
    plan's ``sub_tasks`` an executor prompt that begins with the task's tools (``tools`` tokens) and
    goes on with the sub-task (``sub_task`` tokens), with ``samples`` completions of ``call`` tokens.
    """

    prompt: int = 1000
    samples: int = 8
    tokens: int = 64
    tasks: int = 1
    plans: int = 0
    sub_tasks: int = 2
    tools: int = 900
    sub_task: int = 60
    call: int = 48

    @property
    def roles(self) -> tuple[str, ...]:
        """The adapters that this point trains."""
        return ("planner", "executor") if self.plans else ("executor",)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return max(self.prompt + self.tokens, (self.tools + self.sub_task + self.call) * self.joint)

    @property
    def joint(self) -> bool:
        return self.plans > 0


@dataclass(frozen=True)
class Batch:
    """One role's share of a step: prompts, completions per prompt, tokens per completion."""

    prompts: list[list[int]]
    samples: int
    tokens: int

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.samples


def batches(point: Point, vocabulary: int, step: int) -> dict[str, Batch]:
    """The prompts of one step by role; every arm gets the same for the same step."""
    draw = np.random.default_rng([7, step])

    def tokens(count: int) -> list[int]:
        return [int(t) for t in draw.integers(FIRST_TOKEN, vocabulary, count)]

    prompts = [tokens(point.prompt) for _ in range(point.tasks)]
    if not point.joint:
        return {"executor": Batch(prompts, point.samples, point.tokens)}
    executor = []
    for _ in prompts:
        tools = tokens(point.tools)
        executor += [tools + tokens(point.sub_task) for _ in range(point.plans * point.sub_tasks)]
    return {
        "planner": Batch(prompts, point.plans, point.tokens),
        "executor": Batch(executor, point.samples, point.call),
    }


def reward(completion: Sequence[int]) -> float:
    """A reward that costs nothing and practically always differs within a group."""
    return sum(token % 97 for token in completion) / (97 * len(completion))


def tree_minimum(point: Point) -> dict[str, int]:
    """The fewest tokens a step can feed through the backbone: every distinct prefix once.

    Generation feeds every sampled token but the last of each sample; the update feeds them all, but the
    last of each sample predicts nothing, so it need not be fed either.
    """
    prompts = point.prompt * point.tasks
    rows = point.tasks * (point.plans or point.samples)
    sampled = rows * (point.tokens - 1)
    if point.joint:
        groups = point.tasks * point.plans * point.sub_tasks
        prompts += point.tools * point.tasks + point.sub_task * groups
        sampled += groups * point.samples * (point.call - 1)
    return {"generation": prompts + sampled, "update": prompts + sampled}
