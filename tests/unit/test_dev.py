"""The held-back tasks in every form of the model, with a script in the place of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_project import Scripted, Tokens, small_settings, small_task

from cahl_core.config import Settings
from cahl_core.evaluation.core import Attempt, ItemScore
from cahl_core.evaluation.dev import DevRecord, DevTasks, run_dev
from cahl_core.files import write_jsonl
from cahl_core.protocol.texts import execution_text, plan_text, single_text
from cahl_core.records import Plan, SubTask, ToolCall

TASK = small_task(4)
assert TASK.plan is not None
PLAN: Plan = TASK.plan
FIND, BOOK = TASK.calls
RESOLVED = ToolCall("book", {"id": 4})


def _settings(form: str) -> Settings:
    return small_settings({"form": form}, arm="joint" if form == "hierarchical" else form)


def _run(
    tiny_backbone: Path, form: str, *executions: str, plan: str = ""
) -> tuple[DevRecord, Scripted]:
    source = Scripted(Tokens(tiny_backbone), [plan], list(executions))
    (record,) = run_dev(source, _settings(form), [TASK])  # type: ignore[arg-type]
    return record, source


def test_a_hierarchical_run(tiny_backbone: Path) -> None:
    texts = execution_text([FIND]), execution_text([RESOLVED])
    record, source = _run(tiny_backbone, "hierarchical", *texts, plan=plan_text(PLAN))
    assert (record["solved"], record["plan_valid"], record["redundant_calls"]) == (True, True, 0)
    assert record["planner_reward"] == pytest.approx(2.5)
    assert record["executor_reward"] == pytest.approx(2.5)
    assert record["texts"] == list(texts)
    assert source.options["planner"]["openings"] == ("<plan>",)


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_a_flat_run_is_solved_by_references_to_its_own_calls(
    tiny_backbone: Path, form: str
) -> None:
    low_only = form == "low_only"
    calls = [FIND, BOOK]
    text = execution_text(calls) if low_only else single_text(PLAN, calls)
    record, source = _run(tiny_backbone, form, text)
    assert record["solved"]
    assert (record["planner_reward"], record["plan_valid"]) == (None, None if low_only else True)
    assert record["executor_reward"] == pytest.approx(2.5)
    assert [c["arguments"] for c in record["calls"]] == [FIND.arguments, {"id": 4}]
    assert record["plan_text"] == (None if low_only else plan_text(PLAN))
    assert record["calls_attempted"] == record["calls_valid"] == 2
    assert source.prompts["planner"] == []
    assert source.options["executor"]["stop"] == ("</response>",)


def test_flat_texts_outside_the_grammar_are_attempts_that_failed(tiny_backbone: Path) -> None:
    for form in ("low_only", "single_level"):
        record, _ = _run(tiny_backbone, form, "Sure!")
        assert (record["solved"], record["calls_attempted"], record["calls"]) == (False, 1, [])
        assert record["plan_valid"] == (None if form == "low_only" else False)
        assert record["executor_reward"] == 0


def test_a_plan_that_names_an_unknown_tool_solves_nothing(tiny_backbone: Path) -> None:
    plan = Plan((SubTask("t", "nowhere", {}),))
    record, _ = _run(tiny_backbone, "single_level", single_text(plan, [FIND, BOOK]))
    assert (record["plan_valid"], record["solved"]) == (False, False)


@pytest.fixture
def dev(tmp_path: Path) -> DevTasks:
    write_jsonl(tmp_path / "dev.jsonl", [small_task(n).to_json() for n in (4, 5, 7)])
    return DevTasks(tmp_path, 2, _settings("hierarchical"))


def _evaluate(dev: DevTasks, source: Scripted) -> list[ItemScore]:
    class Solver:
        form = "hierarchical"

    solver = Solver()
    solver.source = source  # type: ignore[attr-defined]
    attempts = [Attempt(item) for item in dev.items()]
    records: list[DevRecord] = []
    dev.solve(solver, attempts, lambda _, record: records.append(record))  # type: ignore[arg-type]
    return dev.score(attempts, records)


def test_as_a_benchmark_what_is_solved_is_correct(dev: DevTasks, tiny_backbone: Path) -> None:
    texts = [execution_text([FIND]), execution_text([RESOLVED])]
    source = Scripted(Tokens(tiny_backbone), [plan_text(PLAN)], texts)
    scores = _evaluate(dev, source)
    # task 5 is about another city: the same texts are wrong there
    assert [(s.id, s.correct, s.planned) for s in scores] == [("t4", 1.0, True), ("t5", 0.0, True)]
    assert scores[0].scores["reward"] == pytest.approx(2.5)
    summary = dev.summary(scores)
    assert 0 < summary["mean_reward"] < 2.5
    assert dev.about()["counts"] == {"toy": 2}
