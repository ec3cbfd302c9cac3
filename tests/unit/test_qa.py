"""Questions in every form and mode: what is asked, when searching ends, and what a record scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from json_server import json_server
from scripted_agent import scripted_agent

from cahl_core.environments.search import Limits, LocalBm25, Passage, SearchError
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.evaluation.core import Attempt, ItemScore, Record
from cahl_core.evaluation.judge import Judge
from cahl_core.evaluation.qa import SETS, QuestionAnswering, golds_of
from cahl_core.files import digest, write_jsonl
from cahl_core.protocol.prompts import execution_text, plan_text, single_text
from cahl_core.records import Plan, SubTask, ToolCall
from cahl_core.serving.agent import Agent
from cahl_core.train_config import FORMS, Form

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
needs_mirror = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared/data is not here: the mirror of real records"
)
FOLDERS = {"bamboogle": "bamboogle", "open_qa_eval": "open_qa"}  # source → folder of the mirror
QUESTION = "Who wrote it?"


class Backend:
    """Finds one passage that names the query; fails from query ``broken`` on."""

    def __init__(self, broken: int | None = None) -> None:
        self.queries: list[str] = []
        self.broken = broken

    def search(self, query: str, count: int) -> list[Passage]:
        self.queries.append(query)
        if self.broken is not None and len(self.queries) > self.broken:
            raise SearchError("the service is down")
        return [Passage(f"About {query}", "Ann Lee wrote it.")]

    def describe(self) -> dict[str, Any]:
        return {"backend": "test"}


def bench(folder: Path, *golds: str, **options: Any) -> QuestionAnswering:
    """Bamboogle with as many questions as gold answers."""
    write_jsonl(
        folder / "test.jsonl",
        [
            {"id": f"q{i}", "source": "bamboogle", "messages": [{"role": "user", "content": QUESTION}],
             "tools": [], "answers": [], "meta": {"answer": gold}}
            for i, gold in enumerate(golds or ("Ann Lee",))
        ],
    )  # fmt: skip
    return QuestionAnswering("bamboogle", folder, **options)


def search(query: str) -> ToolCall:
    return ToolCall("Search", {"query": query})


def step(query: str) -> SubTask:
    return SubTask(f"look for {query}", "Search", {"query": query})


WORDS = SubTask("answer", None, {})


class Script:
    """Writes the next of the given texts and keeps the prompts; the agent is real."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.prompts: list[tuple[str, str]] = []

    def __call__(self, role: str, prompt: str, seed: str) -> str:
        self.prompts.append((role, prompt))
        return self.texts.pop(0)


def run(
    benchmark: QuestionAnswering, agent: Agent, attempts: list[Attempt] | None = None
) -> tuple[list[Record], list[ItemScore]]:
    attempts = attempts or [Attempt(i) for i in benchmark.items()]
    records: dict[str, Record] = {}

    def emit(attempt: Attempt, record: Record) -> None:
        assert attempt.seed not in records
        records[attempt.seed] = json.loads(json.dumps(record))

    benchmark.solve(agent, attempts, emit)
    found = [records[a.seed] for a in attempts]
    return found, benchmark.score(attempts, found)


# --- hierarchical ---------------------------------------------------------------------------------


def test_a_plan_searches_and_its_last_sub_task_answers_from_what_was_found(tmp_path: Path) -> None:
    backend = Backend()
    script = Script(
        plan_text(Plan((step("book"), step("author"), WORDS))),
        execution_text((search("book"),)), execution_text((search("$var1[0].title$"),)),
        execution_text((), "Ann Lee"),
    )  # fmt: skip
    benchmark = bench(tmp_path, backend=backend)
    (record,), (score,) = run(benchmark, scripted_agent(script))
    assert backend.queries == ["book", "About book"]
    assert score.correct == 1 and score.outcome == "answered"
    assert (score.scores["searches"], score.attempted, score.adherence) == (2.0, 2, 1.0)
    assert [role for role, _ in script.prompts] == ["planner", "executor", "executor", "executor"]
    assert "Ann Lee wrote it" in script.prompts[-1][1] and len(record["runs"]) == 1
    assert "Search(query: string)" in script.prompts[0][1]


