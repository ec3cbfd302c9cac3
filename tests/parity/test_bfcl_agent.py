"""The whole path, prompts to official verdicts, with oracles in the place of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bfcl_gold import gold_calls

from cahl_core.config import ModelSettings
from cahl_core.evaluation.bfcl import AST, UNANSWERABLE, BfclItem, load_items, summary
from cahl_core.evaluation.bfcl import Scored as ScoredItem
from cahl_core.evaluation.checker import Answer, BfclChecker
from cahl_core.evaluation.runner import answer_of, bfcl_requests
from cahl_core.protocol.forms import flat_prompt
from cahl_core.protocol.prompts import executor_prompt, planner_prompt
from cahl_core.protocol.texts import execution_text, plan_text, single_text
from cahl_core.records import Plan, SubTask, ToolCall
from cahl_core.serving.agent import Agent
from cahl_core.train_config import FORMS, Form

SETTINGS = ModelSettings(max_context=100_000, tool_rendering="json")
TWICE = {"live_simple_29-7-2", "live_simple_176-102-0", "live_multiple_262-125-1"}
CATEGORIES = (*AST, "irrelevance", "live_irrelevance")


class CharacterTokenizer:
    """One token per character, and the barest chat template."""

    chat_template = "yes"
    added_tokens_decoder: Mapping[int, Any] = {}
    all_special_tokens: Sequence[str] = ("<|end|>",)

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"[{t['role']}]{t['content']}<|end|>" for t in turns)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


@dataclass
class Text:
    text: str

    @property
    def token_ids(self) -> list[int]:
        return [0] * len(self.text)


class Oracle:
    """Knows the right text for every prompt; ``executor`` replaces what the executor would say."""

    def __init__(
        self,
        items: Sequence[BfclItem],
        gold: Mapping[str, tuple[ToolCall, ...]],
        executor: str | None = None,
        planner: str | None = None,
        form: Form = "hierarchical",
    ) -> None:
        tokenizer = CharacterTokenizer()
        self.form = form
        rendering = SETTINGS.tool_rendering
        self.texts: dict[tuple[int, ...], str] = {}
        for item in items:
            plan = Plan(tuple(SubTask("call", c.name, c.arguments) for c in gold.get(item.id, ())))
            if form != "hierarchical":
                prompt = flat_prompt(form, tokenizer, item.messages, item.tools, rendering)
                calls = gold.get(item.id, ())
                text = execution_text(calls) if form == "low_only" else single_text(plan, calls)
                self.texts[tuple(prompt)] = text if executor is None else executor
                continue
            prompt = planner_prompt(tokenizer, item.messages, item.tools, rendering)
            self.texts[tuple(prompt)] = plan_text(plan) if planner is None else planner
            for sub_task, call in zip(plan.sub_tasks, gold.get(item.id, ()), strict=True):
                prompt = executor_prompt(tokenizer, sub_task, item.tools, [], rendering)
                text = execution_text([call]) if executor is None else executor
                self.texts[tuple(prompt)] = text

    def __call__(self, prompts: Sequence[Sequence[int]], role: str, **_: Any) -> list[list[Text]]:
        return [[Text(self.texts[tuple(p)])] for p in prompts]


@pytest.fixture(scope="module")
def items(checker: BfclChecker) -> list[BfclItem]:
    return load_items(checker, dict.fromkeys(CATEGORIES, 24))[0]


@pytest.fixture(scope="module")
def gold(bfcl_wheel: Path) -> dict[str, tuple[ToolCall, ...]]:
    return {i: calls for c in AST for i, calls in gold_calls(bfcl_wheel, c).items()}


def _evaluate(checker: BfclChecker, items: list[BfclItem], oracle: Oracle) -> list[ScoredItem]:
    settings = SETTINGS.model_copy(update={"form": oracle.form})
    agent = Agent(oracle, CharacterTokenizer(), settings, plan_tokens=1, call_tokens=1)
    results = agent.run(bfcl_requests(items))
    answers: list[Answer] = [answer_of(i, r) for i, r in zip(items, results, strict=True)]
    verdicts = checker.score(answers)
    return [
        ScoredItem(i.category, v, r.outcome)
        for i, v, r in zip(items, verdicts, results, strict=True)
    ]


def test_perfect_planner_and_executor_reach_the_ceiling(
    checker: BfclChecker, items: list[BfclItem], gold: dict[str, tuple[ToolCall, ...]]
) -> None:
    scored = _evaluate(checker, items, Oracle(items, gold))
    assert {s.verdict.id for s in scored if not s.verdict.valid} <= set(UNANSWERABLE)
    assert summary(scored, full=False)["irrelevance_strict"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_perfect_flat_model_reaches_the_ceiling_and_a_mute_one_nothing(
    checker: BfclChecker,
    items: list[BfclItem],
    gold: dict[str, tuple[ToolCall, ...]],
    form: Form,
) -> None:
    scored = _evaluate(checker, items, Oracle(items, gold, form=form))
    assert {s.verdict.id for s in scored if not s.verdict.valid} <= set(UNANSWERABLE)
    assert summary(scored, full=False)["irrelevance_strict"] == 1
    mute = summary(
        _evaluate(checker, items, Oracle(items, gold, executor="", form=form)), full=False
    )
    assert (mute["bfcl_accuracy"], mute["irrelevance_strict"]) == (0, 0)
    assert mute["decode_failures"] == mute["bfcl_n"]


def test_a_perfect_planner_with_a_mute_executor_scores_nothing(
    checker: BfclChecker, items: list[BfclItem], gold: dict[str, tuple[ToolCall, ...]]
) -> None:
    scored = _evaluate(checker, items, Oracle(items, gold, executor=""))
    table = summary(scored, full=False)
    assert table["bfcl_accuracy"] == 0
    assert table["decode_failures"] == table["bfcl_n"]


def test_prose_is_a_decode_failure_and_not_an_abstention(
    checker: BfclChecker, items: list[BfclItem], gold: dict[str, tuple[ToolCall, ...]]
) -> None:
    table = summary(_evaluate(checker, items, Oracle(items, gold, planner="Sure!")), full=False)
    assert (table["bfcl_accuracy"], table["irrelevance"], table["irrelevance_strict"]) == (0, 1, 0)


def test_declining_everything_is_clean_but_calls_nothing(
    checker: BfclChecker, items: list[BfclItem], gold: dict[str, tuple[ToolCall, ...]]
) -> None:
    oracle = Oracle(items, gold, planner="<plan>[]</plan>")
    table = summary(_evaluate(checker, items, oracle), full=False)
    assert (table["bfcl_accuracy"], table["irrelevance"], table["irrelevance_strict"]) == (0, 1, 1)
    assert table["decode_failures"] == 0


def test_the_official_averages_of_a_perfect_model(
    checker: BfclChecker, gold: dict[str, tuple[ToolCall, ...]]
) -> None:
    everything, _ = load_items(checker, None)
    relevant = [i for i in everything if i.category == "live_relevance"]
    gold = gold | {i.id: (ToolCall(i.tools[0].name, {}),) for i in relevant}
    scored = _evaluate(checker, everything, Oracle(everything, gold))
    failed = {s.verdict.id for s in scored if not s.verdict.valid}
    # Three live prompts are word for word items of live_irrelevance too: no text is right for both.
    assert failed - set(UNANSWERABLE) == TWICE
    table = summary(scored, full=True)
    assert table["official_non_live"] == pytest.approx(((1 + 0.98 + 1) / 3 + 4) / 5)
    assert table["official_live"] == pytest.approx((2251 - 4 - 3) / 2251)
    assert table["bfcl_accuracy"] == pytest.approx((2501 - 6 - 3) / 2501)
