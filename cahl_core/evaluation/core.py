"""What a benchmark is to the harness, and what a model is to a benchmark.

A benchmark hands out items, has a solver work on them, and judges the records that come of it. Records
hold what was written, never a verdict: they are kept (`harness`), and judging them again is free. All
that is random, slow or costs tokens is in `Benchmark.solve`; `Benchmark.score` is a pure function of
records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cahl_core.serving.results import AgentResult, Request
from cahl_core.train_config import Form

# What a model did on one item: JSON values, no verdict, nothing that depends on time or place.
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a benchmark.

    Attributes:
        id: unique within the benchmark.
        shown: everything of the item that a model's texts can depend on, as JSON: part of the key
            under which they are kept.
        data: whatever else the benchmark needs; the harness does not look at it.
    """

    id: str
    category: str
    shown: Any
    data: Any = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sample of one item; ``seed`` keys its draws, greedy decoding ignores it.

    Attributes:
        run: the run's seed; 0 where nothing is drawn.
    """

    item: Item
    sample: int = 0
    run: int = 0

    @property
    def seed(self) -> str:
        own = f"{self.item.id}/{self.sample}" if self.sample else self.item.id
        return f"{self.run}:{own}" if self.run else own


# Called once per attempt, as soon as its record is whole.
Emit = Callable[[Attempt, Record], None]


class Solver(Protocol):
    """A model as benchmarks use it; `serving.agent.Agent` is one."""

    @property
    def form(self) -> Form:
        """How it works: with plan and executor, or in one text."""

    def run(
        self,
        requests: Sequence[Request],
        on_result: Callable[[int, AgentResult], None] | None = None,
    ) -> list[AgentResult]:
        """One result per request, in order; the requests move together as one batch."""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One judged record.

    Attributes:
        correct: the benchmark's headline measure, 0 to 1.
        scores: its other measures of this item; ``None`` where nothing could be observed. Their means
            are reported under the same names.
        outcome: what kind of output it was (`serving.results.Outcome`, or the benchmark's own word).
        error: why it was not correct, for people; ``error_type`` is its class.
        attempted: calls that were made or that could not be parsed; ``unparsed`` of them, ``invalid``
            (those included) and ``redundant`` by the definitions in `call_metrics`.
        planned: whether the plan is valid; ``None`` without a planner or a plan.
        adherence: share of the plan's sub-tasks that were carried out by one call of their tool;
            ``None`` without a plan that calls tools.
    """

    id: str
    category: str
    correct: float
    outcome: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    error_type: str | None = None
    error: str = ""
    sample: int = 0
    attempted: int = 0
    unparsed: int = 0
    invalid: int = 0
    redundant: int = 0
    planned: bool | None = None
    adherence: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Benchmark(Protocol):
    """One test set with its protocol.

    Attributes:
        name: key in results and settings, such as ``bfcl_v3``.
        title: for people.
    """

    name: str
    title: str

    def items(self) -> Sequence[Item]:
        """All items, in a fixed order.

        Raises:
            StageInputError: the data is not there; says how to fetch it.
        """

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        """Has the solver work on a batch of attempts and emits one record for each."""

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        """One score per record, in order; the same for the same records.

        Raises:
            EvaluationError: the checker failed; never a score.
        """

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """The benchmark's own aggregates (official formulas), as JSON; shares in [0, 1].

        The harness adds n, accuracy and intervals overall and by category, and all efficiency
        measures. ``scores`` may cover a sample of the items: a formula whose parts are not all there
        is left out.
        """

    def about(self) -> dict[str, Any]:
        """Protocol and provenance for the report, as JSON: ``protocol`` (name → text), ``notes``
        (sentences that belong beside the numbers), ``data`` (file → sha256), ``counts`` (category →
        all items)."""

    def example(self, attempt: Attempt, record: Record) -> str:
        """One record for people: request, plan, calls, results, gold; plain text."""


@runtime_checkable
class KeepsNotes(Protocol):
    """A benchmark that makes something of a model before its first item, such as a filled memory."""

    def keep_notes(self, folder: Path) -> None:
        """Keeps it in ``folder``, which belongs to one model, from the next `Benchmark.solve` on."""


@runtime_checkable
class TextOnly(Protocol):
    """A benchmark with prompts of its own, which only a model that answers plain conversations can be
    asked (`solvers.TextSolver`)."""

    text_only: bool


@runtime_checkable
class OwnRollouts(Protocol):
    """A benchmark that samples from the project's own weights itself (``solver.source``), greedily and
    once per item; it sends no prompt of an agent's."""

    own_rollouts: bool


@runtime_checkable
class DependsOn(Protocol):
    """A benchmark whose records depend on more than its items and the code it imports."""

    def depends_on(self) -> Any:
        """That, as JSON: digests of programs that answer calls, for instance."""


@runtime_checkable
class Closes(Protocol):
    """A benchmark with processes of its own."""

    def close(self) -> None:
        """Ends them; they start again when they are needed."""