@pytest.mark.parametrize(
    ("plan", "texts", "searches"),
    [
        (plan_text(Plan((step("book"),))), [execution_text((search("book"),))], 1),
        (plan_text(Plan(())), [], 0),
        ("no plan at all", [], 0),
        (plan_text(Plan((step("book"),))), ["nonsense"], 0),
    ],
)
def test_without_an_answer_in_words_one_more_executor_text_is_asked_for(
    tmp_path: Path, plan: str, texts: list[str], searches: int
) -> None:
    script = Script(plan, *texts, execution_text((), "Ann Lee"))
    (record,), (score,) = run(bench(tmp_path, backend=Backend()), scripted_agent(script))
    role, prompt = script.prompts[-1]
    assert role == "executor" and QUESTION in prompt and "(none)" in prompt
    assert ("Ann Lee wrote it" in prompt) == bool(searches)
    assert (score.correct, score.scores["searches"]) == (1.0, searches)
    assert [r["tool"] for r in record["runs"]] == [True, False]
    assert score.planned == (plan != "no plan at all")


def test_a_plan_may_not_search_more_often_than_allowed(tmp_path: Path) -> None:
    backend = Backend()
    plan = Plan(tuple(step(str(i)) for i in range(6)))
    texts = [execution_text((search(str(i)), search("more"))) for i in range(6)]
    script = Script(plan_text(plan), *texts, execution_text((), "?"))
    # the engine would stop such a text after its first call; another one may not
    _, (score,) = run(bench(tmp_path, backend=backend), scripted_agent(script))
    assert backend.queries == ["0", "1", "2", "3"] and score.scores["searches"] == 4
    assert (score.attempted, score.correct) == (12, 0.0)
    assert "no search is left" in script.prompts[-1][1]


# --- flat forms -----------------------------------------------------------------------------------


def flat(form: Form, *calls: ToolCall, said: str | None = None) -> str:
    if form == "low_only":
        return execution_text(calls, said)
    return single_text(Plan(tuple(step("x") for _ in calls)), calls, said)


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_a_flat_model_sees_what_it_found_and_asks_again_or_answers(
    form: Form, tmp_path: Path
) -> None:
    backend = Backend()
    script = Script(
        flat(form, search("book"), search("$var1.title$")), flat(form, search("author")),
        flat(form, said="Ann Lee"),
    )  # fmt: skip
    (record,), (score,) = run(bench(tmp_path, backend=backend), scripted_agent(script, form))
    assert backend.queries == ["book", "author"] and score.correct == 1
    assert [r["tool"] for r in record["runs"]] == [True, True, True]
    second, third = script.prompts[1][1], script.prompts[2][1]
    assert "About book" in second and "only the first call" in second
    assert "About author" in third and third.count("<tool_response>") == 3
    assert score.scores["searches"] == 2 and score.attempted == 3


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_the_last_text_of_a_flat_model_has_no_tool(form: Form, tmp_path: Path) -> None:
    backend = Backend()
    script = Script(*(flat(form, search(str(i))) for i in range(4)), flat(form, said="Ann Lee"))
    (record,), (score,) = run(bench(tmp_path, backend=backend), scripted_agent(script, form))
    assert backend.queries == ["0", "1", "2", "3"] and score.correct == 1
    assert "(none)" in script.prompts[-1][1] and "Search(query" in script.prompts[-2][1]
    assert [r["tool"] for r in record["runs"]] == [True] * 4 + [False]


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_a_text_outside_the_grammar_ends_the_searching(form: Form, tmp_path: Path) -> None:
    script = Script("nonsense", flat(form, search("x")))
    (record,), (score,) = run(bench(tmp_path, backend=Backend()), scripted_agent(script, form))
    assert len(record["runs"]) == 2 and score.outcome == "no_answer" and score.correct == 0
    assert score.error_type == "no_answer" and score.scores["cover_em"] == 0


# --- closed-book ----------------------------------------------------------------------------------


def test_closed_book_offers_no_tool_in_any_form(tmp_path: Path) -> None:
    scripts = {
        "hierarchical": Script(plan_text(Plan((WORDS,))), execution_text((), "Ann Lee")),
        "low_only": Script(execution_text((), "Ann Lee")),
        "single_level": Script(single_text(Plan(()), (), "Ann Lee")),
    }
    for form, script in scripts.items():
        (record,), (score,) = run(bench(tmp_path), scripted_agent(script, form))  # type: ignore[arg-type]
        assert score.correct == 1 and score.scores["searches"] == 0 and len(record["runs"]) == 1
        assert not any("Search(query" in prompt for _, prompt in script.prompts)
    silent = Script(plan_text(Plan(())), execution_text((), "Ann Lee"))
    (_, (score,)) = run(bench(tmp_path), scripted_agent(silent))
    assert score.correct == 1 and QUESTION in silent.prompts[-1][1]


