"""What decodes together: prompts of similar length under a token budget, shrinking as samples end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from cahl_core.policy.prefix_state import PrefixState
from cahl_core.policy.sampling import Endings

COMPACT_BELOW = 0.7  # rebuild the batch when fewer than this share of its rows is alive


@dataclass(slots=True)
class Sample:
    """One completion in the making."""

    prompt: int
    number: int
    seed: str
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What `Engine.generate` was asked for."""

    prompts: Sequence[Sequence[int]]
    names: Sequence[str]
    max_tokens: int
    temperature: float
    endings: Endings
    keep: bool


@dataclass(frozen=True, slots=True)
class Job:
    """Samples of prompts that decode together."""

    prompts: list[int]
    samples: range

    def halves(self) -> tuple[Job, Job] | None:
        """The same work in two parts; ``None`` for a single sample."""
        if len(self.prompts) > 1:
            middle = len(self.prompts) // 2
            parts = self.prompts[:middle], self.prompts[middle:]
            return Job(parts[0], self.samples), Job(parts[1], self.samples)
        if len(self.samples) > 1:
            middle = len(self.samples) // 2
            return (
                Job(self.prompts, self.samples[:middle]),
                Job(self.prompts, self.samples[middle:]),
            )
        return None


def make_jobs(
    prompts: Sequence[Sequence[int]], samples: int, max_tokens: int, budget: int
) -> Iterator[Job]:
    """Prompts of similar length, each batch's cached tokens within the budget."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
        cached = (len(batch) + 1) * (len(prompts[index]) + samples * max_tokens)
        if batch and cached > budget:
            yield Job(batch, range(samples))
            batch = []
        batch.append(index)
    if batch:
        yield Job(batch, range(samples))


def compact(state: PrefixState, rows: list[Sample]) -> list[int] | None:
    """Drops finished prompts, and finished samples where every prompt can spare as many.

    Returns the rows that stay, none when all are done; ``None`` where nothing was dropped.
    """
    alive = sum(not row.done for row in rows)
    if not alive:
        return []
    if alive >= COMPACT_BELOW * len(rows):
        return None
    samples = state.samples
    groups = [rows[i : i + samples] for i in range(0, len(rows), samples)]
    prompts = [i for i, group in enumerate(groups) if not all(row.done for row in group)]
    width = max(sum(not row.done for row in groups[i]) for i in prompts)
    if len(prompts) * width == len(rows):
        return None
    chosen: list[int] = []
    for i in prompts:
        order = sorted(range(samples), key=lambda j: (groups[i][j].done, j))
        chosen += [i * samples + j for j in sorted(order[:width])]
    state.select(prompts, torch.tensor(chosen, device=state.bias.device))
    return chosen
