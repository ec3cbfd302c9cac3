"""API-Bank: ToolRL's rule on all 597 items, what is wrong with the labels, and the three forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_agent import scripted_agent

from cahl_core.errors import DataError, StageInputError
from cahl_core.evaluation.api_bank import LEVELS, RULES, ApiBank
from cahl_core.evaluation.api_bank_labels import dialogue, gold_of
from cahl_core.evaluation.api_bank_rule import norm, soft, strict, text_of, values_of
from cahl_core.evaluation.core import Attempt, ItemScore, Record
from cahl_core.files import write_jsonl
from cahl_core.protocol.prompts import execution_text, plan_text, single_text
from cahl_core.records import Plan, SubTask, ToolCall, ToolTask
from cahl_core.serving.agent import Agent
from cahl_core.train_config import FORMS, Form

DATA = Path(__file__).resolve().parents[3] / "shared/data/api_bank"
needs_mirror = pytest.mark.skipif(
    not DATA.is_dir(), reason="../shared/data is not here: the mirror of real records"
)
GOLD = ToolCall("f", {"city": "Rome", "n": "3"})


@lru_cache
def bench() -> ApiBank:
    return ApiBank(DATA)


def body(call: ToolCall, **changed: Any) -> str:
    return json.dumps({"name": call.name, "parameters": call.arguments, **changed})


def tagged(*lines: str) -> str:
    return "\n".join(["<think>so</think>", "<tool_call>", *lines, "</tool_call>"])


def numeric(call: ToolCall) -> dict[str, Any]:
    return {k: int(v) if v.isdecimal() else v for k, v in call.arguments.items()}


def first_changed(call: ToolCall, change: Callable[[str], str]) -> dict[str, Any]:
    changed = dict(call.arguments)
    for name, value in list(changed.items())[:1]:
        changed[name] = change(value)
    return changed


TEXTS: dict[str, tuple[Callable[[ToolCall], str], int, int]] = {
    # benchmarks.md B.2: how the gold call is written, items that are right under soft, under strict
    "gold": (lambda g: tagged(body(g)), 597, 597),
    "no tag": (lambda g: body(g), 597, 597),
    "unterminated tag": (lambda g: "<tool_call>\n" + body(g), 597, 597),
    "gold and junk call": (lambda g: tagged(body(g), '{"name": "x", "parameters": {}}'), 597, 0),
    "junk call and gold": (lambda g: tagged('{"name": "x", "parameters": {}}', body(g)), 597, 0),
    "gold and junk words": (lambda g: tagged("I call it now:", body(g)), 597, 597),
    "an earlier block": (lambda g: tagged('{"name": "x"}') + tagged(body(g)), 597, 597),
    "wrong name": (lambda g: tagged(body(g, name=g.name + "s")), 0, 0),
    "missing parameter": (
        lambda g: tagged(body(g, parameters=dict(list(g.arguments.items())[1:]))), 0, 0,
    ),
    "trailing space": (
        lambda g: tagged(body(g, parameters=first_changed(g, lambda v: v + " "))), 0, 0,
    ),
    "JSON list": (lambda g: tagged(f"[{body(g)}]"), 0, 0),
    "arguments key": (lambda g: tagged(json.dumps({"name": g.name, "arguments": g.arguments})), 0, 0),
    "pretty-printed": (lambda g: tagged(json.dumps(json.loads(body(g)), indent=2)), 0, 0),
    "parameters alone": (lambda g: tagged(json.dumps(g.arguments)), 597, 0),
    "a number before": (lambda g: tagged("5", body(g)), 0, 0),
    "null before": (lambda g: tagged("null", body(g)), 0, 0),
    "a text before": (lambda g: tagged('"name"', body(g)), 597, 0),
    "nothing": (lambda g: "", 0, 0),
}  # fmt: skip
NEED_ARGUMENTS = ("missing parameter", "trailing space")


@needs_mirror
@pytest.mark.parametrize("kind", TEXTS)
def test_the_rule_on_all_items_gives_the_counts_that_were_measured(kind: str) -> None:
    write, right_soft, right_strict = TEXTS[kind]
    golds = [gold_of(t) for t in bench().tasks]
    assert len(golds) == 597
    if kind in NEED_ARGUMENTS:
        golds = [g for g in golds if g.arguments]
        assert len(golds) == 597 - 7  # GetToday() has none that could be wrong
    assert sum(soft(write(g), g) for g in golds) == right_soft
    assert sum(strict(write(g), g) for g in golds) == right_strict


@needs_mirror
def test_changed_case_and_numbers_are_wrong_but_under_norm() -> None:
    golds = [gold_of(t) for t in bench().tasks]
    for change in (str.upper, str.swapcase):
        texts = [tagged(body(g, parameters=first_changed(g, change))) for g in golds]
        changed = [first_changed(g, change) != g.arguments for g in golds]
        for text, g, differs in zip(texts, golds, changed, strict=True):
            assert soft(text, g) == strict(text, g) == (not differs) and norm(text, g)
    as_numbers = [
        (tagged(body(g, parameters=numeric(g))), g) for g in golds if numeric(g) != g.arguments
    ]
    assert len(as_numbers) > 100
    assert not any(soft(t, g) or strict(t, g) for t, g in as_numbers)
    exact = [
        (t, g)
        for t, g in as_numbers
        if all(str(v) == g.arguments[k] for k, v in numeric(g).items())
    ]
    assert all(norm(t, g) for t, g in exact) and len(exact) > 80


@needs_mirror
def test_the_flaws_are_those_that_were_measured() -> None:
    about = bench().about()
    flaws = about["flaws"]
    assert about["counts"] == {"level-1": 399, "level-2": 67, "level-3": 131}
    assert flaws["corrupt_label"] == [5, 0, 0]
    assert flaws["year_nowhere_in_prompt"] == [33, 12, 1]
    assert flaws["gold_tool_not_offered"] == [0, 6, 0]
    assert flaws["undocumented_gold_argument"] == [8, 0, 0]
    assert flaws["values_typed_otherwise_in_doc"] == [48, 15, 80]
    assert flaws["get_user_token"] == [82, 22, 0]
    assert flaws["copies_of_another_item"] == [10, 0, 0]  # 389 of 399 are unique
    assert flaws["values_verbatim_in_dialogue"] == [235, 34, 99]
    assert "592/597 = 99.16%" in about["notes"][0]


@needs_mirror
def test_two_of_the_published_verbatim_items_match_only_the_markup_around_the_dialogue() -> None:
    """ToolRL's prompt has tags; "es" (a language) stands in <response>: 237 and 247 with them."""
    level1 = [t for t in bench().tasks if t.meta["level"] == 1]

    def verbatim(task: ToolTask, fold: Callable[[str], str]) -> bool:
        said = fold("<response> </response>" + dialogue(task))
        return all(fold(v) in said for v in gold_of(task).arguments.values())

    assert sum(verbatim(t, str) for t in level1) == 237
    assert sum(verbatim(t, str.lower) for t in level1) == 247


