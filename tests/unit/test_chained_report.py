"""What people see of chained calls: the table, the failures, worst and best tasks with their verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cahl_core.evaluation.chained_report import example, show
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolTask
from tests.unit.chained_tasks import gold, idle, planning, solved, trip


def _wrong(task: ToolTask) -> Any:
    """The gold for even trips; for odd ones a wrong day, a wrong reference and a step too few."""
    plan, calls = gold(task)
    if not task.id.endswith("1"):
        return plan, calls
    steps = list(plan.sub_tasks)[:3]
    steps[2] = SubTask("Find it", "hotel", {"near": "$var2.id$", "day": "2026-05-09"})
    return Plan(tuple(steps)), [
        *calls[:2],
        [ToolCall("hotel", {"near": "p1", "day": "2026-05-09"})],
    ]


def test_table_has_every_measure_that_was_observed(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark, _, _, scores = solved([trip(0), trip(1), idle()], writer=_wrong)
    show("Mine", benchmark.measures(scores), scores, ["0 of 3 requests are in the training set"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Mine"
    assert " ".join(shown[1].split()) == "measure all (n=3) no call (n=1) 4-5 calls (n=2)"
    assert "66.7 %" in next(line for line in shown if line.startswith("task success"))
    assert "75.0 % of 2" in next(line for line in shown if line.startswith("steps, free-running"))
    assert "not solved: 1 wrong_arguments" in shown
    assert shown[-1] == "0 of 3 requests are in the training set"


def test_measures_of_no_item_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark, _, _, scores = solved([idle()], "low_only")
    show("Mine", benchmark.measures(scores), scores)
    shown = capsys.readouterr().out
    assert "plan:" not in shown
    assert "task success" in shown
    assert "not solved" not in shown


def test_an_example_says_of_every_argument_what_was_due() -> None:
    _, _, records, _ = solved([trip(1)], writer=_wrong)
    shown = example(trip(1), records[0])
    for expected in (
        "user: Book a hotel near Oslo and a taxi to Bergen, trip 1.",
        "plan, 3 sub-tasks for 4 gold calls:",
        '= city: "Oslo"',
        '≠ near: "$var2.id$", due "$var1.id$"',
        '≠ day: "2026-05-09", due "2026-05-01"',
        '– start: due "$var3.hotels[0].spot$"',
        "taxi: gold call 4, no sub-task",
        "calls: not solved, wrong_arguments: call 3 (hotel): day differs",
        "taxi: gold call 4, not made",
        'result 1: [{"id":"p1"}]',
        "teacher-forced: 4 of 4 steps right",
        "answer due: A taxi is booked.",
        "= as due   ≠ differs   – missing   + not due",
    ):
        assert expected in shown


def test_an_example_shows_calls_that_are_not_due() -> None:
    writer = lambda _: (planning(("news", {"x": 1})), [[ToolCall("news", {"x": 1})]])  # noqa: E731
    _, _, records, _ = solved([idle()], writer=writer)
    shown = example(idle(), records[0])
    assert "news: not due, sub-task 1" in shown
    assert "+ x: 1" in shown
    assert "invalid: unknown argument 'x'" in shown


def test_texts_outside_the_grammar_are_shown_with_the_reason() -> None:
    run: dict[str, Any] = {
        "plan_text": "Sure!\x1b[2J", "steps": [], "prompt_tokens": 1, "completion_tokens": 1,
        "too_long": None, "form": "hierarchical",
    }  # fmt: skip
    shown = example(
        trip(), {"run": run, "forced": ["nonsense", None, "<response>no</response>", ""]}
    )
    assert "plan: cannot be read: no <plan>: Sure!\\u001b[2J" in shown
    assert "teacher-forced: 0 of 4 steps right" in shown
    assert (
        "step 1: the text cannot be read: neither <tool_call> nor <response>: nonsense; due"
        in shown
    )
    assert "step 2: a prompt left no room for its text" in shown
    assert "step 3: answered in words" in shown
    assert "\x1b" not in shown


def test_long_texts_are_cut_and_lines_stay_lines() -> None:
    task = replace(trip(), messages=(Message("user", "word\n" * 2000),))
    _, _, records, _ = solved([task])
    shown = example(task, records[0])
    assert max(map(len, shown.splitlines())) < 700
    assert "word⏎word" in shown


@pytest.mark.parametrize("on_terminal", [False, True])
def test_names_from_a_file_neither_steer_the_terminal_nor_are_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, on_terminal: bool
) -> None:
    tasks = [replace(t, meta={**t.meta, "split": s}) for t, s in
             ((trip(0), "x\x1b[2J[/b]"), (trip(1), "[y]"))]  # fmt: skip
    benchmark, _, _, scores = solved(tasks)
    monkeypatch.setattr("sys.stdout.isatty", lambda: on_terminal, raising=False)
    show("Tasks of [x]\x1b]0;t\x07.jsonl", benchmark.measures(scores), scores)
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and "\x1b]0" not in shown
    assert "Tasks of [x]" in shown and "[/b]" in shown and "[y]" in shown
