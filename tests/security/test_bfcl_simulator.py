"""The worker that runs models' calls: nothing they write is code, nothing stays, failures are errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.errors import EvaluationError, StageInputError
from cahl_core.evaluation.bfcl_simulator import BfclSimulator
from cahl_core.evaluation.bfcl_stubs import BM25Plus
from cahl_core.records import ToolCall

FILES = "multi_turn_base_0"  # has the file system and the message board
MATHS = "multi_turn_base_32"  # has the MathAPI


@pytest.fixture(scope="module")
def simulator(bfcl_v4_wheel: Path) -> Iterator[BfclSimulator]:
    found = BfclSimulator(bfcl_v4_wheel, timeout=120)
    yield found
    found.end()


@pytest.fixture(scope="module")
def gold(simulator: BfclSimulator) -> dict[str, list[list[dict[str, Any]]]]:
    items = simulator.load(["multi_turn_base"])["items"]
    return {i["id"]: i["gold_calls"] for i in items}


def attacks(trap: Path) -> list[ToolCall]:
    """Calls that would leave a file if a name, an argument's name or a value were evaluated."""
    code = f"__import__('pathlib').Path({str(trap)!r}).write_text('run')"
    quoted = f"x'), {code}, print('"
    return [
        ToolCall(code, {}),
        ToolCall(f"ls() or {code} or ls", {}),
        ToolCall("open", {"file": str(trap), "mode": "w"}),
        ToolCall("eval", {"source": code}),
        ToolCall("exec", {"source": code}),
        ToolCall("__import__", {"name": "antigravity"}),
        ToolCall("ls.__globals__", {}),
        ToolCall("_load_scenario", {"scenario": {}}),
        ToolCall("__init__", {}),
        ToolCall("ls", {f"a=({code}), b": True}),
        ToolCall("ls", {"lambda": 1}),
        ToolCall("ls", {"self": 1}),
        ToolCall("ls", {"a": code}),
        ToolCall("echo", {"content": code}),
        ToolCall("echo", {"content": quoted}),
        ToolCall("echo", {"content": quoted.replace("'", '"')}),
        ToolCall("echo", {"content": f"\\'); {code} #", "file_name": f"f\n{code}\n"}),
        ToolCall("echo", {"content": {code: [code]}, "file_name": [code]}),
    ]