def answered(agent: Agent, benchmark: ApiBank, attempts: list[Attempt]) -> list[ItemScore]:
    records: dict[str, Record] = {}
    benchmark.solve(
        agent, attempts, lambda a, r: records.setdefault(a.seed, json.loads(json.dumps(r)))
    )
    return benchmark.score(attempts, [records[a.seed] for a in attempts])


def oracle(form: Form, silent: bool = False) -> Agent:
    golds = {t.id: gold_of(t) for t in bench().tasks}

    def write(role: str, prompt: str, seed: str) -> str:
        call = golds[seed]
        plan = Plan((SubTask(call.name, call.name, call.arguments),))
        if role == "planner":
            return plan_text(plan)
        if form == "single_level":
            return single_text(plan, () if silent else (call,))
        return execution_text(() if silent else (call,))

    return scripted_agent(write, form)


@needs_mirror
@pytest.mark.parametrize("form", FORMS)
def test_an_oracle_is_right_everywhere_and_a_silent_executor_nowhere(form: Form) -> None:
    attempts = [Attempt(i) for i in bench().items()]
    scores = answered(oracle(form), bench(), attempts)
    summary = bench().summary(scores)
    for name in RULES:
        assert summary[name] == {"level-1": 1, "level-2": 1, "level-3": 1, "overall": 1}
    assert summary["ceiling"]["overall"] == 592 / 597
    assert summary["ceiling"]["level-1"] == 394 / 399
    assert all(s.redundant == 0 and s.attempted == 1 for s in scores)
    assert sum(s.invalid for s in scores) == sum(
        bench().about()["flaws"]["gold_call_breaks_its_schema"]
    )
    silent = answered(oracle(form, silent=True), bench(), attempts)
    assert bench().summary(silent)["soft"]["overall"] == 0
    assert {s.error_type for s in silent} == {"no_call"}


