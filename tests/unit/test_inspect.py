"""``cahl inspect`` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rollout_trees import FIND_ROME, GOLD_PLAN, call, flat_tree, good_tree, plan, plan_node, task
from typer.testing import CliRunner, Result

from cahl_core.cli import app
from cahl_core.config import validate
from cahl_core.records import Message
from cahl_core.traces.inspect import lines, record_node
from cahl_core.traces.record import TraceWriter, trace_record
from cahl_core.traces.select import Query, select
from cahl_core.training.credit import set_advantages
from cahl_core.training.distributed import Workers
from cahl_core.training.tree import Tree

ROOT = Path(__file__).parents[2]
SETTINGS = validate({})


def _trees() -> list[Tree]:
    """t1: a good and an unparsed plan; t2: flat; t3: two equal plans, so no signal."""
    asked = task(3, messages=(Message("user", "evil \x1b[31mred\u202e and\nlines"),), source="own")
    same = [plan_node(asked, GOLD_PLAN, [[FIND_ROME], ["broken"]]) for _ in range(2)]
    trees = [good_tree(1), flat_tree(2), Tree(asked, same)]
    set_advantages(trees, SETTINGS, Workers())
    return trees


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with three traced steps of three trees."""
    writer = TraceWriter(tmp_path / ".cahl/traces/train")
    for step in range(3):
        writer.write(step, _trees(), SETTINGS)
    return tmp_path


def inspect(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", "--root", str(project), *arguments])


def found(project: Path, *arguments: str) -> list[tuple[int, str]]:
    """(step, task) of the records that are selected, in order."""
    done = inspect(project, "--json", *arguments)
    assert done.exit_code == 0, done.output
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [(r["step"], r["task"]["id"]) for r in records]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['cahl', 'inspect', '--help']\n"
        "from cahl_core.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'yaml', 'torch', 'numpy', 'mlflow', 'rich.table'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_tree_is_readable_without_colours() -> None:
    record = trace_record(_trees()[0], 7, SETTINGS)
    text = "\n".join(lines(record_node(record, Query())))
    assert text.startswith("step 7  t1  toy, joint\n  user: Book a hotel in Rome, number 1.")
    assert 'gold 2: book(id="$var1.id$") = book(id=7)' in text
    assert "plan 1  reward 2.375  advantage +1.000  form 1.00  parameters 1.00" in text
    assert '    sub-task 1  find(city="Rome")  do it  [gold 1]' in text
    assert "      execution 2  reward 2.000  advantage -1.000" in text
    assert "plan 2  reward 0.000  advantage -1.000" in text
    assert "✗ outside the grammar: no <plan> (character 0)" in text
    assert '        ✓ find  ✗ city = "Oslo", due "Rome"' in text
    assert "    run 1: step 1 by sub-task 1 1.00, step 2 by sub-task 2 1.00  ✓ solved" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (call("find", town="Rome"), "✗ find: outside its schema  ✗ town = \"Rome\", not due"
         "  ✗ city missing, due \"Rome\"  (unknown argument 'town'"),
        (call("rate"), "✗ rate: not due"),
        ("<response>No.</response>", '✗ find: missing  ✗ city missing, due "Rome"'),
    ],
)  # fmt: skip
def test_every_verdict_has_a_sign_and_words(text: str, expected: str) -> None:
    asked = task()
    tree = Tree(asked, [plan_node(asked, GOLD_PLAN, [[text], ["no"]])])
    shown = "\n".join(lines(record_node(trace_record(tree, 0, SETTINGS), Query())))
    assert expected in shown
    assert "run 1: step 1 " in shown and "step 2 not met  ✗ not solved" in shown


def test_what_was_not_judged_has_no_reward_and_is_in_no_bounds() -> None:
    asked = task()
    tree = Tree(asked, [plan_node(asked, plan(("rate", {})), [[call("rate")]])])
    record = trace_record(tree, 0, SETTINGS)
    shown = "\n".join(lines(record_node(record, Query())))
    assert "[no gold step: trains no executor]\n      execution 1  not judged" in shown
    assert select([record], Query("executor", max_reward=9), "step", None).matching == 0
    assert "execution 1" not in "\n".join(
        lines(record_node(record, Query("executor", max_reward=9)))
    )


def test_void_texts_are_in_no_total_and_no_group() -> None:
    tree = _trees()[0]
    tree.plans[0].nodes[0].samples[1].void = True
    [found] = select([trace_record(tree, 0, SETTINGS)], Query(), "step", None).steps.values()
    assert (found.executor.texts, found.executor.groups, found.executor.flat) == (3, 2, 2)


def test_a_plan_without_sub_tasks_misses_the_gold_calls() -> None:
    asked = task()
    tree = Tree(asked, [plan_node(asked, "<plan>[]</plan>", [])])
    shown = "\n".join(lines(record_node(trace_record(tree, 0, SETTINGS), Query())))
    assert '✗ gold 2 book: missing  ✗ id missing, due "$var1.id$"' in shown


