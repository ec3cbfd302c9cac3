"""One server with OpenAI's chat completions, as an evaluation asks it.

Answers that do not come (network, overload, errors inside the server) are asked for again, each time
later, until nothing has come for ``give_up_after`` seconds. What the server refuses is an error with its
own words, except a prompt that it calls too long: that is an outcome of the item. The key is read from
an environment variable and is in no message, key or report.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cahl_core.errors import ConfigError, EvaluationError, PromptTooLongError, RolloutServerError
from cahl_core.evaluation.models_spec import EndpointOptions
from cahl_core.rollouts.client import OpenAIClient, RefusedError, UnavailableError, with_retries

T = TypeVar("T")
REFUSES_PROMPT = (400, 413, 422)
# how servers say that a prompt does not fit: OpenAI and vLLM, SGLang, llama.cpp, others
TOO_LONG = re.compile(
    r"maximum context length|context_length_exceeded|longer than the model's context|"
    r"exceeds? the (available|model's|maximum) context|(prompt|input)\b.{0,40}\btoo long|"
    r"exceeds the (maximum|max) number of (input )?tokens|input token count",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a server.

    Attributes:
        content: its text, ``""`` where it has none; ``reasoning`` what the server kept apart.
        tool_calls: as the server gave them, unchecked.
        ended_by: the stop text, if the server says which; ``None`` if it says that it was none;
            ``"?"`` if it says nothing.
    """

    content: str
    reasoning: str
    tool_calls: tuple[Any, ...]
    finish: str | None
    ended_by: str | None
    prompt_tokens: int
    completion_tokens: int


class Endpoint:
    """Asks one server; safe to use from several threads.

    Args:
        temperature: 0 is greedy; above, a seed is sent with every request.

    Raises:
        ConfigError: the variable for the key is not set.
    """

    def __init__(self, url: str, options: EndpointOptions, temperature: float) -> None:
        self.url = url
        self.options = options
        self.temperature = temperature
        self._key = _api_key(options.key_env)
        self._client = OpenAIClient(url, api_key=self._key, timeout=options.timeout)
        self._lock = threading.Lock()
        self._name = options.model
        self.tokens: tuple[int, int] | None = (0, 0)  # None once an answer came without counts

    @property
    def name(self) -> str:
        """The model as the server calls it; asked for where it serves one only.

        Raises:
            ConfigError: it serves several, and none was chosen.
        """
        with self._lock:
            if self._name is None:
                names = [str(card.get("id")) for card in self._ask(self._client.models)]
                if len(names) != 1:
                    raise ConfigError(
                        f"{self.url} serves {', '.join(names) or 'no model'}",
                        "choose one: URL?model=NAME",
                    )
                self._name = names[0]
            return self._name

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int,
        seed: str,
        *,
        stop: Sequence[str] = (),
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Reply:
        """The server's next message.

        Raises:
            PromptTooLongError: with the server's words. EvaluationError: it refuses the request.
            RolloutServerError: nothing came for ``give_up_after`` seconds.
        """
        body = self._body(max_tokens, seed, stop, tools)
        name = self.name
        reply = self._ask(lambda: _reply(self.url, self._client.chat(name, messages, **body)))
        with self._lock:
            if self.tokens is not None:
                known = reply.prompt_tokens + reply.completion_tokens > 0
                more = (reply.prompt_tokens, reply.completion_tokens)
                self.tokens = (
                    (self.tokens[0] + more[0], self.tokens[1] + more[1]) if known else None
                )
        return reply

    def sampling(self) -> dict[str, Any]:
        """What every request says beside its messages and bounds."""
        fixed: dict[str, Any] = {"temperature": self.temperature}
        if self.options.thinking == "off":
            fixed["chat_template_kwargs"] = {"enable_thinking": False}
        return {k: v for k, v in fixed.items() if k not in self.options.omitted}

    def _body(
        self, max_tokens: int, seed: str, stop: Sequence[str], tools: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        body = self.sampling() | {self.options.max_tokens_field: max_tokens}
        if self.temperature > 0:
            body["seed"] = int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16) >> 1
        if stop:
            body["stop"] = list(stop)
        if tools:
            body["tools"] = list(tools)
        return {k: v for k, v in body.items() if k not in self.options.omitted}

    def _ask(self, attempt: Callable[[], T]) -> T:
        try:
            return with_retries(attempt, give_up_after=self.options.give_up_after)
        except RefusedError as error:
            said = self._without_key(error.message or error.what)
            if error.status in REFUSES_PROMPT and TOO_LONG.search(said):
                raise PromptTooLongError(f"the server says: {said}") from None
            where = f"{self.url} answered {error.status}: {said}" if error.status else said
            raise EvaluationError(where, self._advice(error.status)) from None
        except RolloutServerError as error:
            raise RolloutServerError(
                self._without_key(error.what),
                f"{error.hint}; what was answered is kept: run the same command again to go on",
            ) from None

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text

    def _advice(self, status: int) -> str:
        if status in (401, 403) and self.options.key_env is None:
            return "name the environment variable that holds the key: URL?key_env=VARIABLE"
        if status in (401, 403):
            return f"is the key in {self.options.key_env} the right one for this server?"
        if status == 404:
            return "is the model's name right? URL?model=NAME"
        return "a field that this server refuses is left out by URL?omit=FIELD,FIELD"


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} (key_env) is not set or empty",
            f"export {variable}=… before the evaluation",
        )
    if not key.isascii() or len(key.split()) > 1:
        raise ConfigError(
            f"what {variable} (key_env) holds can be no key: it has spaces or special characters",
            f"export {variable}=… with the key only",
        )
    return key


def _reply(url: str, answer: Mapping[str, Any]) -> Reply:
    """The first choice; an answer that has none of the declared form is asked for again."""
    choice = answer["choices"][0] if answer["choices"] else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        raise UnavailableError(f"{url} answered with a choice that holds no message")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UnavailableError(f"{url} answered with tool_calls that are no list")
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return Reply(
        _text(message.get("content")),
        _text(message.get("reasoning_content") or message.get("reasoning")),
        tuple(calls),
        choice.get("finish_reason"),
        _ended_by(choice),
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _text(content: Any) -> str:
    """Text, or the text parts of a list of parts."""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, Mapping)]
        return writable("".join(p for p in parts if isinstance(p, str)))
    return writable(content) if isinstance(content, str) else ""


def writable(text: str) -> str:
    """``text`` with U+FFFD for halves of surrogate pairs, which JSON may hold and no file can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _ended_by(choice: Mapping[str, Any]) -> str | None:
    for key in ("stop_reason", "matched_stop"):  # vLLM, SGLang; a number is a token's id
        if key in choice:
            return choice[key] if isinstance(choice[key], str) else None
    return "?"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
