"""Our harness against the official package: gold answers pass, wrong ones fail, nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bfcl_gold import gold_calls
from jsonschema import Draft202012Validator

from cahl_core.evaluation.bfcl import AST, SINGLE_TURN, UNANSWERABLE, load_items
from cahl_core.evaluation.checker import Answer, BfclChecker
from cahl_core.records import ToolCall

COUNTS = {
    "simple": 400, "java": 100, "javascript": 50, "multiple": 200, "parallel": 200,
    "parallel_multiple": 200, "live_simple": 258, "live_multiple": 1053, "live_parallel": 16,
    "live_parallel_multiple": 24, "irrelevance": 240, "live_irrelevance": 882, "live_relevance": 18,
}  # fmt: skip


def test_every_single_turn_item_loads_with_a_json_schema(checker: BfclChecker) -> None:
    items, counts = load_items(checker, None)
    found = {c: sum(i.category == c for i in items) for c in SINGLE_TURN}
    assert found == COUNTS
    assert sum(counts[c] for c in counts if c.startswith("multi_turn")) == 800
    assert len({i.id for i in items}) == len(items)
    allowed = {"object", "number", "array", "string", "integer", "boolean", "null"}
    kinds: set[Any] = set()
    for item in items:
        assert item.messages and item.messages[-1].role == "user"
        for tool in item.tools:
            Draft202012Validator.check_schema(tool.parameters)
            kinds |= _types(tool.parameters)
    assert kinds <= allowed


def _types(schema: Any) -> set[Any]:
    found = {schema["type"]} if "type" in schema else set()
    for nested in [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]:
        found |= _types(nested)
    return found


def test_prompts_carry_the_packages_language_hints_and_the_checker_its_own_types(
    checker: BfclChecker,
) -> None:
    items, _ = load_items(checker, {"simple": 1, "java": 100, "javascript": 50})
    hints = {"simple": "Python 3 syntax.", "java": "Java 8 SDK syntax."}
    for item in items:
        hint = hints.get(item.category, "JavaScript syntax.")
        assert item.tools[0].description.endswith(f" Note that the provided function is in {hint}")
        if item.category != "simple":
            fields = item.tools[0].properties.values()
            assert {f["type"] for f in fields} <= {"string"}


@pytest.mark.parametrize("category", AST)
def test_gold_answers_pass(category: str, checker: BfclChecker, bfcl_wheel: Path) -> None:
    gold = gold_calls(bfcl_wheel, category)
    verdicts = checker.score([Answer(i, category, calls) for i, calls in gold.items()])
    assert len(verdicts) == COUNTS[category]
    failed = {v.id for v in verdicts if not v.valid}
    assert failed <= set(UNANSWERABLE)
    assert {i for i in UNANSWERABLE if i.startswith(f"{category}_")} >= failed


def _wrong(calls: tuple[ToolCall, ...]) -> dict[str, tuple[ToolCall, ...] | None]:
    first, rest = calls[0], calls[1:]

    def altered(arguments: dict[str, Any]) -> tuple[ToolCall, ...]:
        return (ToolCall(first.name, arguments), *rest)

    answers: dict[str, tuple[ToolCall, ...] | None] = {
        "undecodable": None,
        "no call": (),
        "extra call": (*calls, first),
        "dropped call": rest,
        "wrong name": (ToolCall(first.name + "x", first.arguments), *rest),
        "extra argument": altered({**first.arguments, "no_such_argument": 1}),
    }
    for key, value in first.arguments.items():
        if type(value) is int:
            answers["text for integer"] = altered({**first.arguments, key: str(value)})
            answers["other number"] = altered({**first.arguments, key: value + 987_654})
    return answers


@pytest.mark.parametrize("category", ["simple", "multiple", "parallel", "parallel_multiple"])
def test_wrong_answers_fail(category: str, checker: BfclChecker, bfcl_wheel: Path) -> None:
    gold = gold_calls(bfcl_wheel, category)
    wrong = [(i, kind, a) for i, calls in gold.items() for kind, a in _wrong(calls).items()]
    verdicts = checker.score([Answer(i, category, a) for i, _, a in wrong])
    accepted = [(i, kind) for (i, kind, _), v in zip(wrong, verdicts, strict=True) if v.valid]
    assert accepted == []
    assert all(v.error_type for v in verdicts)


@pytest.mark.parametrize("category", ["irrelevance", "live_irrelevance", "live_relevance"])
def test_relevance_is_judged_by_the_presence_of_a_call(category: str, checker: BfclChecker) -> None:
    items, _ = load_items(checker, {category: 5})
    call = (ToolCall("anything", {}),)
    for calls, called in ((call, True), ((), False), (None, False)):
        verdicts = checker.score([Answer(i.id, category, calls) for i in items])
        assert {v.valid for v in verdicts} == {called == (category == "live_relevance")}


def test_text_in_a_call_is_never_run(
    checker: BfclChecker, bfcl_wheel: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    code = f"__import__('pathlib').Path({str(trap)!r}).write_text('run')"
    answers = []
    for category in ("simple", "java", "javascript", "multiple"):
        for item, calls in list(gold_calls(bfcl_wheel, category).items())[:20]:
            poisoned = dict.fromkeys(calls[0].arguments, code)
            answers.append(Answer(item, category, (ToolCall(calls[0].name, poisoned),)))
            answers.append(Answer(item, category, (ToolCall(code, {code: code}),)))
    verdicts = checker.score(answers)
    assert not any(v.valid for v in verdicts)
    assert not trap.exists()


def test_checking_leaves_the_package_as_it_was(checker: BfclChecker, bfcl_wheel: Path) -> None:
    before = sorted(p for p in bfcl_wheel.rglob("*"))
    load_items(checker, {"simple": 1})
    assert sorted(p for p in bfcl_wheel.rglob("*")) == before
