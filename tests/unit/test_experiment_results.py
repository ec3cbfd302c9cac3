"""From runs to tables: counts per run, cross-play, notes, and the pages that show them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_project import Scripted, Tokens, small_settings, small_task

from cahl_core.evaluation.dev import dev_record
from cahl_core.experiments.crossplay import Crossed, diagonal_gain, matrix, pick, play
from cahl_core.experiments.measures import MEASURES, observations
from cahl_core.experiments.outcomes import evaluate, runs_of
from cahl_core.experiments.statistics import ratio
from cahl_core.protocol.prompts import execution_text, plan_text
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolTask
from cahl_core.training.alignment import alignment_metrics
from cahl_core.training.rollout import Roller

FIND, BOOK = ToolCall("find", {"city": "Oslo"}), ToolCall("book", {"id": 1})
GOLD = small_task(1)


def _trees(backbone: Path, plans: list[str], executions: list[str], **options: Any) -> list[Any]:
    source = Scripted(Tokens(backbone), plans, executions)
    form = options.pop("form", "hierarchical")
    arm = "joint" if form == "hierarchical" else form
    own = small_settings({"form": form}, arm=arm)
    return Roller(source, own).rollout(
        [GOLD], "s", plans=options.get("runs", len(plans)), executions=1
    )


def _gold_plan() -> str:
    assert GOLD.plan is not None
    return plan_text(GOLD.plan)


def test_a_perfect_run_earns_everything(tiny_backbone: Path) -> None:
    # both sub-tasks get the same text in this script, so each makes the call of the first
    [tree] = _trees(tiny_backbone, [_gold_plan()], [execution_text([FIND])])
    [run] = runs_of(tree)
    assert run["calls"] == 2
    assert run["redundant"] == 1
    assert (run["sub_judged"], run["sub_solved"]) == (2, 1)
    assert (run["executed"], run["adherent"]) == (2, 1)
    assert run["success"] == 0
    one = Plan((SubTask("find", "find", {"city": "Oslo"}),))
    [tree] = _trees(tiny_backbone, [plan_text(one)], [execution_text([FIND, BOOK])])
    [run] = runs_of(tree)
    assert (run["reward"], run["success"], run["solved_calls"]) == (1.0, 1, 2)
    assert (run["attempted"], run["invalid"], run["redundant"]) == (2, 0, 0)


@pytest.mark.parametrize("plan", ["nonsense", "<plan>[", ""])
def test_what_cannot_be_read_earns_nothing(tiny_backbone: Path, plan: str) -> None:
    [tree] = _trees(tiny_backbone, [plan, plan], [execution_text([FIND])])
    for run in runs_of(tree):
        assert (run["reward"], run["success"], run["plan_valid"], run["planner_reward"]) == (
            0,
            0,
            0,
            0,
        )
        assert run["plans"] == 1


def test_a_flat_text_is_judged_without_a_plan(tiny_backbone: Path) -> None:
    call = execution_text([FIND, ToolCall("book", {"id": "$var1.id$"})])
    [tree] = _trees(tiny_backbone, [], [call, "nonsense"], form="low_only", runs=2)
    good, bad = runs_of(tree)
    assert (good["reward"], good["success"], good["plans"], good["executed"]) == (1.0, 1, 0, 0)
    assert (bad["reward"], bad["success"], bad["attempted"], bad["invalid"]) == (0.0, 0, 1, 1)


NO_CALL = ToolTask("none", "toy", (Message("user", "Sing."),), GOLD.tools, (), Plan(()))


@pytest.mark.parametrize(
    ("plan", "text", "reward", "success"),
    [
        (plan_text(Plan(())), "", 1.0, 1),
        (plan_text(Plan((SubTask("say", None, {}),))), "<response>no</response>", 1.0, 1),
        (plan_text(Plan((SubTask("say", None, {}),))), "nonsense", 0.0, 0),
        (plan_text(Plan((SubTask("f", "find", {}),))), execution_text([FIND]), 0.0, 0),
        ("nonsense", "", 0.0, 0),
        (plan_text(Plan((SubTask("f", "fly", {}),))), "<response>no</response>", 1.0, 0),
    ],
)
def test_where_no_call_is_due_declining_succeeds_and_noise_does_not(
    tiny_backbone: Path, plan: str, text: str, reward: float, success: int
) -> None:
    source = Scripted(Tokens(tiny_backbone), [plan], [text])
    [tree] = Roller(source, small_settings()).rollout([NO_CALL], "s", plans=1, executions=1)
    [run] = runs_of(tree)
    assert (run["reward"], run["success"]) == (reward, success)


TEXTS = st.sampled_from(
    [
        execution_text([FIND]),
        execution_text([BOOK]),
        execution_text([FIND, FIND]),
        execution_text([ToolCall("fly", {})]),
        "<response>no</response>",
        "nonsense",
    ]
)
PLANS = st.sampled_from(
    [
        _gold_plan(),
        plan_text(Plan((SubTask("b", "book", {"id": 1}), SubTask("f", "find", {"city": "Oslo"})))),
        plan_text(Plan((SubTask("x", "fly", {}), SubTask("say", None, {})))),
        plan_text(Plan(())),
        "nonsense",
    ]
)


@settings(max_examples=40)
@given(st.lists(PLANS, min_size=2, max_size=4), TEXTS)
def test_measures_are_those_of_training_and_of_evaluation(
    tiny_backbone: Path, plans: list[str], text: str
) -> None:
    """With one execution per plan, the alignment metrics and the dev records say the same."""
    [tree] = _trees(tiny_backbone, plans, [text])
    runs = runs_of(tree)
    metrics = alignment_metrics([tree])
    for name, other in (
        ("plan_validity", "plan_validity"),
        ("adherence", "plan_adherence"),
        ("sub_task_solve_rate", "sub_task_solve_rate"),
        ("success", "solved_share"),
        ("calls_per_solved_task", "calls_per_solved_task"),
        ("invalid_call_rate", "invalid_call_rate"),
        ("redundant_call_rate", "redundant_call_rate"),
    ):
        mine = ratio(observations({0: runs}, ["t1"], name))
        assert mine == pytest.approx(metrics.get(f"alignment/{other}")), name
    for run, node in zip(runs, tree.plans, strict=True):
        record = dev_record(type(tree)(tree.task, [node]))
        assert (run["success"], run["calls"]) == (record["solved"], len(record["calls"]))
        assert run["planner_reward"] == pytest.approx(record["planner_reward"])
        assert 0 <= run["reward"] <= 1


def test_evaluation_has_one_greedy_run_and_the_sampled_ones_per_task(tiny_backbone: Path) -> None:
    source = Scripted(Tokens(tiny_backbone), [_gold_plan(), "nonsense"], [execution_text([FIND])])
    found = list(evaluate(source, small_settings(), [small_task(1), small_task(2)], 3))
    assert [(o["task"], o["mode"], o["sample"]) for o in found] == [
        ("t1", "greedy", 0), ("t2", "greedy", 0),
        *(("t1", "sampled", i) for i in range(3)), *(("t2", "sampled", i) for i in range(3)),
    ]  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_void_runs_are_no_observations() -> None:
    keys = {m.top for m in MEASURES.values()} | {m.bottom for m in MEASURES.values()}
    run = {**dict.fromkeys(keys, 1), "task": "a", "void": False}
    seen = observations({4: [run, {**run, "void": True}], 2: [run]}, ["a", "b"], "reward")
    assert seen.seeds == (2, 4)
    assert seen.denominator.tolist() == [[1, 0], [1, 0]]


# --- cross-play ----------------------------------------------------------------------------------


class Snapshot:
    """A source that says who it is."""

    def __init__(self, step: int, asked: list[tuple[int, str, int]]) -> None:
        self.policy, self.step, self.asked = None, step, asked

    def generate(self, prompts: Any, role: str, **options: Any) -> list[str]:
        assert len(options["seeds"]) == len(prompts)
        self.asked.append((self.step, role, len(prompts)))
        return [f"{role}{self.step}:{p[0]}" for p in prompts]


def _pair(source: Crossed) -> list[dict[str, Any]]:
    plans = source.generate([[1], [2]], "planner", seeds=["a", "b"])
    assert source.generate([[9]], "executor", seeds=["c"])[0].startswith("executor")
    return [{"plan": plans, "execution": source.generate([[9]], "executor", seeds=["c"])[0]}]


def test_every_planner_meets_every_executor_and_plans_once() -> None:
    asked: list[tuple[int, str, int]] = []
    found = list(play([0, 5, 9], lambda step: Snapshot(step, asked), _pair))
    assert len(found) == 9
    pairs = {(i, j) for i in (0, 5, 9) for j in (0, 5, 9)}
    assert {(o["planner"], o["executor"]) for o in found} == pairs
    for o in found:
        assert o["plan"] == [f"planner{o['planner']}:1", f"planner{o['planner']}:2"]
        assert o["execution"] == f"executor{o['executor']}:9"
    assert [a for a in asked if a[1] == "planner"] == [(s, "planner", 2) for s in (0, 5, 9)]


@given(st.sets(st.integers(0, 300), min_size=1, max_size=30), st.integers(2, 8))
def test_snapshots_are_picked_from_the_first_to_the_last(steps: set[int], count: int) -> None:
    ordered = sorted(steps)
    found = pick(ordered, count)
    assert set(found) <= steps
    assert found == sorted(found)
    assert len(found) <= count
    assert found[0] == ordered[0]
    assert found[-1] == ordered[-1]


def _crossed(table: list[list[float]], steps: list[int]) -> list[dict[str, Any]]:
    return [
        {"planner": steps[i], "executor": steps[j], "task": "t", "void": False, "reward": value}
        for i, row in enumerate(table)
        for j, value in enumerate(row)
    ]


def test_the_matrix_is_planner_by_executor_and_the_mean_of_seeds() -> None:
    by_seed = {
        0: _crossed([[0.0, 0.2], [0.4, 0.6]], [0, 7]),
        1: _crossed([[1.0, 0.0], [0.0, 1.0]], [0, 9]),  # this seed's budget ended later
        2: _crossed([[1.0]], [0]),
    }
    found = matrix(by_seed, "reward")
    assert found is not None
    assert found.seeds == (0, 1)
    assert found.values.tolist() == [[0.5, 0.1], [0.2, 0.8]]
    assert found.steps == {0: [0, 7], 1: [0, 9]}
    assert matrix({0: _crossed([[1.0]], [0])}, "reward") is None
    assert matrix({}, "reward") is None


@given(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.floats(0.1, 1),
)
def test_interaction_ignores_who_is_better_and_sees_who_fits(
    rows: list[float], columns: list[float], bonus: float
) -> None:
    table = np.add.outer(rows, columns)
    assert diagonal_gain(table)["interaction"] == pytest.approx(0, abs=1e-9)
    fitting = diagonal_gain(table + bonus * np.eye(4))
    assert fitting["interaction"] == pytest.approx(bonus * 3 / 4)


# --- the report ----------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Any:
    """An experiment of fake cells: joint is better than freeze_low by 0.25 on every task."""
    from dataclasses import replace

    from experiment_project import write_grid, write_yaml
    from small_project import SMALL

    from cahl_core.experiments.grid import load_grid
    from cahl_core.experiments.runner import Experiment
    from cahl_core.experiments.state import State
    from cahl_core.files import dump_json, write_jsonl

    write_yaml(tmp_path / "params.yaml", {"profile": "tiny"})
    train = {k: v for k, v in SMALL["train"].items() if k != "steps"}
    write_yaml(tmp_path / "configs/tiny.yaml", {**SMALL, "train": train})
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/backbone").mkdir()
    for name in ("train", "dev"):
        line = dump_json(small_task(1).to_json()) + "\n"
        (tmp_path / f"data/prepared/{name}.jsonl").write_text(line)
    write_grid(tmp_path, description="<b>5 | 6</b>", evaluate={"tasks": 6, "samples": 0})
    experiment = Experiment.of(load_grid(tmp_path, "tiny"), tmp_path)
    keys = {m.top for m in MEASURES.values()} | {m.bottom for m in MEASURES.values()}
    for cell in experiment.cells:
        folder = experiment.folder(cell)
        base = {"start": 0.1, "joint": 0.5, "freeze_low": 0.25}[cell.arm]
        runs = [
            {**dict.fromkeys(keys, 1), "split": "dev", "mode": "greedy", "task": f"t{i}", "void": False,
             "reward": base + i / 16 + cell.seed / 64, "success": int(i > 2)}
            for i in range(6)
        ]  # fmt: skip
        write_jsonl(folder.outcomes, runs)
        if cell.trains:
            rows = [{"step": i, "sampled_tokens": 110.0, "planner_reward": i} for i in range(3)]
            write_jsonl(folder.rows, rows)
        if cell.cross_play:
            write_jsonl(folder.crossplay, [
                {"planner": i, "executor": j, "task": t, "void": False, "reward": float(i == j),
                 "success": 0}
                for i in (0, 3) for j in (0, 3) for t in ("t0", "t1")
            ])  # fmt: skip
        state = State(cell.id, "finished", products=folder.products())
        folder.write(replace(state, about={"versions": {"torch": "2"}, "code": {}}))
    return experiment


def test_the_table_has_every_arm_and_its_difference_to_joint(finished: Any) -> None:
    from cahl_core.experiments.results import collect

    rows = {r["row"]: r for r in collect(finished)["tables"]["dev"]["greedy"]}
    assert list(rows) == ["start", "joint", "freeze_low"]
    assert rows["joint"]["less_reference"] == {}
    less = rows["freeze_low"]["less_reference"]["reward"]
    assert less["value"] == pytest.approx(-0.25)  # on every task and seed: nothing to resample
    assert rows["joint"]["measures"]["reward"]["value"] == pytest.approx(0.5 + 2.5 / 16 + 0.5 / 64)
    assert rows["joint"]["measures"]["success"]["over"] == ("seeds", "tasks")
    assert rows["freeze_low"]["sampled_tokens"] == [330.0, 330.0]


def test_the_report_can_be_read_without_other_files(finished: Any) -> None:
    from cahl_core.config import Settings
    from cahl_core.experiments.report import headline, write_report

    page = write_report(finished, Settings()).read_text()
    folder = finished.root / "reports/experiments/tiny"
    assert "<b>5" not in page  # nothing of a grid is taken for HTML
    assert "&lt;b&gt;5" in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert page.count("data:image/png;base64,") == len(list((folder / "plots").iterdir())) == 3
    text = (folder / "report.md").read_text()
    for line in text.splitlines():
        if line.startswith("| joint |"):
            assert "0.664 [" in line or "reward" in line or "success" in line
    for name in re.findall(r"\]\((plots/[^)]+)\)", text):
        assert (folder / name).exists()
    assert json.loads((folder / "results.json").read_text())["experiment"] == "tiny"
    assert len((folder / "outcomes.jsonl").read_text().splitlines()) == 6 * 6
    assert headline(folder)["reward/joint"] == pytest.approx(0.664, abs=1e-3)


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(finished: Any) -> None:
    from cahl_core.config import Settings
    from cahl_core.experiments.report import write_report

    write_report(finished, Settings())
    text = (finished.root / "reports/experiments/tiny/report.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_label_cannot_open_a_cell_or_a_line_of_the_markdown_table() -> None:
    from cahl_core.experiments.report import markdown

    cell = {"id": "a|b\nc", "status": "failed", "trains": False, "mlflow_run_id": ""}
    results = {
        "experiment": "x", "description": "", "notes": ["one\ntwo"], "tables": {}, "cross_play": {},
        "cells": [cell],
    }  # fmt: skip
    text = markdown(results, [])
    assert "| a\\|b c | failed |" in text
    assert "- one two\n" in text


def test_a_report_of_nothing_finished_says_so(finished: Any) -> None:
    import shutil

    from cahl_core.config import Settings
    from cahl_core.experiments.report import headline, write_report

    shutil.rmtree(finished.root / ".cahl")
    page = write_report(finished, Settings()).read_text()
    assert page.count("MISSING: cell") == 6
    assert headline(finished.root / "reports/experiments/tiny") == {}


def test_notes_say_what_is_missing_and_what_was_not_equal(finished: Any) -> None:
    from dataclasses import replace

    from cahl_core.experiments.results import collect
    from cahl_core.files import write_jsonl

    assert not any("MISSING" in n or "NOT EQUAL" in n for n in collect(finished)["notes"])
    failed, short = finished.cells[2], finished.cells[1]
    folder = finished.folder(failed)
    state = folder.read()
    folder.write(replace(state, status="failed", error="no memory"))
    folder = finished.folder(short)
    write_jsonl(folder.rows, [{"step": 0, "sampled_tokens": 90.0}])
    folder.write(
        replace(folder.read(), products=folder.products(), about={"versions": {"torch": "3"}})
    )
    results = collect(finished)
    notes = "\n".join(results["notes"])
    assert "MISSING: cell freeze_low-s0 is failed: no memory." in notes
    assert "NOT EQUAL: budget.max_steps=4 ended joint-s0 below the budget." in notes
    assert "used were 90 to 330 (-70.0% to +10.0%)" in notes
    assert "MIXED VERSIONS" in notes
    rows = {r["row"]: r for r in results["tables"]["dev"]["greedy"]}
    assert rows["freeze_low"]["seeds"] == [1]
    assert "one seed" in rows["freeze_low"]["measures"]["success"]["note"]


def test_cross_play_is_shown_with_its_gap(finished: Any) -> None:
    from cahl_core.experiments.results import collect

    found = collect(finished)["cross_play"]["joint"]["reward"]
    assert found["planner_by_executor"] == [[1.0, 0.0], [0.0, 1.0]]
    assert (found["gap"], found["interaction"]) == (1.0, 0.5)
    assert found["gap_interval"]["value"] == 1.0
