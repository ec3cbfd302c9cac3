"""The search tool: limits, local BM25, and live backends against servers that answer as those do."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_server import Asked, json_server

from cahl_core.environments.search import (
    MAX_QUERY,
    Limits,
    LocalBm25,
    Passage,
    QueryError,
    SearchError,
    SearchSession,
    corpus_recall,
    shortened,
)
from cahl_core.environments.web_search import SearXng, Serper, Wikipedia
from cahl_core.errors import DataError, EvaluationError, StageInputError
from cahl_core.files import read_jsonl, write_jsonl
from cahl_core.records import Plan, ToolCall

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
needs_mirror = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared/data is not here: the mirror of real records"
)
PLAN = Plan(())


class Fixed:
    """A backend of given passages that remembers its queries."""

    def __init__(self, *passages: Passage, error: Exception | None = None) -> None:
        self.passages = list(passages)
        self.error = error
        self.queries: list[str] = []

    def search(self, query: str, count: int) -> list[Passage]:
        self.queries.append(query)
        if self.error:
            raise self.error
        return self.passages

    def describe(self) -> dict[str, Any]:
        return {"backend": "fixed"}


def ask(query: Any, name: str = "Search") -> ToolCall:
    return ToolCall(name, {"query": query})


# --- a question's session -------------------------------------------------------------------------


def test_a_search_shows_title_and_text_within_the_limits() -> None:
    backend = Fixed(*(Passage(f"T{i}", "one  two three four") for i in range(5)))
    session = SearchSession(backend, Limits(top_k=2, passage_chars=14))
    assert session(PLAN, 0, [ask(" who \n is it ")]) == [
        {"title": "T0", "text": "one two …"},
        {"title": "T1", "text": "one two …"},
    ]
    assert backend.queries == ["who is it"]


def test_only_the_first_call_of_a_step_is_carried_out() -> None:
    backend = Fixed(Passage("T", "x"))
    results = SearchSession(backend, Limits())(PLAN, 0, [ask("a"), ask("b"), ask("c")])
    assert backend.queries == ["a"]
    assert results[0] == [{"title": "T", "text": "x"}]
    assert [set(r) for r in results[1:]] == [{"error"}, {"error"}]


def test_calls_beyond_the_last_allowed_one_are_refused_in_words() -> None:
    backend = Fixed(Passage("T", "x"))
    session = SearchSession(backend, Limits(max_calls=2))
    results = [session(PLAN, i, [ask(str(i))]) for i in range(4)]
    assert backend.queries == ["0", "1"]
    assert all("no search is left: 2" in r["error"] for r in results[2:])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (ToolCall("Lookup", {"query": "x"}), "'Lookup' does not exist"),
        (ToolCall("Search", {}), "'query' is missing"),
        (ask(5), "not of type"),
        (ToolCall("Search", {"query": "x", "k": 3}), "unknown argument 'k'"),
        (ask("   "), "0 characters"),
        (ask("x" * (MAX_QUERY + 1)), f"1 to {MAX_QUERY}"),
    ],
)
def test_what_the_model_does_wrong_is_a_result_and_uses_up_a_call(
    call: ToolCall, said: str
) -> None:
    backend = Fixed(Passage("T", "x"))
    session = SearchSession(backend, Limits())
    assert said in session(PLAN, 0, [call])["error"]
    assert (backend.queries, session.used) == ([], 1)


def test_a_query_that_the_backend_cannot_read_is_a_result() -> None:
    session = SearchSession(Fixed(error=QueryError("use plain words")), Limits())
    assert session(PLAN, 0, [ask("insource:/(/")]) == {"error": "use plain words"}


def test_a_broken_backend_is_never_a_result() -> None:
    session = SearchSession(Fixed(error=SearchError("down")), Limits())
    with pytest.raises(EvaluationError, match="down"):
        session(PLAN, 0, [ask("x")])


def test_nothing_found_is_a_result() -> None:
    assert SearchSession(Fixed(), Limits())(PLAN, 0, [ask("x")]) == []


def test_references_to_earlier_results_are_filled_in_by_the_number_of_the_sub_task() -> None:
    backend = Fixed(Passage("Rome", "a city"))
    session = SearchSession(backend, Limits())
    session(PLAN, 0, [ask("x")])
    session(PLAN, 2, [ask("$var1[0].title$")])  # the second text was outside the grammar
    session(PLAN, 3, [ask("$var3.title$")])
    session(PLAN, 4, [ask("$var2.title$")])  # unknown: searched for as it is written
    assert backend.queries == ["x", "Rome", "Rome", "$var2.title$"]


@given(st.text(), st.integers(1, 60))
def test_a_shortened_text_keeps_its_words_and_its_bound(text: str, characters: int) -> None:
    short = shortened(text, characters)
    whole = " ".join(text.split())
    assert short == whole if len(whole) <= characters else len(short) <= characters + 1
    assert whole.startswith(short.removesuffix(" …"))


# --- the local corpus -----------------------------------------------------------------------------


def corpus(folder: Path, *texts: str) -> LocalBm25:
    path = folder / "corpus.jsonl"
    write_jsonl(path, [{"title": f"T{i}", "text": t} for i, t in enumerate(texts)])
    return LocalBm25(path)


def test_bm25_ranks_as_its_formula_does(tmp_path: Path) -> None:
    texts = ["red fox runs", "red red fox", "blue whale", "fox whale fox fox and a long tail of words",
             "nothing here", "red"]  # fmt: skip
    backend = corpus(tmp_path, *texts)
    docs = [re.findall(r"\w+", f"t{i} {t}") for i, t in enumerate(texts)]
    docs = [[w for w in d if w not in ("and", "of", "a")] for d in docs]
    mean = sum(map(len, docs)) / len(docs)

    def score(query: list[str], doc: list[str]) -> float:
        total = 0.0
        for word in query:
            n, f = sum(word in d for d in docs), Counter(doc)[word]
            idf = math.log(1 + (len(docs) - n + 0.5) / (n + 0.5))
            total += idf * f / (f + 1.5 * (1 - 0.75 + 0.75 * len(doc) / mean))
        return total

    for query in (["red", "fox"], ["whale"], ["fox", "tail"]):
        expected = sorted(range(len(docs)), key=lambda i: -score(query, docs[i]))
        expected = [i for i in expected if score(query, docs[i]) > 0]
        assert [p.title for p in backend.search(" ".join(query), 9)] == [f"T{i}" for i in expected]


def test_words_of_no_passage_find_nothing_and_ties_keep_the_files_order(tmp_path: Path) -> None:
    backend = corpus(tmp_path, *[*["other things"] * 3, "same words", "same long words"] * 24)
    for query in ("zebra", "the", "", "?!", "\x00"):
        assert backend.search(query, 3) == []
    expected = [f"T{i}" for first in (3, 4) for i in range(first, 120, 5)]
    assert [p.title for p in backend.search("same zebra words", 99)] == expected
    assert [p.title for p in backend.search("SAME", 1)] == ["T3"]


def test_a_missing_or_broken_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageInputError, match=r"corpus\.jsonl does not exist"):
        LocalBm25(tmp_path / "corpus.jsonl").search("x", 1)
    write_jsonl(tmp_path / "c.jsonl", [{"title": "T", "text": "x"}, {"title": "T"}])
    with pytest.raises(DataError, match=r"c\.jsonl:2: no passage"):
        LocalBm25(tmp_path / "c.jsonl").search("x", 1)


def test_recall_counts_texts_anywhere_and_where_the_question_finds_them(tmp_path: Path) -> None:
    backend = corpus(tmp_path, "Rome is the capital", "Oslo lies in the north", "a harbour")
    questions = [
        ("capital", ["ROME"]),
        ("north", ["Rome"]),
        ("north", ["Lima", "oslo"]),
        ("x", ["Kyiv"]),
    ]
    found = corpus_recall(backend, questions, Limits(top_k=1))
    assert found == {"n": 4, "somewhere": 3, "retrieved": 2}
    cut = corpus_recall(backend, questions, Limits(top_k=1, passage_chars=3))
    assert cut == {"n": 4, "somewhere": 3, "retrieved": 0}  # what is not shown does not help


@needs_mirror
@pytest.mark.parametrize(
    ("file", "somewhere"),
    [("bamboogle/test.jsonl", 92), ("open_qa/eval_2wiki_500.jsonl", 244),
     ("open_qa/eval_hotpotqa_500.jsonl", 180), ("open_qa/eval_musique_500.jsonl", 146)],
)  # fmt: skip
def test_recall_of_the_collected_corpus_is_that_of_its_readme(file: str, somewhere: int) -> None:
    backend = LocalBm25(SHARED / "search_corpus/corpus.jsonl")
    tasks = list(read_jsonl(SHARED / file))
    everything = "\n".join(f"{p.title}\n{p.text}" for p in backend.passages).lower()
    assert len(backend.passages) == 7918
    assert sum(t["meta"]["answer"].lower() in everything for t in tasks) == somewhere


# --- live services --------------------------------------------------------------------------------

WIKI = {
    "batchcomplete": True,
    "continue": {"gsroffset": 2, "continue": "gsroffset||"},
    "query": {
        "pages": [
            {"pageid": 9, "ns": 0, "title": "Second", "index": 2, "extract": "two"},
            {"pageid": 4, "ns": 0, "title": "First", "index": 1, "extract": "one"},
            {"pageid": 5, "ns": 0, "title": "Third", "index": 3},
        ]
    },
}
SEARX = {
    "query": "q", "number_of_results": 0, "corrections": [], "infoboxes": [], "suggestions": [],
    "answers": [{"answer": "42", "url": None, "template": "answer/legacy.html"}],
    "results": [{"url": "http://x", "title": "First", "content": "one", "engine": "e", "score": 1.0},
                {"url": "http://y", "title": "Second", "engine": "e"}],
    "unresponsive_engines": [["brave", "timeout"]],
}  # fmt: skip
GOOGLE = {
    "searchParameters": {"q": "q", "type": "search", "num": 15, "engine": "google"},
    "answerBox": {"title": "Box", "snippet": "boxed", "link": "http://z"},
    "organic": [{"title": "First", "link": "http://x", "snippet": "one", "position": 1},
                {"title": "Second", "link": "http://y", "position": 2}],
    "credits": 1,
}  # fmt: skip
QUICK = {"timeout": 0.4, "give_up_after": 0.6}


def backend_of(kind: str, url: str, **options: Any) -> Any:
    options = {**QUICK, **options}
    if kind == "wikipedia":
        return Wikipedia(f"{url}/w/api.php", **options)
    if kind == "searxng":
        return SearXng(url, **options)
    return Serper("secret", f"{url}/search", **options)


KINDS: dict[str, tuple[Any, list[tuple[str, str]], Any]] = {
    "wikipedia": (WIKI, [("First", "one"), ("Second", "two"), ("Third", "")], {"batchcomplete": True}),
    "searxng": (
        SEARX, [("Answer", "42"), ("First", "one"), ("Second", "")],
        {**SEARX, "answers": [], "results": [], "unresponsive_engines": []},
    ),
    "serper": (
        GOOGLE, [("Box", "boxed"), ("First", "one"), ("Second", "")],
        {"searchParameters": {}, "organic": [], "credits": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_services_answer_becomes_passages_best_first(kind: str) -> None:
    full, expected, empty = KINDS[kind]
    with json_server(lambda asked: full) as server:
        backend = backend_of(kind, server.url)
        assert [(p.title, p.text) for p in backend.search("who? & why", 5)] == expected
        assert [(p.title, p.text) for p in backend.search("q", 1)] == expected[:1]
        assert server.url in backend.describe()["url"] and "secret" not in str(backend.describe())
    with json_server(lambda asked: empty) as server:
        assert backend_of(kind, server.url).search("q", 5) == []


def test_each_service_is_asked_in_its_own_way() -> None:
    answers = {"/w/api.php": WIKI, "/search": SEARX}
    with json_server(
        lambda asked: GOOGLE if asked.method == "POST" else answers[asked.path]
    ) as server:
        for kind in KINDS:
            backend_of(kind, server.url).search("a & b", 7)
        wiki, searx, google = server.asked
    assert wiki.query["gsrsearch"] == "a & b" and wiki.query["gsrlimit"] == "7"
    assert "cahl/" in wiki.headers["User-Agent"]  # Wikimedia refuses clients without a name
    assert searx.query == {"q": "a & b", "format": "json", "language": "en"}
    assert google.body == {"q": "a & b", "num": 15} and google.headers["X-API-KEY"] == "secret"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fault",
    [None, (503, {"message": "later"}), (429, {}), (200, b"<html>"), (200, b'{"que'), (200, [1])],
)
def test_a_service_that_is_unavailable_is_asked_again(kind: str, fault: Any) -> None:
    full, expected, _ = KINDS[kind]
    left = [fault]
    with json_server(lambda asked: left.pop() if left else full) as server:
        found = backend_of(kind, server.url, give_up_after=5).search("q", 5)
        assert [(p.title, p.text) for p in found] == expected and len(server.asked) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [None, (500, {}), (200, b"[]")])
def test_a_service_that_stays_unavailable_is_an_error_not_an_empty_result(
    kind: str, fault: Any
) -> None:
    with json_server(lambda asked: fault) as server:
        with pytest.raises(SearchError, match="attempts"):
            backend_of(kind, server.url).search("q", 5)
        assert len(server.asked) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_an_error_at_once_with_the_services_words(kind: str, status: int) -> None:
    with json_server(lambda asked: (status, {"message": "Unauthorized."})) as server:
        with pytest.raises(SearchError, match=f"{status}.*Unauthorized") as caught:
            backend_of(kind, server.url).search("q", 5)
        assert len(server.asked) == 1 and "secret" not in str(caught.value)


def test_a_service_that_does_not_answer_in_time_is_given_up() -> None:
    def slow(asked: Asked) -> Any:
        time.sleep(1.5)
        return GOOGLE

    started = time.monotonic()
    with json_server(slow) as server, pytest.raises(SearchError, match="within the time allowed"):
        backend_of("serper", server.url, timeout=0.2, give_up_after=0.3).search("q", 5)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("maxlag", SearchError),
        ("ratelimited", SearchError),
        ("cirrussearch-too-busy-error", SearchError),
        ("cirrussearch-regex-syntax-error", QueryError),
        ("badvalue", SearchError),
    ],
)
def test_mediawiki_errors_come_with_status_200(code: str, error: type[Exception]) -> None:
    with json_server(lambda asked: {"error": {"code": code, "info": "why"}}) as server:
        with pytest.raises(error):
            backend_of("wikipedia", server.url).search("q", 5)


def test_no_result_because_no_engine_answered_is_an_error() -> None:
    down = {**SEARX, "answers": [], "results": [], "unresponsive_engines": [["google", "timeout"]]}
    with json_server(lambda asked: down) as server:
        with pytest.raises(SearchError, match="no engine answered: google timeout"):
            backend_of("searxng", server.url).search("q", 5)
    with json_server(lambda asked: {**SEARX, "answers": ["old form"]}) as server:
        assert backend_of("searxng", server.url).search("q", 1) == [Passage("Answer", "old form")]


def test_serper_without_a_key_says_where_to_put_it() -> None:
    with pytest.raises(SearchError, match=r"evaluate\.search\.key_env"):
        Serper(None)