def test_texts_of_data_cannot_rule_the_terminal(project: Path) -> None:
    out = inspect(project, "--task", "t3").stdout
    assert "user: evil [31mred and lines" in out
    hostile = trace_record(Tree(task(id="\x1b[2J", source="\u202e"), []), 0, SETTINGS)
    assert next(lines(record_node(hostile, Query()))) == "step 0  [2J  , joint"
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_the_summary_counts_every_tree_read_by_step(project: Path) -> None:
    out = inspect(project, "--limit", "1", "--only-signal").stdout
    header, *rows = out.splitlines()[1:5]
    assert header.split()[:3] == ["step", "trees", "plans"]
    # plans 2.375, 0, 1.75, 1.75; executions 2.5, 2, 2.5, 2.5 (t1), 2.5, 1.75 (t2), 2 × (2.5, 0) (t3)
    assert rows[2].split() == ["2", "3", "4", "1.469", "1", "1/2", "10", "1.875", "2", "5/7"]
    assert "6 of 9 trees match; 5 not shown, see --limit" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--step", "1"], [(1, "t1"), (1, "t2"), (1, "t3")]),
        (["--step", "1-2", "--task", "t2"], [(1, "t2"), (2, "t2")]),
        (["--source", "own"], [(0, "t3"), (1, "t3"), (2, "t3")]),
        (["--step", "0", "--min-reward", "2.4"], [(0, "t2")]),
        (["--step", "0", "--role", "executor", "--min-reward", "2.4"],
         [(0, "t1"), (0, "t2"), (0, "t3")]),
        (["--step", "0", "--min-reward", "2.5"], [(0, "t2")]),
        (["--step", "0", "--max-reward", "0"], [(0, "t1")]),
        (["--step", "0", "--max-reward", "0", "--role", "executor"], [(0, "t3")]),
        (["--step", "0", "--only-signal"], [(0, "t1"), (0, "t2")]),
        (["--step", "0", "--sort", "reward"], [(0, "t2"), (0, "t1"), (0, "t3")]),
        (["--sort", "reward", "--limit", "2"], [(0, "t2"), (1, "t2")]),
        (["--step", "0", "--sort", "advantage", "--role", "planner"], [(0, "t1"), (0, "t2"), (0, "t3")]),
    ],
)  # fmt: skip
def test_filters_sorting_and_limits(
    project: Path, arguments: list[str], expected: list[tuple[int, str]]
) -> None:
    assert found(project, *arguments) == expected


def test_a_role_shows_its_texts_only(project: Path) -> None:
    planner = inspect(project, "--task", "t1", "--step", "0", "--role", "planner").stdout
    assert "execution 1" not in planner and "<plan>" in planner
    executor = inspect(project, "--task", "t1", "--step", "0", "--role", "executor").stdout
    assert "execution 1" in executor and "<plan>[" not in executor


def test_texts_outside_the_bounds_are_counted_not_shown(project: Path) -> None:
    out = inspect(project, "--task", "t1", "--step", "0", "--min-reward", "1").stdout
    assert "plan 1" in out and "plan 2" not in out
    assert "1 other plans not shown" in out


def test_long_texts_are_cut_unless_asked_for(tmp_path: Path) -> None:
    asked = task(messages=(Message("user", "word " * 99 + "end"),))
    tree = Tree(asked, [plan_node(asked, GOLD_PLAN, [[call("find", city="x" * 300)], ["no"]])])
    TraceWriter(tmp_path).write(0, [tree], SETTINGS)
    cut = inspect(tmp_path, str(tmp_path)).stdout
    assert "…" in cut and "word end" not in cut
    full = inspect(tmp_path, str(tmp_path), "--full").stdout
    assert "word end" in full and "x" * 300 in full


def test_a_path_may_be_a_file_a_folder_or_a_project(project: Path) -> None:
    folder = project / ".cahl/traces/train"
    for path, trees in ((project, 9), (folder, 9), (folder / "step-000001.jsonl", 3)):
        assert len(found(Path("/"), str(path))) == trees


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--step", "x"], 2, "--step 'x' is not a step"),
        (["--step", "9-3"], 2, "--step 3-9"),
        (["--step", "9"], 2, "no traced tree for --step 9"),
        (["--task", "none", "--source", "own"], 2, "no traced tree for --task none, --source own"),
        (["--json", "--html", "x.html"], 2, "--json and --html exclude each other"),
        (["nowhere"], 5, "nowhere does not exist"),
    ],
)
def test_bad_input_gets_a_sentence(
    project: Path, arguments: list[str], code: int, words: str
) -> None:
    done = inspect(project, *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_files_get_a_sentence(project: Path) -> None:
    file = project / ".cahl/traces/train/step-000001.jsonl"
    file.write_text('{"version": 1, "step": 1}\n')
    done = inspect(project)
    assert done.exit_code == 4
    assert "step-000001.jsonl:1: not a trace record: arm: Field required" in done.stderr


def test_a_trace_of_nothing_is_shown() -> None:
    empty = Tree(task(), [])
    record = trace_record(empty, 0, SETTINGS)
    assert select([record], Query(), "reward", None).matching == 1
    assert "step 0  t1" in "\n".join(lines(record_node(record, Query())))


def test_a_terminal_without_these_signs_gets_the_words(tmp_path: Path) -> None:
    asked = task(messages=(Message("user", "half a pair: \ud800"),))
    tree = Tree(asked, [plan_node(asked, GOLD_PLAN, [[FIND_ROME], ["no"]])])
    TraceWriter(tmp_path).write(0, [tree], SETTINGS)
    command = [sys.executable, "-m", "cahl_core.cli", "inspect", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown, machine = (
        subprocess.run(
            [*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for more in ([], ["--json"])
    )
    assert '? find  ? city = "Rome"' in shown and "half a pair: ?" in shown
    assert json.loads(machine)["task"]["messages"][0]["content"] == "half a pair: \ud800"


def test_a_pipe_that_closes_is_no_error(project: Path) -> None:
    command = [sys.executable, "-m", "cahl_core.cli", "inspect", "--root", str(project)]
    with subprocess.Popen(
        [*command, "--limit", "99"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as shown:
        assert shown.stdout is not None and shown.stderr is not None
        first = shown.stdout.readline()
        shown.stdout.close()
        complaints = shown.stderr.read().decode()
    assert first == b"Traced trees by step\n"
    assert "Traceback" not in complaints