@needs_mirror
def test_a_part_of_a_level_gets_no_number_of_its_own_and_no_overall() -> None:
    items = bench().items()
    scores = answered(oracle("hierarchical"), bench(), [Attempt(i) for i in items[1:]])
    assert set(bench().summary(scores)["soft"]) == {"level-2", "level-3"}
    assert set(bench().summary(scores)["ceiling"]) == {"level-2", "level-3"}


@needs_mirror
def test_errors_say_what_differs() -> None:
    item = next(i for i in bench().items() if i.id == "api_bank-l1-0")
    gold = gold_of(item.data)
    calls = {
        "wrong_tool": ToolCall("QueryHealthData", {}),
        "wrong_arguments": ToolCall(gold.name, {}),
        "wrong_value": ToolCall(
            gold.name, {**gold.arguments, "new_appointment_date": "2022-03-26"}
        ),
        "form_of_a_value": ToolCall(gold.name, {**gold.arguments, "appointment_id": 34567890}),
    }
    for kind, call in calls.items():
        agent = scripted_agent(lambda *_, call=call: execution_text((call,)), "low_only")
        (score,) = answered(agent, bench(), [Attempt(item)])
        assert (score.error_type, score.correct) == (kind, 0.0)
    assert "34567890" in score.error and score.scores["norm"] == 1.0
    assert bench().summary([score])["right_under_norm_only"] == 1


@needs_mirror
def test_samples_of_an_item_are_judged_one_by_one() -> None:
    item = bench().items()[0]
    gold = gold_of(item.data)

    def write(role: str, prompt: str, seed: str) -> str:
        return execution_text((gold,) if seed == f"{item.id}/1" else ())

    scores = answered(scripted_agent(write, "low_only"), bench(), [Attempt(item), Attempt(item, 1)])
    assert [(s.sample, s.correct) for s in scores] == [(0, 0.0), (1, 1.0)]


@needs_mirror
def test_an_example_shows_the_judged_text_and_the_gold_one() -> None:
    attempt = Attempt(bench().items()[0])
    records: list[Record] = []
    bench().solve(oracle("hierarchical"), [attempt], lambda a, r: records.append(r))
    assert bench().example(attempt, records[0]).count('{"name": "ModifyRegistration", "param') == 2


# --- the rule by itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (tagged(body(GOLD), "5"), True),  # found before the line that stops the original
        (tagged("true", body(GOLD)), False),
        (tagged('["name", "parameters"]', body(GOLD)), False),  # indexed by a text: a TypeError
        (tagged('"name and parameters"', body(GOLD)), False),
        (tagged('"words"', body(GOLD)), True),
        (tagged("{}", body(GOLD)), True),
        (body(GOLD) + "\n<tool_call>\n{}", False),
        (tagged(body(GOLD, id=7)), True),
        (tagged("[" * 100_000, body(GOLD)), True),
        (tagged("9" * 5000, body(GOLD)), True),
    ],
)
def test_odd_lines_do_what_they_do_to_the_original(text: str, expected: bool) -> None:
    assert soft(text, GOLD) is expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
calls = st.builds(
    ToolCall, st.text(max_size=6), st.dictionaries(st.text(max_size=3), json_values, max_size=3)
)


@given(st.lists(calls, max_size=3), calls)
def test_the_rules_are_ordered_and_a_written_call_is_read_back(
    made: list[ToolCall], gold: ToolCall
) -> None:
    text = text_of(made)
    read = values_of(text)
    # a tag inside an argument cuts the text, as it does in ToolRL
    if "tool_call>" not in text.removeprefix("<tool_call>").removesuffix("</tool_call>"):
        assert read == [{"name": c.name, "parameters": c.arguments} for c in made]
        assert soft(text, gold) == any(c == gold for c in made) or not made
    assert not strict(text, gold) or (soft(text, gold) and norm(text, gold))


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    for judge in RULES.values():
        assert judge(text, GOLD) in (True, False)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageInputError, match=r"level-1\.jsonl does not exist"):
        ApiBank(tmp_path).items()
    task = ToolTask("x", "api_bank", (), (), ((GOLD,), (GOLD,)), meta={"level": 1})
    for level in LEVELS:
        write_jsonl(tmp_path / f"level-{level}.jsonl", [task.to_json()])
    with pytest.raises(DataError, match="'x' has 2 gold calls"):
        ApiBank(tmp_path).items()