def test_a_call_where_there_is_no_tool_is_no_search(tmp_path: Path) -> None:
    script = Script(execution_text((search("x"),)))
    (_, (score,)) = run(bench(tmp_path), scripted_agent(script, "low_only"))
    assert (score.scores["searches"], score.attempted, score.invalid) == (0.0, 1, 1)
    assert score.outcome == "no_answer"


# --- all together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("searching", [True, False])
def test_questions_of_a_batch_do_not_mix(form: Form, searching: bool, tmp_path: Path) -> None:
    """Every question needs another number of texts and gets another answer, twice sampled."""
    golds = [f"answer {i}" for i in range(6)]
    benchmark = bench(tmp_path, *golds, backend=Backend() if searching else None)

    def write(role: str, prompt: str, seed: str) -> str:
        number, turn = int(seed[1]), prompt.count("<tool_response>")
        if role == "planner":
            return plan_text(
                Plan((*(step(str(k)) for k in range(number)), *[WORDS] * (number % 2)))
            )
        calls = (search(str(turn)),) if "Search(query" in prompt and turn < number else ()
        if form == "hierarchical":
            calls = (search("x"),) if '"tool": "Search"' in prompt.rpartition("Sub-task")[2] else ()
        said = None if calls else f"Answer {number}"
        return (
            flat("single_level", *calls, said=said)
            if form == "single_level"
            else execution_text(calls, said)
        )

    attempts = [Attempt(i, sample) for i in benchmark.items() for sample in (0, 1)]
    _, scores = run(benchmark, scripted_agent(write, form), attempts)
    assert [s.correct for s in scores] == [1.0] * 12
    assert [(s.id, s.sample) for s in scores] == [(f"q{i}", k) for i in range(6) for k in (0, 1)]
    expected = [min(i, 4) for i in range(6)] if searching else [0] * 6
    assert [s.scores["searches"] for s in scores[::2]] == expected
    summary = benchmark.summary(scores)
    assert summary["em"] == summary["answered"] == 1
    assert summary["searches"] == sum(expected) / 6


@needs_mirror
@pytest.mark.parametrize("name", SETS)
def test_an_oracle_scores_everything_and_silence_nothing(name: str) -> None:
    benchmark = QuestionAnswering(name, SHARED / FOLDERS[SETS[name].source])
    assert len(benchmark.items()) == (125 if name == "bamboogle" else 500)
    golds = {t.id: golds_of(t)[0] for t in benchmark.tasks}

    def oracle(role: str, prompt: str, seed: str) -> str:
        return plan_text(Plan((WORDS,))) if role == "planner" else execution_text((), golds[seed])

    _, scores = run(benchmark, scripted_agent(oracle))
    for measure in ("em", "em_with_dates", "cover_em", "f1", "answered"):
        assert benchmark.summary(scores)[measure] == 1
    _, scores = run(benchmark, scripted_agent(lambda role, *_: ""))
    summary = benchmark.summary(scores)
    assert (summary["em"], summary["cover_em"], summary["f1"], summary["answered"]) == (0, 0, 0, 0)
    assert {s.outcome for s in scores} == {"execution_failure"}


def test_a_broken_backend_ends_the_evaluation_and_is_shown_to_no_model(tmp_path: Path) -> None:
    benchmark = bench(tmp_path, "Ann Lee", "Ann Lee", backend=Backend(broken=1))

    def write(role: str, prompt: str, seed: str) -> str:
        return (
            execution_text((search("x"),))
            if "tool_response" not in prompt
            else execution_text((), "y")
        )

    script = scripted_agent(write, "low_only")
    with pytest.raises(SearchError, match="the service is down"):
        run(benchmark, script)


def test_a_prompt_that_becomes_too_long_is_told_apart(tmp_path: Path) -> None:
    script = Script(execution_text((search("long " * 50),)))  # its title alone fills the context
    agent = scripted_agent(script, "low_only", max_context=900)
    (record,), (score,) = run(bench(tmp_path, backend=Backend()), agent)
    assert (score.outcome, score.error_type, score.correct) == ("prompt_too_long",) * 2 + (0.0,)
    assert [r["tool"] for r in record["runs"]] == [True, True, False]
    assert score.scores["searches"] == 1


