"""Harness and store: every attempt once, whatever interrupts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.errors import ConfigError, EvaluationError
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record, Solver
from cahl_core.evaluation.harness import answer, choose, evaluate
from cahl_core.evaluation.store import RecordStore


class Letters:
    """A benchmark of letters, a to j, in two categories; it counts what it has solved."""

    name, title = "letters", "Letters"

    def __init__(self, fail_after: int | None = None, doubled: bool = False) -> None:
        self.fail_after, self.doubled = fail_after, doubled
        self.solved: list[str] = []
        self.batches: list[int] = []

    def items(self) -> list[Item]:
        return [Item(c, "early" if c < "f" else "late", {"letter": c}) for c in "abcdefghij"]

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        self.batches.append(len(attempts))
        for attempt in reversed(attempts):
            if self.fail_after is not None and len(self.solved) >= self.fail_after:
                raise KeyboardInterrupt
            self.solved.append(attempt.seed)
            emit(attempt, {"text": attempt.seed.upper()})
            if self.doubled:
                emit(attempt, {"text": ""})

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        return [
            ItemScore(a.item.id, a.item.category, float(r["text"] == a.seed.upper()), "calls",
                      sample=a.sample)
            for a, r in zip(attempts, records, strict=True)
        ]  # fmt: skip

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        return {}

    def about(self) -> dict[str, Any]:
        return {}

    def example(self, attempt: Attempt, record: Record) -> str:
        return str(record["text"])


class Nobody:
    label = "nobody"

    def key(self) -> str:
        return "k"

    def solver(self) -> Any:
        return None

    def usage(self) -> dict[str, float | None]:
        return {"seconds_decode": 0.0, "unknown": None}


@pytest.mark.parametrize("killed_at", [0, 1, 3, 4, 9])
def test_a_killed_evaluation_goes_on_and_solves_nothing_twice(
    tmp_path: Path, killed_at: int
) -> None:
    first, second = Letters(fail_after=killed_at), Letters()
    items = first.items()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Nobody(), first, items, tmp_path, batch_size=4)
    done = evaluate(Nobody(), second, items, tmp_path, batch_size=4)
    assert sorted(first.solved + second.solved) == list("abcdefghij")
    assert [s.correct for s in done.scores] == [1.0] * 10
    assert done.timing.attempts == len(second.solved)


def test_batches_are_those_of_the_whole_list(tmp_path: Path) -> None:
    killed, resumed, alone = Letters(fail_after=5), Letters(), Letters()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Nobody(), killed, killed.items(), tmp_path, batch_size=4)
    evaluate(Nobody(), resumed, resumed.items(), tmp_path, batch_size=4)
    evaluate(Nobody(), alone, alone.items(), tmp_path / "other", batch_size=4)
    assert alone.batches == [4, 4, 2]
    assert resumed.batches == [3, 2]


def test_every_sample_has_its_own_seed_and_record(tmp_path: Path) -> None:
    letters = Letters()
    run = evaluate(Nobody(), letters, letters.items()[:2], tmp_path, batch_size=3, samples=3)
    assert [r["text"] for r in run.records] == ["A", "A/1", "A/2", "B", "B/1", "B/2"]
    again = Letters()
    evaluate(Nobody(), again, again.items()[:2], tmp_path, batch_size=3, samples=4)
    assert sorted(again.solved) == ["a/3", "b/3"]


def test_a_benchmark_that_emits_twice_or_never_is_an_error(tmp_path: Path) -> None:
    twice = Letters(doubled=True)
    with pytest.raises(EvaluationError, match="twice"):
        evaluate(Nobody(), twice, twice.items(), tmp_path / "a", batch_size=4)

    class Silent(Letters):
        def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
            pass

    with pytest.raises(EvaluationError, match="no record"):
        evaluate(Nobody(), Silent(), Silent().items(), tmp_path / "b", batch_size=4)


def test_what_is_shown_belongs_to_the_key(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "s.jsonl")
    store.add(Attempt(Item("a", "c", {"prompt": 1})), {"text": "one"})
    assert store.get(Attempt(Item("a", "c", {"prompt": 1}))) == {"text": "one"}
    assert store.get(Attempt(Item("a", "c", {"prompt": 2}))) is None
    assert store.get(Attempt(Item("a", "c", {"prompt": 1}), sample=1)) is None


@given(cut=st.integers(min_value=0, max_value=400), data=st.data())
def test_a_torn_file_loses_torn_lines_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("store") / "s.jsonl"
    attempts = [Attempt(Item(c, "x", {"text": "ü" + c})) for c in "abc"]
    store = RecordStore(path)
    for attempt in attempts:
        store.add(attempt, {"text": attempt.item.id * 20})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    again = RecordStore(path)
    assert len(again) == kept
    for attempt in attempts:
        if again.get(attempt) is None:
            again.add(attempt, {"text": attempt.item.id * 20})
    final = RecordStore(path)
    assert [final.get(a) for a in attempts] == [{"text": a.item.id * 20} for a in attempts]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_samples_are_fixed_by_hashed_ids_and_keep_categories_together() -> None:
    letters = Letters()
    some = [i.id for i in choose(letters, {"letters/late": 2, "letters/early": 1, "other": 3})]
    assert [c < "f" for c in some] == [True, False, False]
    assert set(some[1:]) <= {i.id for i in choose(letters, {"letters/late": 4})}
    assert len(choose(letters, {"letters": 7})) == 7
    assert choose(letters, None) == choose(letters, {"other": 1}) == letters.items()
    with pytest.raises(ConfigError, match=r"no category lte\n.*early, late"):
        choose(letters, {"letters/lte": 1})


def test_answers_come_from_the_store_without_a_solver(tmp_path: Path) -> None:
    letters = Letters()
    store = RecordStore(tmp_path / "s.jsonl")
    answer(Nobody(), letters, letters.items(), store, batch_size=10)

    class Unloadable(Nobody):
        def solver(self) -> Any:
            raise AssertionError("weights were loaded for nothing")

    _, records, timing = answer(Unloadable(), Letters(), letters.items(), store, batch_size=10)
    assert (len(records), timing.to_json()["attempts"]) == (10, 0)


def test_the_code_of_a_benchmark_is_part_of_its_key() -> None:
    from cahl_core.evaluation import model_keys

    found: set[Path] = set()
    model_keys._reach("cahl_core.evaluation.bfcl_multi_turn", found)
    names = {p.name for p in found}
    # imported, started as a worker, and loaded by the worker
    assert {"bfcl_turns.py", "bfcl_simulator_worker.py", "bfcl_official.py"} <= names
    assert "references.py" in names and "evaluate_config.py" not in names
    found.clear()
    model_keys._reach("cahl_core.evaluation.qa", found)
    names = {p.name for p in found}
    # better measures do not ask a model again
    assert "search.py" in names and not names & {"qa_metrics.py", "judge.py", "backbone.py"}


def test_draws_of_another_run_are_other_draws() -> None:
    item = Item("a", "c", {})
    seeds = {Attempt(item, s, r).seed for s in range(3) for r in range(3)}
    assert len(seeds) == 9
    assert Attempt(item).seed == "a"
