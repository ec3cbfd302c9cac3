"""Runs benchmarks on models: batches, resumption item by item, progress, scores.

Batches are cut from the whole list of attempts, not from what is left of it, so that a run that goes on
repeats the batches it would have had; only the interrupted one is smaller.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cahl_core.errors import ConfigError, EvaluationError
from cahl_core.evaluation.core import (
    Attempt,
    Benchmark,
    DependsOn,
    Item,
    ItemScore,
    KeepsNotes,
    Record,
    Solver,
)
from cahl_core.evaluation.model_keys import reached_digest
from cahl_core.evaluation.store import RecordStore
from cahl_core.files import digest
from cahl_core.progress import progress


class Model(Protocol):
    """The part of `models.Model` that is needed to have it answer."""

    @property
    def label(self) -> str: ...

    def key(self) -> str:
        """Digest of everything its texts depend on, apart from what it is shown."""

    def solver(self) -> Solver:
        """Loads what is needed, at the first call."""

    def usage(self) -> Mapping[str, float | None]:
        """Seconds and tokens so far, by phase."""


@dataclass(slots=True)
class Timing:
    """What the attempts of this process took; those found in the store are not in it.

    Attributes:
        seconds: of the clock, all attempts together.
        latencies: of each attempt, from the start of its batch to its record.
        usage: `Model.usage`, this run's share.
    """

    attempts: int = 0
    seconds: float = 0.0
    scoring: float = 0.0
    latencies: list[float] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Seconds per attempt and phase; empty where everything was in the store."""
        if not self.attempts:
            return {"attempts": 0, "scoring_seconds": self.scoring}
        ordered = sorted(self.latencies)
        middle, high = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
        return {
            "attempts": self.attempts,
            "seconds": self.seconds,
            "seconds_per_attempt": self.seconds / self.attempts,
            "latency_median": middle,
            "latency_p95": high,
            "scoring_seconds": self.scoring,
            **self.usage,
        }


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """What one model did on one benchmark, judged."""

    benchmark: Benchmark
    attempts: list[Attempt]
    records: list[Record]
    scores: list[ItemScore]
    timing: Timing


def choose(benchmark: Benchmark, sample: Mapping[str, int] | None) -> list[Item]:
    """The items to evaluate: whole, or a fixed sample that does not depend on the files' order.

    Args:
        sample: ``benchmark`` or ``benchmark/category`` → number of items, those whose hashed ids come
            first; 0 leaves a category out. ``None``, or nothing said of this benchmark: all.

    Raises:
        ConfigError: a category that the benchmark does not have.
    """
    items = list(benchmark.items())
    own = {k: n for k, n in (sample or {}).items() if k.partition("/")[0] == benchmark.name}
    if not own:
        return items
    categories = list(dict.fromkeys(i.category for i in items))
    wanted = {k.partition("/")[2]: n for k, n in own.items()}
    if unknown := sorted(set(wanted) - {"", *categories}):
        raise ConfigError(
            f"evaluate.sample: {benchmark.name} has no category {', '.join(unknown)}",
            f"categories: {', '.join(categories)}",
        )
    if "" in wanted:
        whole = first_by_hash(items, wanted[""])
        return [i for c in categories for i in whole if i.category == c]
    return [
        i
        for c in categories
        for i in first_by_hash([i for i in items if i.category == c], wanted.get(c, 0))
    ]


def first_by_hash(items: Sequence[Item], count: int) -> list[Item]:
    """The ``count`` items whose hashed ids come first."""
    return sorted(items, key=lambda i: hashlib.sha256(i.id.encode()).hexdigest())[:count]


def answer(
    model: Model,
    benchmark: Benchmark,
    items: Sequence[Item],
    store: RecordStore,
    *,
    batch_size: int,
    samples: int = 1,
    seed: int = 0,
) -> tuple[list[Attempt], list[Record], Timing]:
    """One record per item and sample, from the store where it is there.

    Raises:
        EvaluationError: the benchmark did not emit each attempt exactly once.
    """
    attempts = [Attempt(item, number, seed) for item in items for number in range(samples)]
    timing = Timing()
    before = dict(model.usage())
    with progress(f"{model.label}: {benchmark.title}", len(attempts)) as bar:
        for start in range(0, len(attempts), batch_size):
            batch = attempts[start : start + batch_size]
            missing = [a for a in batch if store.get(a) is None]
            bar.advance(len(batch) - len(missing))
            if missing:
                _solve(model, benchmark, missing, store, timing, bar.advance)
    after = model.usage()
    timing.usage = {k: (v or 0) - (before.get(k) or 0) for k, v in after.items() if v is not None}
    records = [store.get(attempt) for attempt in attempts]
    return attempts, [r for r in records if r is not None], timing


def _solve(
    model: Model,
    benchmark: Benchmark,
    attempts: Sequence[Attempt],
    store: RecordStore,
    timing: Timing,
    advance: Callable[[int], None],
) -> None:
    left = {(a.item.id, a.sample) for a in attempts}
    solver = model.solver()
    started = time.perf_counter()

    def emit(attempt: Attempt, record: Record) -> None:
        if (attempt.item.id, attempt.sample) not in left:
            raise EvaluationError(f"{benchmark.name} gave {attempt.seed} twice, or unasked")
        left.discard((attempt.item.id, attempt.sample))
        store.add(attempt, record)
        timing.latencies.append(time.perf_counter() - started)
        advance(1)

    benchmark.solve(solver, attempts, emit)
    timing.seconds += time.perf_counter() - started
    timing.attempts += len(attempts)
    if left:
        raise EvaluationError(f"{benchmark.name} gave no record for {sorted(left)[:5]}")


def _name(model: Model, benchmark: Benchmark) -> str:
    """A file name that tells apart what records depend on beside items: model, and benchmark's code."""
    more = benchmark.depends_on() if isinstance(benchmark, DependsOn) else None
    key = digest([model.key(), reached_digest(type(benchmark).__module__), more])
    return f"{key}-{re.sub(r'[^A-Za-z0-9._-]+', '-', benchmark.name)}"


def evaluate(
    model: Model,
    benchmark: Benchmark,
    items: Sequence[Item],
    cache: Path,
    *,
    batch_size: int,
    samples: int = 1,
    seed: int = 0,
) -> BenchmarkRun:
    """One model on one benchmark: answers, then scores.

    Args:
        cache: directory of records; a file per model and benchmark in it.
        seed: of the draws; 0 where decoding is greedy.

    Raises:
        EvaluationError: the harness or a checker failed; never a score.
    """
    place = cache / _name(model, benchmark)
    if isinstance(benchmark, KeepsNotes):
        benchmark.keep_notes(place)
    store = RecordStore(place.with_name(f"{place.name}.jsonl"))
    attempts, records, timing = answer(
        model, benchmark, items, store, batch_size=batch_size, samples=samples, seed=seed
    )
    started = time.perf_counter()
    scores = benchmark.score(attempts, records)
    timing.scoring = time.perf_counter() - started
    if [(s.id, s.sample) for s in scores] != [(a.item.id, a.sample) for a in attempts]:
        raise EvaluationError(f"{benchmark.name}: the scores are not those of the records")
    return BenchmarkRun(benchmark, attempts, records, scores, timing)
