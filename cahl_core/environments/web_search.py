"""Search backends over a network: Wikipedia, a SearXNG instance, Google by serper.dev.

Each call is tried again while the service is merely unavailable, and is a `SearchError` in the end. An
answer without results is a result. What a live service finds changes with time: records of different
days are not the same test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

import cahl_core
from cahl_core.environments.search import Passage, QueryError, SearchError
from cahl_core.errors import RolloutServerError
from cahl_core.rollouts.client import (
    LOCAL,
    RETRIED,
    RefusedError,
    UnavailableError,
    retry_after,
    send,
    with_retries,
)

WIKIPEDIA = "https://en.wikipedia.org/w/api.php"
SERPER = "https://google.serper.dev/search"
SHOWN = 300  # characters of a service's message
OVERLOADED = (
    "maxlag",
    "ratelimited",
    "readonly",
    "internal_api_error",
    "too-busy",
    "backend-error",
)


class JsonService:
    """One HTTP service that answers with JSON objects.

    Args:
        timeout: seconds for one answer. give_up_after: seconds for all attempts at a query together.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20.0,
        give_up_after: float = 120.0,
        hint: str = "",
    ) -> None:
        self.name, self.url, self.hint = name, url, hint
        self._timeout, self._patience = timeout, give_up_after
        self._session = requests.Session()
        # a proxy for the outside does not know this machine's own servers
        self._session.trust_env = urlsplit(url).hostname not in LOCAL
        self._session.headers.update(
            {
                "User-Agent": f"cahl/{cahl_core.__version__} (evaluation of tool use)",
                **(headers or {}),
            }
        )

    def ask(self, method: str, check: Any, **options: Any) -> dict[str, Any]:
        """The answer's object after ``check``, which raises `UnavailableError` to ask again.

        Raises:
            SearchError: nothing came of it. QueryError: from ``check``.
        """
        try:
            return with_retries(
                lambda: self._attempt(method, check, options), give_up_after=self._patience
            )
        except RolloutServerError as error:
            raise SearchError(f"{self.name}: {error.what}", error.hint or self.hint) from error

    def _attempt(self, method: str, check: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        response = send(self._session, method, self.url, timeout=self._timeout, **options)
        answer = self._read(response)
        check(answer)
        return answer

    def _read(self, response: requests.Response) -> dict[str, Any]:
        said = f"{self.url} answered {response.status_code}: {response.text.strip()[:SHOWN]}"
        if response.status_code in RETRIED:
            raise UnavailableError(said, retry_after=retry_after(response))
        if response.status_code >= 400:
            raise RefusedError(said, self.hint, status=response.status_code)
        try:
            answer = response.json()
        except ValueError:
            raise UnavailableError(f"{said} (no JSON)") from None
        if not isinstance(answer, dict):
            raise UnavailableError(f"{said} (no JSON object)")
        return answer


class Wikipedia:
    """Full-text search of a MediaWiki, and the opening of each page found (extension TextExtracts)."""

    MOST = 20  # pages whose openings one request gives

    def __init__(self, url: str = WIKIPEDIA, **options: Any) -> None:
        self._service = JsonService("Wikipedia", url, **options)

    def search(self, query: str, count: int) -> list[Passage]:
        parameters = {
            "action": "query", "format": "json", "formatversion": "2", "generator": "search",
            "gsrsearch": query, "gsrlimit": str(min(count, self.MOST)), "prop": "extracts",
            "exintro": "1", "explaintext": "1", "exlimit": "max",
        }  # fmt: skip
        answer = self._service.ask("GET", _check_mediawiki, params=parameters)
        pages = (answer.get("query") or {}).get("pages") or []  # no query at all: nothing found
        ordered = sorted(pages, key=lambda page: page.get("index", 0))
        return [Passage(str(p.get("title", "")), str(p.get("extract") or "")) for p in ordered][
            :count
        ]

    def describe(self) -> dict[str, Any]:
        return {"backend": "wikipedia", "url": self._service.url}


def _check_mediawiki(answer: Mapping[str, Any]) -> None:
    """MediaWiki says with status 200 what went wrong."""
    error = answer.get("error")
    if not error:
        return
    code = str(error.get("code", "")) if isinstance(error, dict) else str(error)
    said = str(error.get("info", ""))[:SHOWN] if isinstance(error, dict) else ""
    if any(word in code for word in OVERLOADED):
        raise UnavailableError(f"MediaWiki: {code}: {said}")
    if code.startswith("cirrussearch-"):
        raise QueryError("the search engine cannot read this query; use plain words")
    raise RefusedError(
        f"MediaWiki: {code}: {said}", "see whether evaluate.search.url is an api.php"
    )


class SearXng:
    """A SearXNG instance with the format ``json`` allowed in its settings."""

    def __init__(self, url: str, **options: Any) -> None:
        address = url.rstrip("/").removesuffix("/search") + "/search"
        hint = "allow json under search.formats in the instance's settings.yml"
        self._service = JsonService("SearXNG", address, hint=hint, **options)

    def search(self, query: str, count: int) -> list[Passage]:
        answer = self._service.ask(
            "GET", _check_searxng, params={"q": query, "format": "json", "language": "en"}
        )
        found = [
            Passage("Answer", text) for a in answer.get("answers") or [] if (text := _words_of(a))
        ]
        found += [
            Passage(str(r.get("title") or ""), str(r.get("content") or ""))
            for r in answer.get("results") or []
        ]
        return found[:count]

    def describe(self) -> dict[str, Any]:
        return {"backend": "searxng", "url": self._service.url}


def _words_of(answer: Any) -> str:
    """Instant answers are texts in older versions, objects in newer ones."""
    return str(answer.get("answer") or "") if isinstance(answer, dict) else str(answer or "")


def _check_searxng(answer: Mapping[str, Any]) -> None:
    """No result because the engines behind it did not answer is no result of the query."""
    down = answer.get("unresponsive_engines") or []
    if down and not answer.get("results") and not answer.get("answers"):
        names = ", ".join(" ".join(map(str, e)) if isinstance(e, list) else str(e) for e in down)
        raise UnavailableError(f"SearXNG: no engine answered: {names[:SHOWN]}")


class Serper:
    """Google by serper.dev, the service that ToolRL searched with; the answer box comes first.

    Args:
        key: of the service; sent in a header, never kept in records.

    Raises:
        SearchError: there is no key.
    """

    RESULTS = 15  # asked for, as ToolRL

    def __init__(self, key: str | None, url: str = SERPER, **options: Any) -> None:
        hint = "put a key into the environment variable that evaluate.search.key_env names"
        if not key:
            raise SearchError("serper.dev needs a key", hint)
        self._service = JsonService(
            "serper.dev", url, headers={"X-API-KEY": key}, hint=hint, **options
        )

    def search(self, query: str, count: int) -> list[Passage]:
        answer = self._service.ask(
            "POST", lambda _: None, json={"q": query, "num": max(count, self.RESULTS)}
        )
        box = answer.get("answerBox") or {}
        text = box.get("answer") or box.get("snippet")
        found = [Passage(str(box.get("title") or ""), str(text))] if text else []
        found += [
            Passage(str(r.get("title") or ""), str(r.get("snippet") or ""))
            for r in answer.get("organic") or []
        ]
        return found[:count]

    def describe(self) -> dict[str, Any]:
        return {"backend": "serper", "url": self._service.url}
