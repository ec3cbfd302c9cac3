"""One OpenAI-compatible endpoint over HTTP: completions, chat, models, LoRA adapters.

Every call is one attempt and says by its exception whether another one may help: `UnavailableError`
does (network, time-out, overload), `RefusedError` does not (the request itself is refused).
`with_retries` is the loop around one endpoint; `pool.ServerPool` is the one around several.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from cahl_core.errors import RolloutServerError
from cahl_core.rollouts.backoff import Backoff

T = TypeVar("T")

RETRIED = (408, 425, 429, 500, 502, 503, 504)
BUSY = (429, 503)
LOCAL = ("localhost", "127.0.0.1", "::1")
SHOWN = 400  # characters of a server's message


class UnavailableError(Exception):
    """No usable answer this time: asking again, here or elsewhere, may help.

    Attributes:
        retry_after: seconds the server asked to be left alone for, if it did.
        status: of the HTTP answer; 0 without one.
    """

    def __init__(self, what: str, *, retry_after: float | None = None, status: int = 0) -> None:
        super().__init__(what)
        self.retry_after = retry_after
        self.status = status

    @property
    def busy(self) -> bool:
        """Whether the server is alive and has too much to do."""
        return self.status in BUSY


class RefusedError(RolloutServerError):
    """The server refuses this request, whoever repeats it; carries its own words."""

    def __init__(self, what: str, hint: str = "", *, status: int = 0, message: str = "") -> None:
        super().__init__(what, hint)
        self.status = status
        self.message = message


class OpenAIClient:
    """Talks to one endpoint; safe to use from several threads.

    Args:
        url: ``http://host:port``, with or without ``/v1``.
        timeout: seconds for an answer; ``connect_timeout``: seconds for the connection.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 5.0,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._key = api_key
        self._timeout = (connect_timeout, timeout)
        self._own = threading.local()

    def models(self) -> list[dict[str, Any]]:
        """The cards of ``/v1/models``: the backbone's, then those of its adapters."""
        answer = self._call("GET", "/v1/models")
        cards = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(cards, list) or not all(isinstance(c, dict) for c in cards):
            raise UnavailableError(f"{self.url}/v1/models did not answer with a list of models")
        return cards

    def completions(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``/v1/completions``; the prompt may be text or, where the server reads them, token ids."""
        return self._choices("/v1/completions", body)

    def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> dict[str, Any]:
        """``/v1/chat/completions`` with any further fields of its body (``tools``, ``seed`` …)."""
        body = {"model": model, "messages": list(messages), **options}
        return self._choices("/v1/chat/completions", body)

    def load_adapter(self, name: str, path: str) -> None:
        """Loads a LoRA adapter from a directory that the server can read."""
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload_adapter(self, name: str) -> None:
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def _choices(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._call("POST", path, body)
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise UnavailableError(f"{self.url}{path} answered without choices")
        return answer

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        url = self.url + path
        response = send(self._session(), method, url, json=body, timeout=self._timeout)
        return _read(response, url)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = requests.Session()
            # a proxy for the outside does not know this machine's own servers
            session.trust_env = urlsplit(self.url).hostname not in LOCAL
            if self._key:
                session.headers["Authorization"] = f"Bearer {self._key}"
        return session


def send(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
    """One request, whatever its status.

    Raises:
        UnavailableError: no answer, or not the whole of one. RefusedError: it cannot be made at all.
    """
    try:
        return session.request(method, url, **options)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise UnavailableError(f"{url}: {_network_reason(error)}") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise UnavailableError(f"{url}: the connection broke off during the answer") from error
    except (requests.RequestException, ValueError) as error:
        raise RefusedError(f"{url}: no request can be made: {error}") from error


def with_retries(
    attempt: Callable[[], T], *, give_up_after: float, backoff: Backoff | None = None
) -> T:
    """Repeats ``attempt`` while it is `UnavailableError`, waiting longer each time.

    Raises:
        RolloutServerError: nothing came of it for ``give_up_after`` seconds. RefusedError: at once.
    """
    backoff, started, tries = backoff or Backoff(), time.monotonic(), 0
    while True:
        try:
            return attempt()
        except UnavailableError as error:
            pause = backoff.delay(tries, error.retry_after)
            tries += 1
            if time.monotonic() + pause - started > give_up_after:
                raise RolloutServerError(
                    f"no answer after {tries} attempts in {time.monotonic() - started:.0f} s: {error}",
                    "see whether the server runs and can be reached from here",
                ) from error
            time.sleep(pause)


def _read(response: requests.Response, url: str) -> Any:
    status = response.status_code
    if status >= 400:
        message = _message(response)
        said = f"{url} answered {status}: {message}"
        if status in RETRIED:
            raise UnavailableError(said, retry_after=retry_after(response), status=status)
        raise RefusedError(said, _advice(status), status=status, message=message)
    try:
        return response.json()
    except ValueError:
        if "json" in response.headers.get("Content-Type", ""):
            raise UnavailableError(f"{url} answered with broken JSON") from None
        return response.text  # vLLM answers a loaded adapter with a sentence


def _message(response: requests.Response) -> str:
    """The server's own words, from any of the forms in use."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip()[:SHOWN] or str(response.reason)
    for key in ("error", "detail", "message"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    return (body if isinstance(body, str) else str(body))[:SHOWN]


def retry_after(response: requests.Response) -> float | None:
    """Seconds; the form with a date is rare here and left to our own back-off."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _advice(status: int) -> str:
    if status in (401, 403):
        return "put the key into the variable that train.rollouts.api_key_variable names"
    return ""


def _network_reason(error: Exception) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return "no connection within the time allowed"
    if isinstance(error, requests.Timeout):
        return "no answer within the time allowed"
    if "refused" in str(error).lower():
        return "connection refused (nothing listens there)"
    if "resolve" in str(error).lower() or "name or service" in str(error).lower():
        return "the host name is not known"
    return f"the connection failed ({type(error).__name__})"
