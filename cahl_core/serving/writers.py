"""Who writes an agent's texts: the seam between the order of texts (`agent`) and how one is made.

A writer makes the prompt of what it is asked for and has it completed: `EngineWriter` with an engine in
this process, `evaluation.endpoint_agent.ChatWriter` and
`evaluation.endpoint_native.NativeWriter` with a server's chat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cahl_core.config import ModelSettings
from cahl_core.protocol.forms import flat_prompt, openings, stops
from cahl_core.protocol.markers import neutralise
from cahl_core.protocol.parsing import TAGS
from cahl_core.protocol.prompts import (
    REQUEST_SYSTEM,
    Chat,
    executor_chat,
    executor_prompt,
    listed,
    planner_prompt,
    request_chat,
)
from cahl_core.protocol.rendering import Rendering
from cahl_core.records import SubTask
from cahl_core.roles import Role
from cahl_core.serving.results import Request
from cahl_core.train_config import Form


@dataclass(frozen=True, slots=True)
class Ask:
    """One text that is wanted.

    Attributes:
        seed: keys its draws.
        sub_task: what an executor is to carry out; ``None``: the text is about the whole request.
        feedback: earlier sub-tasks with their results, for an executor to read.
    """

    request: Request
    seed: str
    sub_task: SubTask | None = None
    feedback: tuple[tuple[SubTask, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What came of an `Ask`: a text and its cost in tokens, or why its prompt did not fit."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    too_long: str | None = None


class Writer(Protocol):
    """Completes prompts that it makes itself."""

    def write(self, asks: Sequence[Ask], role: Role, max_tokens: int) -> list[Written]:
        """One text per ask, in order, of at most ``max_tokens`` tokens.

        A prompt that leaves no room for its text is never cut: it is said in `Written.too_long`.
        """


class Generated(Protocol):
    """The part of `policy.engine.Completion` that is read."""

    @property
    def text(self) -> str: ...

    @property
    def token_ids(self) -> list[int]: ...


class Generate(Protocol):
    """`policy.engine.Engine.generate`, or an oracle in tests."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        role: Role,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[str] | None = None,
        stop: Sequence[str] = (),
        openings: Sequence[str] = (),
        on_finished: Callable[[int], None] | None = None,
        keep: bool = False,
    ) -> Sequence[Sequence[Generated]]: ...


class EngineWriter:
    """Prompts in the backbone's own chat template, completed by an engine, one batch per call."""

    def __init__(
        self, generate: Generate, tokenizer: Any, settings: ModelSettings, temperature: float
    ) -> None:
        self.generate = generate
        self.tokenizer = tokenizer
        self.settings = settings
        self.temperature = temperature

    def write(self, asks: Sequence[Ask], role: Role, max_tokens: int) -> list[Written]:
        """One text per ask; all that fit are decoded together."""
        form, room = self.settings.form, self.settings.max_context - max_tokens
        prompts = [self._prompt(ask, role) for ask in asks]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
        written = [self._too_long(role, len(prompt), max_tokens) for prompt in prompts]
        if not fitting:
            return written
        generated = self.generate(
            [prompts[i] for i in fitting],
            role,
            max_tokens=max_tokens,
            temperature=self.temperature,
            seeds=[asks[i].seed for i in fitting],
            stop=stops(form, role),
            openings=openings(form, role),
            keep=(role == "executor" and form == "hierarchical")
            or any(asks[i].request.continues for i in fitting),
        )
        for i, samples in zip(fitting, generated, strict=True):
            found = samples[0]
            written[i] = Written(found.text, len(prompts[i]), len(found.token_ids))
        return written

    def _prompt(self, ask: Ask, role: Role) -> list[int]:
        messages, tools = ask.request.messages, ask.request.tools
        form, rendering = self.settings.form, self.settings.tool_rendering
        if ask.sub_task is not None:
            return executor_prompt(self.tokenizer, ask.sub_task, tools, ask.feedback, rendering)
        if role == "planner":
            return planner_prompt(self.tokenizer, messages, tools, rendering)
        return flat_prompt(form, self.tokenizer, messages, tools, rendering)

    def _too_long(self, role: Role, length: int, max_tokens: int) -> Written:
        most = self.settings.max_context
        return Written(
            "",
            too_long=f"the {role}'s prompt has {length} tokens; max_context {most} leaves "
            f"{most - max_tokens} beside {max_tokens} for its text",
        )


def chat_of(ask: Ask, form: Form, rendering: Rendering) -> Chat:
    """What is asked as a conversation, where no tokenizer is at hand: our tags are broken up in what comes
    from data; a model's special tokens are not known here."""
    cleaned = partial(neutralise, markers=TAGS)
    listing = listed(ask.request.tools, rendering, cleaned)
    if ask.sub_task is not None:
        return executor_chat(ask.sub_task, ask.feedback, listing, cleaned)
    return request_chat(REQUEST_SYSTEM[form], ask.request.messages, listing, cleaned)
