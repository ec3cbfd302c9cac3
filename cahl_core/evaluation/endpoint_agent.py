"""Servers as models to evaluate: an agent whose texts come over HTTP, several requests at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import PromptTooLongError
from cahl_core.evaluation.as_finished import as_finished
from cahl_core.evaluation.endpoint import Endpoint, Reply
from cahl_core.evaluation.endpoint_native import NativeWriter, wire_messages
from cahl_core.evaluation.local_models import COUNTERS, prompt_facts
from cahl_core.evaluation.model_keys import ENDPOINT, code_digest
from cahl_core.evaluation.models_spec import EndpointOptions, ModelSpec
from cahl_core.files import digest
from cahl_core.protocol.forms import stops
from cahl_core.protocol.rendering import Rendering
from cahl_core.records import Message
from cahl_core.roles import Role
from cahl_core.serving.agent import WritingAgent
from cahl_core.serving.results import AgentResult, Environment, Request
from cahl_core.serving.writers import Ask, Writer, Written, chat_of
from cahl_core.train_config import Form

NOTES = (
    "The server's URL and the model's name are all that is known of the weights.",
    "Servers apply their own chat template and their own limit of context.",
)
STOP_NOTE = (
    "Texts end at the stop texts; where the server strips one, the tag that is open is closed again, "
    "also after a text that ended without it unless the server says what ended it."
)
NATIVE_NOTE = (
    "Tool names are sent with '_' for characters that OpenAI's form does not allow; schemas are sent as "
    "JSON Schema."
)


class ChatWriter:
    """Our own prompts as chat messages; the server templates them."""

    def __init__(self, endpoint: Endpoint, form: Form, rendering: Rendering) -> None:
        self.endpoint = endpoint
        self.form = form
        self.rendering = rendering

    def write(self, asks: Sequence[Ask], role: Role, max_tokens: int) -> list[Written]:
        """One text per ask, one after the other."""
        return [self._written(ask, role, max_tokens) for ask in asks]

    def _written(self, ask: Ask, role: Role, max_tokens: int) -> Written:
        chat, ends = chat_of(ask, self.form, self.rendering), stops(self.form, role)
        messages = [{"role": "system", "content": chat.system}, *chat.turns]
        try:
            reply = self.endpoint.chat(messages, max_tokens, ask.seed, stop=ends)
        except PromptTooLongError as error:
            return Written("", too_long=f"the {role}'s prompt: {error.what}")
        return Written(closed(reply, ends), reply.prompt_tokens, reply.completion_tokens)


def closed(reply: Reply, ends: Sequence[str]) -> str:
    """A reply's text with the closing tag that stopped it, which many servers strip.

    Where the server says what stopped it, that is believed; else the tag among ``ends`` that is open
    is closed, if the text was not cut by the bound on tokens.
    """
    text = reply.content
    if reply.finish != "stop" or reply.ended_by is None:
        return text
    if reply.ended_by in ends:
        return text if text.endswith(reply.ended_by) else text + reply.ended_by
    for end in ends:
        if text.rfind(end.replace("</", "<")) > text.rfind(end):
            return text + end
    return text


class EndpointAgent:
    """The form's roles behind one server; each request goes its own way.

    Args:
        concurrency: requests at a time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        writer: Writer,
        form: Form,
        *,
        plan_tokens: int,
        call_tokens: int,
        concurrency: int,
    ) -> None:
        self.endpoint = endpoint
        self.concurrency = concurrency
        self._agent = WritingAgent(writer, form, plan_tokens=plan_tokens, call_tokens=call_tokens)
        self._one_environment = threading.Lock()

    @property
    def form(self) -> Form:
        return self._agent.form

    def run(
        self,
        requests: Sequence[Request],
        on_result: Callable[[int, AgentResult], None] | None = None,
    ) -> list[AgentResult]:
        """One result per request, in order; ``on_result`` is called in this thread.

        Environments are asked one at a time, from other threads.

        Raises:
            EvaluationError, RolloutServerError: as of `Endpoint.chat`; what was finished has been
                reported before.
        """
        results: dict[int, AgentResult] = {}
        jobs = [partial(self._one, request) for request in requests]
        for i, result in as_finished(jobs, self.concurrency):
            results[i] = result
            if on_result is not None:
                on_result(i, result)
        return [results[i] for i in range(len(requests))]

    def complete(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, seeds: Sequence[str]
    ) -> list[str | None]:
        """One text per conversation, in order; ``None`` where the server calls it too long."""
        texts: dict[int, str | None] = {}
        jobs = [
            partial(self._text, conversation, max_tokens, f"{seed}/text")
            for conversation, seed in zip(conversations, seeds, strict=True)
        ]
        for i, text in as_finished(jobs, self.concurrency):
            texts[i] = text
        return [texts[i] for i in range(len(conversations))]

    def _one(self, request: Request) -> AgentResult:
        environment = request.results
        if environment is not None:
            request = replace(request, results=self._locked(environment))
        (result,) = self._agent.run([request])
        return result

    def _locked(self, environment: Environment) -> Environment:
        def asked(*arguments: Any) -> Any:
            with self._one_environment:
                return environment(*arguments)

        return asked

    def _text(self, messages: Sequence[Message], max_tokens: int, seed: str) -> str | None:
        try:
            return self.endpoint.chat(wire_messages(messages, {}), max_tokens, seed).content
        except PromptTooLongError:
            return None


