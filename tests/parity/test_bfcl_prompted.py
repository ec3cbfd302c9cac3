"""The official prompts and decoders through our harness, with an oracle that writes official texts."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bfcl_gold import gold_calls, official_text

from cahl_core.errors import ConfigError, EvaluationError
from cahl_core.evaluation.bfcl.prompted import (
    BfclFormatSensitivity,
    BfclOfficialPrompt,
    text_outcome,
)
from cahl_core.evaluation.checker import BfclChecker, TextAnswer
from cahl_core.evaluation.core import Attempt, Item, ItemScore, Record
from cahl_core.evaluation.solvers import TextSolver
from cahl_core.records import Message, ToolCall, ToolSpec
from cahl_core.serving.results import AgentResult, Request


@dataclass
class Writer:
    """A model that completes conversations with texts by the last user message."""

    texts: dict[str, str | None]
    form: Any = "low_only"
    asked: list[Sequence[Message]] = field(default_factory=list)

    def complete(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, seeds: Sequence[str]
    ) -> list[str | None]:
        self.asked += conversations
        return [self.texts[seed] for seed in seeds]

    def run(self, requests: Sequence[Request], on_result: Any = None) -> list[AgentResult]:
        raise AssertionError("asked for calls")


def _evaluate(
    benchmark: BfclOfficialPrompt, items: Sequence[Item], texts: dict[str, str | None]
) -> list[ItemScore]:
    records: dict[str, Record] = {}
    attempts = [Attempt(i) for i in items]
    benchmark.solve(Writer(texts), attempts, lambda a, r: records.update({a.item.id: r}))
    kept = json.loads(json.dumps(records))
    return benchmark.score(attempts, [kept[i.id] for i in items])


@pytest.fixture(scope="module", params=["v3", "v4"])
def benchmark(request: pytest.FixtureRequest, bfcl_wheel: Path) -> Iterator[BfclOfficialPrompt]:
    v3 = request.param == "v3"
    wheel = bfcl_wheel if v3 else request.getfixturevalue("bfcl_v4_wheel")
    made = BfclOfficialPrompt(wheel, 120, request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def formats(bfcl_v4_wheel: Path) -> Iterator[BfclFormatSensitivity]:
    made = BfclFormatSensitivity(bfcl_v4_wheel, 120)
    yield made
    made.close()


@pytest.fixture(scope="module")
def checker(bfcl_v4_wheel: Path) -> Iterator[BfclChecker]:
    made = BfclChecker(bfcl_v4_wheel, 120)
    yield made
    made.close()


def _gold(benchmark: BfclOfficialPrompt) -> dict[str, tuple[ToolCall, ...]]:
    categories = [c for c in benchmark.edition.ast if c not in benchmark.edition.simple[1:]]
    return {i: g for c in categories for i, g in gold_calls(benchmark.wheel, c).items()}


def test_the_prompt_asks_for_the_official_form_and_holds_every_document(
    benchmark: BfclOfficialPrompt,
) -> None:
    items = benchmark.items()
    assert len(items) == 3641 - 150
    assert not {i.category for i in items} & {*benchmark.edition.simple[1:]}
    for item in items[::50]:
        system = item.data.messages[0]
        assert system.role == "system" and item.data.messages[-1].role == "user"
        assert "[func_name1(params_name1=params_value1" in system.content
        assert all(t.name in system.content for t in item.data.tools)
        assert "tools" not in item.shown and item.shown["settings"] == {"max_tokens": 512}


def test_gold_texts_score_what_gold_calls_do(benchmark: BfclOfficialPrompt) -> None:
    gold = _gold(benchmark)
    items = benchmark.items()
    texts: dict[str, str | None] = {i.id: "I cannot do that." for i in items}
    texts |= {i.id: "[anything(a=1)]" for i in items if i.category == "live_relevance"}
    texts |= {name: official_text(calls) for name, calls in gold.items()}
    scores = _evaluate(benchmark, items, texts)
    failed = {s.id for s in scores if not s.correct}
    assert failed == {
        "live_simple_106-63-0", "live_simple_112-68-0",
        "live_multiple_862-181-3", "live_multiple_964-207-0",
    }  # fmt: skip
    summary = benchmark.summary(scores)
    assert "non_live" not in summary["columns"]  # Java and JavaScript are not there
    assert summary["columns"]["live_ast"] == pytest.approx((1351 - 4) / 1351)
    assert summary["columns"]["irrelevance_strict"] == 1
    assert summary["ast"]["decode_failure"] == 0


def test_wrong_and_unreadable_texts_score_nothing_where_a_call_is_due(
    benchmark: BfclOfficialPrompt,
) -> None:
    gold = _gold(benchmark)
    items = [i for i in benchmark.items() if i.category in ("parallel", "live_simple")]
    for spoil in (
        lambda text: text.replace("(", "_x(", 1),
        lambda text: text[:-2],
        lambda text: "Sure! " + text,
        lambda text: "[]",
        lambda text: "",
        lambda text: None,
    ):
        texts = {i.id: spoil(official_text(gold[i.id])) for i in items}
        scores = _evaluate(benchmark, items, texts)
        assert not any(s.correct for s in scores)
        assert all(s.error_type for s in scores)


def test_broken_calls_and_silence_are_no_abstention(benchmark: BfclOfficialPrompt) -> None:
    items = [i for i in benchmark.items() if i.category == "irrelevance"]
    name = {i.id: i.data.tools[0].name for i in items}
    for text, outcome, correct in (
        ("None of the functions can be used.", "abstained", 1),
        ("[]", "abstained", 1),
        ("{}(a=", "execution_failure", 1),
        ("", "execution_failure", 1),
        (None, "prompt_too_long", 1),
        ("[{}(a=1)]", "calls", 0),
    ):
        texts = {i: text if text is None else text.replace("{}", n) for i, n in name.items()}
        scores = _evaluate(benchmark, items, texts)
        assert {(s.outcome, s.correct) for s in scores} == {(outcome, correct)}
        assert {s.scores["strict"] for s in scores} == {float(outcome == "abstained")}


def test_a_solver_of_plans_and_calls_alone_is_refused_by_name(
    benchmark: BfclOfficialPrompt,
) -> None:
    class Planner:
        form = "hierarchical"

        def run(self, requests: Any, on_result: Any = None) -> list[AgentResult]:
            return []

    with pytest.raises(ConfigError, match="official_prompt needs a model that completes"):
        benchmark.solve(Planner(), [Attempt(benchmark.items()[0])], lambda a, r: None)  # type: ignore[arg-type]
    assert isinstance(Writer({}), TextSolver)


def test_a_solver_that_loses_a_text_is_an_error(benchmark: BfclOfficialPrompt) -> None:
    class Short(Writer):
        def complete(self, *_: Any) -> list[str | None]:
            return []

    with pytest.raises(EvaluationError, match="0 texts came back for 1"):
        benchmark.solve(Short({}), [Attempt(benchmark.items()[0])], lambda a, r: None)


def test_text_is_decoded_and_never_run(checker: BfclChecker, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    touch = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    texts = [
        f"[f(a={touch})]",
        f"[f(a={touch} or 1)]",
        f"[f(a=1 + {touch})]",
        f"[f(a=[1] + [{touch}])]",
        f"[f(a=(lambda: {touch})())]",
        f"[f(a=lambda: {touch})]",
        f"[f(a={{'k': 1 + {touch}}})]",
        f"[f(a=x[{touch}] * 2)]",
        f"[f(a=f'{{{touch}}}')]",
        f"[{touch}]",
        touch,
    ]
    answers = [TextAnswer("simple_python_0", "simple_python", t) for t in texts]
    verdicts = checker.score_texts(answers)
    assert not any(v.valid for v in verdicts)
    assert not trap.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=9**9**9)]", "[f(a=10**99 * 'x')]", "[f(a=[0] * 10**12)]", "[f(a='%99999999999d' % 1)]",
        "[f(a=" + "-" * 100_000 + "1)]", "[f(a=" + "(" * 5_000 + "1" + ")" * 5_000 + ")]",
        "[f(a=" + "1+" * 20_000 + "1)]", "[" * 3_000, "\x00", "[f(a=\ud800)]", "[f(**{'a': 1})]",
        "[f(a={[1]: 2})]", "[f(a={1, 2})]", "[f(a=...)]", "[f(a=1j)]", "[f(a=b'x')]", "[1]", "[f]",
        "f", "[f(1, 2)]", "[f(a=1e999)]", "[f(a={(1, 2): 3, None: 4})]", "[f(a=(10**99)**99)]",
        "[f(a=0x" + "f" * 4_000 + ")]", "[calculate_triangle_area(base=(10**99)**99, height=5)]",
    ],
)  # fmt: skip
def test_no_text_ends_the_scoring_or_takes_long(checker: BfclChecker, text: str) -> None:
    for item, category in (("simple_python_0", "simple_python"), ("irrelevance_0", "irrelevance")):
        (verdict,) = checker.score_texts([TextAnswer(item, category, text)])
        assert verdict.valid is (category == "irrelevance" and not verdict.calls)


@pytest.mark.parametrize(
    "expression", ["10", "2 * 5", "5 + 5", "20 / 2", "2 ** 3 + 2", "12 - 2", "100 // 10", "-(-10)"]
)
def test_arithmetic_on_numbers_counts_as_its_value_as_the_package_has_it(
    checker: BfclChecker, expression: str
) -> None:
    text = f"[calculate_triangle_area(base={expression}, height=5)]"
    (verdict,) = checker.score_texts([TextAnswer("simple_python_0", "simple_python", text)])
    if isinstance(ast.parse(expression, mode="eval").body, ast.UnaryOp):
        assert not verdict.valid  # the package reads one sign, of a literal
    else:
        value = verdict.calls[0].arguments["base"] if verdict.calls else None
        assert value == 10 and verdict.valid is (type(value) is int)


def test_every_configuration_reads_its_own_form_of_gold(formats: BfclFormatSensitivity) -> None:
    items = formats.items()
    assert len(items) == 5200 and len({i.category for i in items}) == 26
    gold = _gold(formats)
    texts: dict[str, str | None] = {}
    for item in items:
        _, configuration, source = item.id.split(":")
        options = dict(pair.split("=") for pair in configuration.split("&"))
        tagged = options["tool_call_tag"] == "True"
        texts[item.id] = official_text(gold[source], options["ret_fmt"], tagged)
    scores = _evaluate(formats, items, texts)
    summary = formats.summary(scores)
    assert set(summary["configurations"]) == {i.category for i in items}
    # the official JSON decoder ends at the first "}]": a list of objects inside a call is cut off
    unread = {s.id.split(":")[2] for s in scores if not s.correct}
    assert unread == {"simple_python_96"}
    for configuration, accuracy in summary["configurations"].items():
        assert accuracy == (0.995 if "ret_fmt=json" in configuration else 1)
    assert summary["max_delta"] == pytest.approx(0.005)


def test_a_model_that_knows_one_form_only_is_sensitive_to_the_format(
    formats: BfclFormatSensitivity,
) -> None:
    items = formats.items()
    gold = _gold(formats)
    texts: dict[str, str | None] = {i.id: official_text(gold[i.id.split(":")[2]]) for i in items}
    summary = formats.summary(_evaluate(formats, items, texts))
    for configuration, accuracy in summary["configurations"].items():
        plain = "ret_fmt=python" in configuration and "tool_call_tag=False" in configuration
        assert accuracy == float(plain), configuration
    right = 5  # three forms of the documents, markdown, the experimental wording
    mean = right / 26
    expected = ((right * (1 - mean) ** 2 + (26 - right) * mean**2) / 25) ** 0.5
    assert summary["max_delta"] == 1
    assert summary["standard_deviation"] == pytest.approx(expected)


def test_format_prompts_differ_by_configuration_and_carry_the_doubled_hint(
    formats: BfclFormatSensitivity,
) -> None:
    first = [i for i in formats.items() if i.id.endswith(":" + formats.items()[0].id.split(":")[2])]
    assert len(first) == 26
    prompts = {i.category: i.data.messages[0].content for i in first}
    assert len(set(prompts.values())) == 26
    hint = "Note that the provided function is in Python 3 syntax."
    for configuration, prompt in prompts.items():
        assert ("<TOOLCALL>" in prompt) is ("tool_call_tag=True" in configuration)
        assert f"{hint} {hint}" in prompt


def test_a_sample_of_configurations_has_no_spread(formats: BfclFormatSensitivity) -> None:
    items = formats.items()[:52]
    scores = _evaluate(formats, items, {i.id: "[]" for i in items})
    assert formats.summary(scores) == {"configurations": {}}


def test_what_is_left_out_of_prompted_runs_is_said(
    benchmark: BfclOfficialPrompt, formats: BfclFormatSensitivity
) -> None:
    said = " ".join(benchmark.about()["notes"])
    java, javascript = benchmark.edition.simple[1:]
    assert f"{java} and {javascript} are left out" in said and "tree_sitter" in said
    assert "official" in benchmark.name and benchmark.about()["counts"].get(java) is None
    assert "Not part of any score" in formats.about()["notes"][0]
    assert sum(formats.about()["counts"].values()) == 5200


def test_kinds_of_text_without_a_call() -> None:
    tools = [ToolSpec("get_weather", "", {})]
    for text, kind in (
        ("No function fits.", "abstained"),
        ("The weather (today) is unknown.", "abstained"),
        ("get_weather(city=", "execution_failure"),
        ('{"function": "get_weather"', "execution_failure"),
        ("<functions><function", "execution_failure"),
        ("```json", "execution_failure"),
        ("   ", "execution_failure"),
    ):
        assert text_outcome(text, None, tools) == kind, text


RUNNER = Path(__file__).with_name("bfcl_runner_worker.py")


def _spoiled(text: str, rng: random.Random) -> str:
    """A text with a few small edits, most of which leave something that can be read."""
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(text))
        piece = rng.choice(["", "1", "'", '"', " ", "[", "]", ",", "=", "x", "-", ".0", "None"])
        text = text[:place] + piece + text[place + rng.randrange(2) :]
    return rng.choice([text, text, text, text.upper(), f"`{text}`", text.replace("'", '"')])


def test_verdicts_on_spoiled_texts_are_those_of_the_packages_own_evaluation(
    formats: BfclFormatSensitivity, bfcl_v4_wheel: Path, tmp_path: Path
) -> None:
    rng = random.Random(1)
    prompted = BfclOfficialPrompt(bfcl_v4_wheel, 120, "v4")
    gold = _gold(formats)
    texts: list[tuple[str, str, str]] = []
    for item in prompted.items()[::2]:
        calls = gold.get(item.id, (ToolCall("some.function", {"a": [1.5, "b"]}),))
        texts.append((item.id, item.category, _spoiled(official_text(calls), rng)))
    for item in formats.items()[::7]:
        _, configuration, source = item.id.split(":")
        options = dict(pair.split("=") for pair in configuration.split("&"))
        written = official_text(
            gold[source], options["ret_fmt"], options["tool_call_tag"] == "True"
        )
        texts.append((item.id, "format_sensitivity", _spoiled(written, rng)))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(RUNNER), str(bfcl_v4_wheel)],
        input=json.dumps(texts),
        capture_output=True,
        encoding="utf-8",
        env={"BFCL_PROJECT_ROOT": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    ours = formats.checker.score_texts([TextAnswer(*text) for text in texts])
    prompted.close()
    assert [v.valid for v in ours] == theirs
    assert 0.2 < sum(theirs) / len(theirs) < 0.8  # of both kinds enough
