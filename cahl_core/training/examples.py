"""Supervised examples: what each role reads and writes for a task, as packed rows of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.config import Settings
from cahl_core.datasets.targets import executor_targets, flat_target, planner_target
from cahl_core.errors import ModelError, TrainingError
from cahl_core.policy.packing import Packed, distinct_tokens, pack
from cahl_core.protocol.forms import flat_prompt
from cahl_core.protocol.prompts import executor_prompt, planner_prompt
from cahl_core.protocol.templates import dialect_of
from cahl_core.protocol.texts import execution_text, plan_text, single_text
from cahl_core.records import ToolTask
from cahl_core.roles import Role
from cahl_core.training.data import epoch_order, weights_of

Rows = Iterator[tuple[Packed, list["Example"]]]
WINDOW = 8  # rows packed together: enough to fill them, few enough to keep the order drawn


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the target that follows it, as token ids."""

    prompt: list[int]
    target: list[int]

    @property
    def whole(self) -> list[int]:
        return [*self.prompt, *self.target]


@dataclass(slots=True)
class Drawn:
    """How many examples were drawn, how many did not fit ``model.max_context``, and their tokens.

    Attributes:
        encoded: tokens of the rows.
        least: tokens of the trees that were packed together, each prefix counted once.
    """

    examples: int = 0
    left_out: int = 0
    encoded: int = 0
    least: int = 0

    def sentence(self, role: Role, max_context: int) -> str:
        return (
            f"SFT {role}: {self.left_out} of {self.examples} examples drawn are longer than "
            f"model.max_context={max_context} and were left out"
        )


def examples(tokenizer: Any, task: ToolTask, role: Role, settings: Settings) -> list[Example]:
    """The supervised examples of one record for one role; targets end with the end-of-turn token.

    In the hierarchical form one for the planner and one per sub-task for the executor; in a flat
    form one: the calls of the whole request (``low_only``), or the plan and these (``single_level``).
    """
    rendering, special = settings.model.tool_rendering, dialect_of(tokenizer).special
    form = settings.model.form
    if form != "hierarchical":
        prompt = flat_prompt(form, tokenizer, task.messages, task.tools, rendering)
        calls, response = flat_target(task)
        if form == "low_only":
            text = execution_text(calls, response, special)
        else:
            text = single_text(planner_target(task), calls, response, special)
        return [Example(prompt, target_ids(tokenizer, text))]
    if role == "planner":
        prompt = planner_prompt(tokenizer, task.messages, task.tools, rendering)
        return [Example(prompt, target_ids(tokenizer, plan_text(planner_target(task), special)))]
    out = []
    for target in executor_targets(task):
        prompt = executor_prompt(tokenizer, target.sub_task, task.tools, target.feedback, rendering)
        text = execution_text(target.calls or (), target.response, special)
        out.append(Example(prompt, target_ids(tokenizer, text)))
    return out


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a completion, closed by the end-of-turn token.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the backbone's tokenizer has no end-of-sequence token",
            "set eos_token in its tokenizer_config.json",
        )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def rows_of(
    groups: Iterator[list[Example]], row_tokens: int, max_context: int, drawn: Drawn | None = None
) -> Rows:
    """Packs groups of examples into rows of at most ``row_tokens``, `WINDOW` rows' worth at a time.

    Rows come in the order of their first examples. Examples beyond ``max_context`` are left out, and
    counted in ``drawn``; one longer than ``row_tokens`` has a row of its own.
    """
    drawn = Drawn() if drawn is None else drawn
    pending: list[Example] = []
    size = 0
    for group in groups:
        fitting = [e for e in group if len(e.prompt) + len(e.target) <= max_context]
        drawn.examples += len(group)
        drawn.left_out += len(group) - len(fitting)
        pending += fitting
        size += distinct_tokens([e.whole for e in fitting])
        if size >= WINDOW * row_tokens:
            rows = _packed(pending, row_tokens)
            left = min(rows, key=len)  # waits for more
            yield from _counted([row for row in rows if row is not left], pending, drawn)
            pending, size = [pending[i] for i in sorted(left.indices)], len(left)
    if pending:
        yield from _counted(_packed(pending, row_tokens), pending, drawn)


def _packed(pending: list[Example], row_tokens: int) -> list[Packed]:
    rows = pack([e.whole for e in pending], row_tokens)
    return sorted(rows, key=lambda row: min(row.indices))


def _counted(rows: list[Packed], pending: list[Example], drawn: Drawn) -> Rows:
    drawn.least += distinct_tokens([pending[i].whole for row in rows for i in row.indices])
    drawn.encoded += sum(map(len, rows))
    for row in rows:
        yield row, pending


def batches(
    tokenizer: Any,
    tasks: Sequence[ToolTask],
    role: Role,
    settings: Settings,
    drawn: Drawn | None = None,
) -> Iterator[list[tuple[Packed, list[Example]]]]:
    """Endless optimizer batches of about ``tokens_per_step`` packed tokens, reshuffled per epoch.

    Raises:
        TrainingError: in a whole pass over the tasks no example fits.
    """
    sft, max_context = settings.sft, settings.model.max_context
    weights = weights_of(tasks)
    epoch = 0
    while True:
        order = epoch_order(weights, f"{settings.seed}/{role}/{epoch}")
        groups = (examples(tokenizer, tasks[i], role, settings) for i in order)
        batch: list[tuple[Packed, list[Example]]] = []
        rows = 0
        for row in rows_of(groups, sft.row_tokens, max_context, drawn):
            rows += 1
            batch.append(row)
            tokens = sum(len(r) for r, _ in batch)
            if tokens + len(row[0]) // 2 >= sft.tokens_per_step:  # another would overshoot by more
                yield batch
                batch = []
        if not rows:
            raise TrainingError(
                f"SFT {role}: no example of {len(tasks)} tasks fits "
                f"model.max_context={max_context}",
                "raise model.max_context, or see data/prepared/quarantine.jsonl",
            )
        if batch:
            yield batch
        epoch += 1
