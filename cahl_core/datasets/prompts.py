"""Prompt lengths with the backbone's own tokenizer: the limits that records must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cahl_core.config import ModelSettings, PrepareSettings
from cahl_core.datasets.checks import Problem
from cahl_core.datasets.targets import resolved_gold
from cahl_core.errors import StageInputError
from cahl_core.protocol.prompts import (
    execution_text,
    executor_prompt_text,
    plan_text,
    planner_prompt_text,
    tool_listing,
)
from cahl_core.records import Plan, ToolTask

RENDERINGS: tuple[Literal["compact", "json"], ...] = ("compact", "json")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one task: prompts, and the gold texts that follow them."""

    planner: int
    executor: int
    plan: int
    execution: int


class PromptMeter:
    """Measures tasks in the rendering of the settings."""

    def __init__(self, tokenizer: Any, model: ModelSettings, settings: PrepareSettings) -> None:
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.rendering = model.tool_rendering
        self.max_context = model.max_context
        self.max_prompt = settings.max_prompt_tokens

    @classmethod
    def load(cls, backbone: Path, model: ModelSettings, settings: PrepareSettings) -> PromptMeter:
        """Loads the tokenizer; `StageInputError` if the backbone was not fetched."""
        if not (backbone / "config.json").is_file():
            raise StageInputError(f"{backbone} has no backbone", "run `cahl fetch` first")
        import transformers

        # the same tokens as the automatic class gives, without importing torch
        fast = (backbone / "tokenizer.json").is_file()
        kind: Any = transformers.PreTrainedTokenizerFast if fast else transformers.AutoTokenizer
        tokenizer = kind.from_pretrained(backbone, local_files_only=True)
        return cls(tokenizer, model, settings)

    def planner(self, task: ToolTask, rendering: Literal["compact", "json"] | None = None) -> int:
        """Tokens of the planner's prompt."""
        chosen = rendering or self.rendering
        text = planner_prompt_text(self.tokenizer, task.messages, task.tools, chosen)
        return self._count([text])[0]

    def measure(self, task: ToolTask) -> Lengths:
        """All lengths; the executor's are those of the longest sub-task."""
        plan = task.plan or Plan(())
        listing = tool_listing(self.tokenizer, task.tools, self.rendering)
        prompt = planner_prompt_text(
            self.tokenizer, task.messages, task.tools, self.rendering, listing
        )
        calls = (execution_text([call]) for call in resolved_gold(task))
        targets = [plan_text(plan), max(calls, key=len, default="")]
        counts = self._count([prompt, *targets, *self._executor_prompts(task, plan, listing)])
        return Lengths(counts[0], max(counts[3:], default=0), counts[1], counts[2])

    def _executor_prompts(self, task: ToolTask, plan: Plan, listing: str) -> list[str]:
        """The prompts that can be the longest: results only add up, so the last, or the wordiest."""
        last = len(plan.sub_tasks) - 1
        wordiest = max(range(last + 1), key=lambda k: len(str(plan.sub_tasks[k])), default=-1)
        return [
            executor_prompt_text(
                self.tokenizer,
                plan.sub_tasks[k],
                task.tools,
                list(zip(plan.sub_tasks[:k], task.results[:k], strict=False)),
                self.rendering,
                listing,
            )
            for k in sorted({last, wordiest} - {-1})
        ]

    def _count(self, texts: list[str]) -> list[int]:
        # the fast form leaves out character offsets, which nobody reads here
        return [len(e) for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def problem(self, lengths: Lengths) -> Problem | None:
        """The length rule that a task breaks, or ``None``."""
        longest = max(lengths.planner, lengths.executor)
        if longest > self.max_prompt:
            return "prompt_too_long", f"{longest} tokens, allowed {self.max_prompt}"
        total = max(lengths.planner + lengths.plan, lengths.executor + lengths.execution)
        if total > self.max_context:
            return "target_too_long", f"{total} tokens with the gold text, {self.max_context} fit"
        return None

    def renderings(self, tasks: Sequence[ToolTask]) -> dict[str, dict[str, int]]:
        """Median and 95th percentile of the planner's prompt in both renderings of the tools."""
        return {name: _quantiles([self.planner(t, name) for t in tasks]) for name in RENDERINGS}


class NoMeter:
    """Stands in where no tokenizer is at hand: everything has length 0 and fits."""

    def measure(self, task: ToolTask) -> Lengths:
        return Lengths(0, 0, 0, 0)

    def problem(self, lengths: Lengths) -> Problem | None:
        return None


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    ordered = sorted(values) or [0]
    return {
        "p50": ordered[len(ordered) // 2],
        "p95": ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)],
    }