def test_text_in_a_call_is_never_run(
    simulator: BfclSimulator, gold: dict[str, Any], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    calls = attacks(trap)
    with simulator.opened({"s": FILES}):
        shown = [simulator.call("s", call).text for call in calls]
    assert all(text.startswith("Error during execution: ") for text in shown[:12])
    assert shown[0] == f"Error during execution: name '{calls[0].name}' is not defined"
    turns = [[[call] for call in calls] for _ in gold[FILES]]
    (verdict,) = simulator.score([(FILES, turns)])
    assert not verdict.valid
    assert not trap.exists()


@given(text=st.text(max_size=60), key=st.text(max_size=20))
def test_any_text_is_data(
    simulator: BfclSimulator, gold: dict[str, Any], text: str, key: str
) -> None:
    calls = [ToolCall("echo", {"content": text}), ToolCall(text, {}), ToolCall("ls", {key: text})]
    with simulator.opened({"s": FILES}):
        echoed = simulator.call("s", calls[0])
        assert echoed.value == {"terminal_output": text}
        refused = simulator.call("s", calls[1]).text.startswith("Error during execution: ")
        assert refused or text.isidentifier()
    turns = [[calls] for _ in gold[FILES]]
    assert not simulator.score([(FILES, turns)])[0].valid


def test_nothing_of_a_sample_is_left(simulator: BfclSimulator, gold: dict[str, Any]) -> None:
    for round_ in range(3):
        samples = {f"{round_}/{item}": item for item in list(gold)[:10]}
        with simulator.opened(samples):
            for key, item in samples.items():
                simulator.call(key, ToolCall(**gold[item][0][0]))
        answers = [(i, [[[ToolCall(**c) for c in t]] for t in gold[i]]) for i in list(gold)[:10]]
        assert all(v.valid for v in simulator.score(answers))
        assert simulator.status() == {"open": 0, "instances": 0}


def test_samples_of_one_item_do_not_see_each_other(simulator: BfclSimulator) -> None:
    with simulator.opened({"a": FILES, "b": FILES}):
        before = simulator.call("b", ToolCall("ls", {}))
        made = simulator.call("a", ToolCall("mkdir", {"dir_name": "new"}))
        assert made.changed
        assert simulator.call("b", ToolCall("ls", {})) == before
        assert not before.changed
        assert simulator.call("a", ToolCall("ls", {})).text != before.text


def test_going_elsewhere_changes_the_state_and_looking_does_not(simulator: BfclSimulator) -> None:
    with simulator.opened({"a": FILES}):
        changed = [
            simulator.call("a", ToolCall(name, arguments)).changed
            for name, arguments in (("ls", {}), ("cd", {"folder": "document"}), ("ls", {}))
        ]
    assert changed == [False, True, False]


def test_a_call_that_never_ends_fails_alone_and_costs_no_sample_its_state(
    bfcl_v4_wheel: Path,
) -> None:
    simulator = BfclSimulator(bfcl_v4_wheel, timeout=120, call_timeout=2)
    endless = ToolCall("power", {"base": 9, "exponent": 10**9})
    with simulator.opened({"maths": MATHS, "files": FILES}):
        simulator.call("files", ToolCall("mkdir", {"dir_name": "new"}))
        result = simulator.call("maths", endless)
        assert result.timed_out and not result.changed
        assert result.text == "Error during execution: no result within 2 seconds"
        listed = simulator.call("files", ToolCall("ls", {}))
        assert "new" in listed.value["current_directory_content"] and not listed.changed
        two = simulator.call("maths", ToolCall("add", {"a": 1, "b": 1}))
        assert two.value == {"result": 2}
    assert simulator.status() == {"open": 0, "instances": 0}
    simulator.end()


def test_a_call_that_eats_memory_is_the_models_error(simulator: BfclSimulator) -> None:
    with simulator.opened({"s": MATHS}):
        result = simulator.call("s", ToolCall("square_root", {"number": 2, "precision": 10**18}))
        assert result.text.startswith(("Error during execution", '{"error"'))
        assert simulator.call("s", ToolCall("add", {"a": 1, "b": 1})).value == {"result": 2}


def test_a_dead_worker_is_an_error_and_the_next_block_has_another(bfcl_v4_wheel: Path) -> None:
    simulator = BfclSimulator(bfcl_v4_wheel, timeout=60)
    with (
        pytest.raises(EvaluationError, match="no_such_item"),
        simulator.opened({"a": "no_such_item_0"}),
    ):
        pass
    with simulator.opened({"a": FILES}):
        assert simulator.call("a", ToolCall("pwd", {})).text
    simulator.end()


def test_more_turns_than_the_item_has_are_an_error_not_a_score(simulator: BfclSimulator) -> None:
    with pytest.raises(EvaluationError, match="turns"):
        simulator.score([(FILES, [[]] * 9)])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise KeyError('gone')", r"code 1(?s:.*)KeyError: 'gone'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "code -9"),
        ("print('done', flush=True); input()", "not one JSON line"),
    ],
)
def test_a_worker_that_fails_is_an_error(tmp_path: Path, script: str, message: str) -> None:
    (tmp_path / "bfcl_eval").mkdir()
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    simulator = BfclSimulator(tmp_path, 20, call_timeout=20, worker=worker)
    with pytest.raises(EvaluationError, match=message):
        simulator.open("a", FILES)
    with pytest.raises(EvaluationError, match=message):
        simulator.judge([("memory_kv_0-customer-0", "x")])


def test_without_the_package_the_command_that_fetches_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageInputError, match="cahl fetch"):
        BfclSimulator(tmp_path, 1)


def test_the_package_stays_as_it_was(simulator: BfclSimulator, bfcl_v4_wheel: Path) -> None:
    before = sorted(bfcl_v4_wheel.rglob("*"))
    with simulator.opened({"a": MATHS}):
        simulator.call("a", ToolCall("mean", {"numbers": [1, 2]}))
    assert sorted(bfcl_v4_wheel.rglob("*")) == before


def test_bm25_is_that_of_the_package_the_memory_was_written_for() -> None:
    """Numbers of rank-bm25 0.2.2."""
    keys = ["first name", "last name", "home city", "name of pet"]
    found = BM25Plus([k.split() for k in keys]).get_scores(["pet", "name"])
    assert found == [2.6579747191116603, 2.6579747191116603, 2.120263536200091, 3.9639709589827783]
    with pytest.raises(ZeroDivisionError):
        BM25Plus([])