def test_the_mode_is_part_of_what_records_are_kept_under(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"title": "T", "text": "Ann Lee"}\n')
    modes: list[dict[str, Any]] = [
        {}, {"backend": Backend()}, {"backend": LocalBm25(tmp_path / "c.jsonl")},
        {"backend": Backend(), "limits": Limits(top_k=5)},
        {"backend": Backend(), "limits": Limits(passage_chars=5)},
        {"backend": Backend(), "limits": Limits(max_calls=5)},
    ]  # fmt: skip
    shown = [digest(bench(tmp_path, **mode).items()[0].shown) for mode in modes]
    assert len(set(shown)) == len(modes)


def test_about_says_what_the_numbers_are_and_are_not(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"title": "T", "text": "Ann Lee wrote it: who, when"}\n')
    local = bench(tmp_path, "Ann Lee", "Bo", backend=LocalBm25(tmp_path / "c.jsonl"))
    about = local.about()
    assert "75.2" in about["notes"][0] and "judge" in about["notes"][0]
    assert about["recall"] == {"n": 2, "somewhere": 1, "retrieved": 1}
    assert "1/2" in about["notes"][1] and len(about["notes"]) == 2  # no word of a corpus it is not
    assert set(about["data"]) == {"test.jsonl", "c.jsonl"}
    closed = bench(tmp_path).about()
    assert "closed-book" in closed["protocol"]["search"] and "recall" not in closed
    json.dumps([about, closed])


@needs_mirror
def test_the_collected_corpus_is_called_an_upper_bound() -> None:
    backend = LocalBm25(SHARED / "search_corpus/corpus.jsonl")
    about = QuestionAnswering("bamboogle", SHARED / "bamboogle", backend=backend).about()
    assert about["recall"]["somewhere"] == 92
    assert "81/125" in about["notes"][2] and "upper bound" in about["notes"][2]


def test_aliases_are_accepted(tmp_path: Path) -> None:
    benchmark = bench(tmp_path)
    record = benchmark.tasks[0].to_json()
    record["meta"]["answer_aliases"] = ["A. Lee"]
    write_jsonl(tmp_path / "test.jsonl", [record])
    benchmark = QuestionAnswering("bamboogle", tmp_path)
    _, (score,) = run(benchmark, scripted_agent(Script(execution_text((), "a lee")), "low_only"))
    assert score.correct == 1


def test_an_example_shows_what_was_found_and_said(tmp_path: Path) -> None:
    benchmark = bench(tmp_path, backend=Backend())
    script = Script(execution_text((search("book"),)), execution_text((), "Bo"))
    (record,), _ = run(benchmark, scripted_agent(script, "low_only"))
    text = benchmark.example(Attempt(benchmark.items()[0]), record)
    for part in (QUESTION, "About book", "answer: Bo", "gold: Ann Lee"):
        assert part in text


def test_a_wrong_name_or_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'trivia'.*\n.*bamboogle, hotpotqa"):
        QuestionAnswering("trivia", tmp_path)
    with pytest.raises(StageInputError, match=r"test\.jsonl does not exist"):
        QuestionAnswering("bamboogle", tmp_path).items()
    with pytest.raises(DataError, match="'q0' has no question or no answer"):
        bench(tmp_path, " ").items()


# --- with a judge ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected", "unreadable"), [("Yes", 1.0, 0), ("No", 0.0, 0), ("Hm", None, 1)]
)
def test_the_judge_is_asked_about_wrong_answers_only(
    tmp_path: Path, reply: str, expected: float | None, unreadable: int
) -> None:
    answers = {"q0": "Ann Lee", "q1": "Lee", "q2": ""}
    write: Callable[..., str] = lambda role, prompt, seed: execution_text((), answers[seed] or " ")  # noqa: E731
    message = {"choices": [{"message": {"content": reply}}]}
    with json_server(lambda asked: message) as server:
        judge = Judge(server.url, "m", tmp_path / "judge.jsonl")
        benchmark = bench(tmp_path, *["Ann Lee"] * 3, judge=judge)
        _, scores = run(benchmark, scripted_agent(write, "low_only"))
        assert [s.scores["judge"] for s in scores] == [1.0, expected, 0.0]
        assert len(server.asked) == 1
        summary = benchmark.summary(scores)
    said = [1.0, 0.0] + ([] if expected is None else [expected])
    assert summary["judge"] == sum(said) / len(said) and summary["judge_unreadable"] == unreadable
    assert summary["em"] == 1 / 3 and "temperature 0" in benchmark.about()["protocol"]["judge"]
