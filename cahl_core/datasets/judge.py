"""One source record to judged prompts: everything that can be said of it alone, in any process.

What needs the other records (duplicates, near duplicates, splits) is decided afterwards, in the order
of the records, so that the result does not depend on how many processes judged them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cahl_core.config import Settings
from cahl_core.datasets.adapters import Record
from cahl_core.datasets.augment import shuffle_tools
from cahl_core.datasets.change import augmented
from cahl_core.datasets.checks import EXCERPT, Problem, Quarantined, check, parse, quarantine
from cahl_core.datasets.contamination import Benchmarks, Overlap, normalise
from cahl_core.datasets.cut import cut, dialogue_problem, is_dialogue
from cahl_core.datasets.dedup import signatures
from cahl_core.datasets.derive import with_plan
from cahl_core.datasets.facts import curriculum, facts
from cahl_core.datasets.negatives import ask_in_dialogue
from cahl_core.datasets.prompts import NoMeter, PromptMeter
from cahl_core.datasets.splits import offers, without_tools
from cahl_core.files import digest, dump_json
from cahl_core.records import ToolSpec, ToolTask

ASKS = 2  # of one dialogue


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a record: kept (``line`` and ``facts`` are JSON lines) or ``quarantined``."""

    id: str
    text_key: bytes = b""
    line: bytes = b""
    facts: bytes = b""
    gold_tools: tuple[str, ...] = ()
    excerpt: str = ""
    plain: bytes = b""  # the task before augmentation, where `line` is augmented
    added: tuple[str, ...] = ()  # names of the tools that augmentation added
    quarantined: Quarantined | None = None
    overlap: Overlap | None = None


@dataclass(frozen=True, slots=True)
class JudgedRecord:
    """A source record with its prompts; ``size`` is the length of its messages in characters.

    ``asks`` are the turns of a dialogue where the assistant rightly asked back instead of calling.
    """

    id: str
    source: str
    size: int
    prompts: tuple[Prompt, ...]
    asks: tuple[ToolTask, ...] = ()


@dataclass(frozen=True, slots=True)
class Redo:
    """A kept task (its JSON line before augmentation) to be made anew without the hidden tools."""

    line: bytes
    hidden: frozenset[str]
    augment: bool


@dataclass(frozen=True)
class Judge:
    """Applies every rule that one record can break by itself."""

    meter: PromptMeter | NoMeter
    benchmarks: Benchmarks
    settings: Settings
    pool: tuple[ToolSpec, ...] = ()

    def chunk(self, items: Sequence[Record | ToolTask | Redo]) -> Any:
        """Records judged, with the MinHash signatures of their users' texts; tasks as `Prompt`."""
        if isinstance(items[0], Redo):
            return [self.redo(item) for item in items if isinstance(item, Redo)]
        if isinstance(items[0], ToolTask):
            return [self.finished(task) for task in items if isinstance(task, ToolTask)]
        records = [record for record in items if isinstance(record, dict)]
        judged = [self.record(record) for record in records]
        return judged, signatures(_user_words(record) for record in records)

    def redo(self, item: Redo) -> Prompt:
        """The task without hidden tools, augmented with others where that is asked and fits."""
        plain = without_tools(ToolTask.from_json(json.loads(item.line)), item.hidden)
        if item.augment:
            pool = [tool for tool in self.pool if tool.name not in item.hidden]
            changed = augmented(plain, self.settings.prepare, pool)
            # a drawn name may be that of a hidden tool
            if changed is not None and not offers(changed.task, item.hidden):
                prompt = self.finished(changed.task)
                if prompt.quarantined is None:
                    return prompt
        return self.finished(plain)

    def record(self, record: Record) -> JudgedRecord:
        record_id, source = str(record.get("id")), str(record.get("source"))
        where = f"{source} record '{record_id}'"
        task = parse(record, where)
        if isinstance(task, ToolTask) and is_dialogue(task):
            reason = dialogue_problem(task)
            task = task if reason is None else ("bad_dialogue", reason)
        asks: tuple[ToolTask, ...] = ()
        if not isinstance(task, ToolTask):
            prompts = [self._aside(record, source, record_id, task)]
        else:
            cuts = cut(task, self.settings.prepare.max_result_chars)
            prompts = [self._prompt(part) for part in cuts] or [
                self._aside(record, source, record_id, ("bad_dialogue", "no gold call in it"))
            ]
            if is_dialogue(task) and self.settings.prepare.missing_argument_share:
                asks = tuple(ask_in_dialogue(task)[:ASKS])
        return JudgedRecord(record_id, source, _size(record), tuple(prompts), asks)

    def _prompt(self, task: ToolTask) -> Prompt:
        settings = self.settings.prepare
        problem = check(task, settings)
        if problem is not None:
            return self._aside(task.to_json(), task.source, task.id, problem)
        overlap = self.benchmarks.of_task(task)
        if overlap is not None:
            problem = ("benchmark_overlap", str(overlap))
            aside = self._aside(task.to_json(), task.source, task.id, problem)
            return replace(aside, overlap=overlap)
        changed = augmented(task, settings, self.pool)
        if changed is not None:
            prompt = self.finished(changed.task)
            if prompt.quarantined is None:  # else it outgrew the limits of length
                gold_tools = tuple(sorted({call.name for call in task.calls}))
                plain = _line(task.to_json())
                return replace(prompt, gold_tools=gold_tools, plain=plain, added=changed.added)
        return self.finished(task)

    def finished(self, task: ToolTask) -> Prompt:
        """The task as it is written: tools in random order, its plan, its lengths and facts."""
        settings = self.settings.prepare
        if settings.shuffle_tools:
            task = shuffle_tools(task, random.Random(f"{settings.seed} shuffle {task.id}"))
        task = task if task.plan is not None else with_plan(task)
        meta = {**task.meta, "curriculum": curriculum(task)}
        if (weight := settings.weights.get(task.source, 1.0)) != 1.0 and "derived_from" not in meta:
            meta["weight"] = weight
        task = replace(task, meta=meta)
        lengths = self.meter.measure(task)
        if (problem := self.meter.problem(lengths)) is not None:
            return self._aside(task.to_json(), task.source, task.id, problem)
        row = facts(task, lengths)
        return Prompt(
            task.id,
            _text_key(task),
            _line(task.to_json()),
            _line(row),
            tuple(row["gold_tools"]),
            str(row["request"] or "")[:EXCERPT],
        )

    def _aside(self, record: Any, source: str, record_id: str, problem: Problem) -> Prompt:
        return Prompt(record_id, quarantined=quarantine(record, source, record_id, problem))


def _line(value: Any) -> bytes:
    return (dump_json(value) + "\n").encode("utf-8")


def _text_key(task: ToolTask) -> bytes:
    """Equal for prompts whose words are equal."""
    return bytes.fromhex(digest(normalise(" ".join(m.content for m in task.messages))))


def _user_words(record: Record) -> tuple[str, ...]:
    """The words of a record's user texts; of its id where it has none, so that none look alike."""
    messages = record.get("messages")
    said = [
        str(m.get("content") or "")
        for m in (messages if isinstance(messages, list) else [])
        if isinstance(m, dict) and m.get("role") == "user"
    ]
    found = normalise(" ".join(said))
    return found or (str(record.get("source")), str(record.get("id")))


def _size(record: Record) -> int:
    return (
        sum(len(str(m)) for m in record.get("messages") or ()) if "malformed" not in record else 0
    )
