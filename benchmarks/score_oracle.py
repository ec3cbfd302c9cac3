"""How long the official checkers take for a model that is always right.

    .venv/bin/python benchmarks/score_oracle.py

Scores right answers to every single-turn item (3,641) and every multi-turn item (800) of BFCL v4, from
records to item scores, and prints seconds for a checker that has to start and for one that has its data
(median of ``--repeats``). The aim is 10 s for all 4,441.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "parity"))

from bfcl_gold import gold_calls  # noqa: E402
from bfcl_oracle import Player, place  # noqa: E402

from cahl_core.evaluation.bfcl.single import BfclSingleTurn  # noqa: E402
from cahl_core.evaluation.core import Attempt, Benchmark, Record  # noqa: E402
from cahl_core.protocol.texts import execution_text, plan_text  # noqa: E402
from cahl_core.records import Plan, SubTask, ToolCall  # noqa: E402
from cahl_core.serving.results import AgentResult  # noqa: E402

TIMEOUT = 600
Case = tuple[Benchmark, list[Attempt], list[Record], Callable[[], None]]


def single_turn(wheel: Path) -> Case:
    """Every single-turn item with the record of a perfect planner and executor."""
    benchmark = BfclSingleTurn(wheel, TIMEOUT, "v4")
    gold = {
        i: c for category in benchmark.edition.ast for i, c in gold_calls(wheel, category).items()
    }
    attempts = [Attempt(item) for item in benchmark.items()]
    records = []
    for attempt in attempts:
        calls: Sequence[ToolCall] = gold.get(attempt.item.id, ())
        if attempt.item.category == "live_relevance":
            calls = [ToolCall(attempt.item.data.tools[0].name, {})]
        records.append(perfect(calls))
    return benchmark, attempts, records, benchmark.close


def perfect(calls: Sequence[ToolCall]) -> Record:
    """What a planner and an executor leave that make ``calls``."""
    plan = Plan(tuple(SubTask("call", c.name, c.arguments) for c in calls))
    steps = [{"text": execution_text([c]), "result": None} for c in calls]
    return {**AgentResult().to_json(), "plan_text": plan_text(plan), "steps": steps}


def multi_turn(wheel: Path) -> Case:
    """Every multi-turn item, played by a flat model that makes a turn's gold calls in one text."""
    from cahl_core.evaluation.bfcl_multi_turn import BfclMultiTurn

    benchmark = BfclMultiTurn("v4", wheel, TIMEOUT)
    gold = {item.id: item.data.gold for item in benchmark.items()}

    def due(seed: str) -> list[Sequence[ToolCall]]:
        item, turn, _ = place(seed)
        return [gold[item][turn]] if gold[item][turn] else []

    attempts = [Attempt(item) for item in benchmark.items()]
    records: dict[str, Record] = {}
    benchmark.solve(Player(due, "low_only"), attempts, lambda a, r: records.update({a.item.id: r}))
    return benchmark, attempts, [records[a.item.id] for a in attempts], benchmark.simulator.end


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


def measure(case: Case, repeats: int) -> tuple[float, float]:
    """Seconds with a fresh checker, and the median with a warm one; prints both and what passed."""
    benchmark, attempts, records, close = case
    close()
    first, scores = seconds(lambda: benchmark.score(attempts, records))
    warm = [seconds(lambda: benchmark.score(attempts, records))[0] for _ in range(repeats)]
    close()
    right = sum(s.correct for s in scores)
    middle = statistics.median(warm)
    print(
        f"{benchmark.title}: {len(scores)} items, {right:g} right, "
        f"fresh {first:.2f} s, warm {middle:.2f} s"
    )
    return first, middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, default=ROOT / "data/raw/bfcl-v4")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cases = [single_turn(options.wheel), multi_turn(options.wheel)]
    times = [measure(case, options.repeats) for case in cases]
    items = sum(len(case[1]) for case in cases)
    fresh, warm = (sum(t[n] for t in times) for n in (0, 1))
    print(f"all: {items} items, fresh {fresh:.2f} s, warm {warm:.2f} s")


if __name__ == "__main__":
    main()