class EndpointModel:
    """A model behind a server; nothing is sent before it is asked for something."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        assert isinstance(spec.options, EndpointOptions)
        self.label = spec.label
        self.spec = spec
        self.options = spec.options
        self._settings = settings
        self._endpoint = Endpoint(spec.place, spec.options, settings.evaluate.temperature)

    @property
    def form(self) -> Form:
        return "low_only" if self.options.form == "native" else self.options.form

    @property
    def completes(self) -> bool:
        return True

    def key(self) -> str:
        """Digest of what is asked and how; of the weights only the URL and the name are known.

        Raises:
            ConfigError: no model was named, and the server serves several.
        """
        evaluate = self._settings.evaluate
        return digest(
            {
                "url": self.spec.place,
                "name": self._endpoint.name,
                "form": self.options.form,
                "rendering": self._settings.model.tool_rendering,
                "tokens": [evaluate.plan_tokens, evaluate.call_tokens],
                "sampling": self._endpoint.sampling(),
                "omit": sorted(self.options.omitted),
                "code": code_digest(ENDPOINT),
            }
        )

    def facts(self) -> dict[str, Any]:
        """What a report says of the model, as JSON; the key is not in it."""
        evaluate, native = self._settings.evaluate, self.options.form == "native"
        return {
            "kind": "endpoint",
            "form": self.form,
            "native": native,
            "url": self.spec.place,
            "backbone": self._endpoint.name,
            "revision": None,
            "dtype": None,
            "tool_rendering": None if native else self._settings.model.tool_rendering,
            "prompts": {} if native else prompt_facts(self.form),
            "decoding": {
                **self._endpoint.sampling(),
                "plan_tokens": evaluate.plan_tokens,
                "call_tokens": evaluate.call_tokens,
                "omitted": sorted(self.options.omitted),
            },
            "notes": [*NOTES, NATIVE_NOTE if native else STOP_NOTE],
        }

    def solver(self) -> EndpointAgent:
        evaluate, rendering = self._settings.evaluate, self._settings.model.tool_rendering
        writer: Writer = (
            NativeWriter(self._endpoint)
            if self.options.form == "native"
            else ChatWriter(self._endpoint, self.form, rendering)
        )
        return EndpointAgent(
            self._endpoint,
            writer,
            self.form,
            plan_tokens=evaluate.plan_tokens,
            call_tokens=evaluate.call_tokens,
            concurrency=self.options.concurrency,
        )

    def usage(self) -> dict[str, float | None]:
        """Tokens as the server counts them; ``None`` if an answer came without a count."""
        tokens = self._endpoint.tokens
        counts = (None, None) if tokens is None else (float(tokens[0]), float(tokens[1]))
        return dict(zip(COUNTERS, (None, None, *counts), strict=True))

    def close(self) -> None:
        """Nothing is held."""
