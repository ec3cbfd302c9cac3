"""One tool, ``Search(query)``: what answers it, how much of it a model sees, and how often it may ask.

A backend finds passages; `web_search` has those that need a network. A session is one question's use of
a backend: an environment of the agent, in every form. What the model does wrong is a result that it
reads; what goes wrong with the backend is a `SearchError`, which no model sees and no score holds.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from cahl_core.call_schema import schema_fault
from cahl_core.datasets.references import resolve
from cahl_core.errors import DataError, EvaluationError, StageInputError
from cahl_core.files import read_jsonl, sha256
from cahl_core.records import Plan, ToolCall, ToolSpec

SEARCH = ToolSpec(
    "Search",
    "Searches for passages about a query.",
    {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to look for."}},
        "required": ["query"],
    },
)
WORD = r"(?u)\b\w+\b"  # single letters too: Malcolm X, vitamin C
MAX_QUERY = 300  # characters; what Wikipedia's search accepts, the same for every backend


class SearchError(EvaluationError):
    """The backend failed, also after retries: neither a result nor a score."""


class QueryError(Exception):
    """The backend cannot read this query: the model's doing, and what it reads."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One thing found."""

    title: str
    text: str


class SearchBackend(Protocol):
    """Finds passages."""

    def search(self, query: str, count: int) -> list[Passage]:
        """At most ``count`` passages, best first; none is a result like any other.

        Raises:
            SearchError: the backend failed. QueryError: it cannot read the query.
        """

    def describe(self) -> dict[str, Any]:
        """What the results depend on, as JSON: kind, address, versions; no key, no time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a model gets.

    Attributes:
        top_k: passages per search. passage_chars: characters of a passage's text that are shown.
        max_calls: calls per question, those that were not valid included.
    """

    top_k: int = 3
    passage_chars: int = 600
    max_calls: int = 4

    def to_json(self) -> dict[str, int]:
        return {
            "top_k": self.top_k,
            "passage_chars": self.passage_chars,
            "max_calls": self.max_calls,
        }


class SearchSession:
    """One question's searches; a `serving.results.Environment`.

    The first call of a step is carried out, the others are told that they were not, as is every call
    after the last allowed one. References to earlier results are replaced by their values where they
    can be.
    """

    def __init__(self, backend: SearchBackend, limits: Limits) -> None:
        self.backend = backend
        self.limits = limits
        self.used = 0
        self._results: list[Any] = []

    def __call__(self, plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        """The result of the step's call, a list of results where it made several."""
        # texts outside the grammar are not reported here, and keep their numbers
        self._results += [None] * (number - len(self._results))
        results = [self._answer(call) for call in calls[:1]]
        results += [_refusal("only the first call of a step is carried out") for _ in calls[1:]]
        result = results[0] if len(results) == 1 else results or None
        self._results.append(results[0] if results else None)
        return result

    def _answer(self, call: ToolCall) -> Any:
        if self.used >= self.limits.max_calls:
            return _refusal(f"no search is left: {self.limits.max_calls} are allowed per question")
        self.used += 1
        arguments = resolve(call, self._results, SEARCH.parameters)
        call = call if arguments is None else ToolCall(call.name, arguments)
        if fault := schema_fault(call, [SEARCH]):
            return _refusal(f"invalid call: {fault}")
        query = " ".join(call.arguments["query"].split())
        if not query or len(query) > MAX_QUERY:
            return _refusal(f"the query has {len(query)} characters, 1 to {MAX_QUERY} are allowed")
        try:
            found = self.backend.search(query, self.limits.top_k)
        except QueryError as error:
            return _refusal(str(error))
        return [
            _shown(passage, self.limits.passage_chars) for passage in found[: self.limits.top_k]
        ]


def _refusal(why: str) -> dict[str, str]:
    return {"error": why}


def was_searched(result: Any) -> bool:
    """Whether the result of one call is what a search found."""
    return isinstance(result, list)


def _shown(passage: Passage, characters: int) -> dict[str, str]:
    return {"title": passage.title, "text": shortened(passage.text, characters)}


def shortened(text: str, characters: int) -> str:
    """``text`` with single spaces, cut after its last whole word if it is longer.

    >>> shortened("one  two three", 9), shortened("one two", 7)
    ('one two …', 'one two')
    """
    text = " ".join(text.split())
    if len(text) <= characters:
        return text
    head = text[: characters - 1]
    return (head[: head.rfind(" ")] if " " in head else head).rstrip() + " …"


class LocalBm25:
    """BM25 over a file of passages; the same results everywhere, ties in the file's order.

    Args:
        corpus: JSON Lines of ``{"title", "text"}``, such as that of source ``search_corpus``.

    Raises:
        StageInputError: the file is not there, when it is first needed. DataError: a line of it.
    """

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus

    @cached_property
    def passages(self) -> list[Passage]:
        """All passages, in the file's order."""
        if not self.corpus.is_file():
            raise StageInputError(
                f"{self.corpus} does not exist",
                "fetch source search_corpus, or set evaluate.search.corpus to your own passages",
            )
        return [
            _passage(record, f"{self.corpus}:{number}")
            for number, record in enumerate(read_jsonl(self.corpus), 1)
        ]

    @cached_property
    def digest(self) -> str:
        """sha256 of the file."""
        return sha256(self.corpus)

    def search(self, query: str, count: int) -> list[Passage]:
        import numpy as np

        index = self._index
        words = [w for w in _words([query])[0] if w in index.vocab_dict]
        if not words:
            return []
        scores = index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:count]
        return [self.passages[i] for i in best if scores[i] > 0]

    def describe(self) -> dict[str, Any]:
        _ = self.passages
        return {
            "backend": "local",
            "ranking": f"BM25 of bm25s {importlib.metadata.version('bm25s')}, k1=1.5, b=0.75",
            "corpus": self.corpus.name,
            "corpus_sha256": self.digest,
            "passages": len(self.passages),
        }

    @cached_property
    def _index(self) -> Any:
        import bm25s

        index = bm25s.BM25(k1=1.5, b=0.75)
        index.index(_words([f"{p.title} {p.text}" for p in self.passages]), show_progress=False)
        return index


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s

    words: list[list[str]] = bm25s.tokenize(
        texts, token_pattern=WORD, stopwords="en", return_ids=False, show_progress=False
    )
    return words


def _passage(record: Any, where: str) -> Passage:
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise DataError(f"{where}: no passage", 'a line is {"title": text, "text": text}')
    return Passage(str(record.get("title") or ""), record["text"])


def corpus_recall(
    backend: LocalBm25, questions: Sequence[tuple[str, Sequence[str]]], limits: Limits
) -> dict[str, int]:
    """How often the corpus can help at all.

    Args:
        questions: each with its accepted answers.

    Returns:
        ``n``; ``somewhere``: questions with an answer's text, without case, anywhere in the corpus;
        ``retrieved``: with it in what a search for the question itself shows.
    """
    everything = _folded(backend.passages)
    shown = [
        [Passage(p.title, shortened(p.text, limits.passage_chars)) for p in found]
        for found in (backend.search(question, limits.top_k) for question, _ in questions)
    ]
    return {
        "n": len(questions),
        "somewhere": sum(_holds(everything, golds) for _, golds in questions),
        "retrieved": sum(
            _holds(_folded(found), golds)
            for found, (_, golds) in zip(shown, questions, strict=True)
        ),
    }


def _holds(text: str, golds: Sequence[str]) -> bool:
    return any(gold.lower() in text for gold in golds)


def _folded(passages: Sequence[Passage]) -> str:
    return "\n".join(f"{p.title}\n{p.text}" for p in passages).lower()
