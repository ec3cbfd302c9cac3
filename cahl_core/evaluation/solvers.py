"""Solvers over weights in this process: an agent that can also answer a plain conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from cahl_core.config import ModelSettings
from cahl_core.errors import ConfigError
from cahl_core.protocol.prompts import spoken_text
from cahl_core.protocol.templates import Turn, conversation, token_ids
from cahl_core.records import Message
from cahl_core.roles import Role, roles_of
from cahl_core.serving.agent import Agent


@runtime_checkable
class TextSolver(Protocol):
    """A model that answers a conversation in its own chat template and with no prompt of ours."""

    def complete(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, seeds: Sequence[str]
    ) -> list[str | None]:
        """One text per conversation, in order; ``None`` where the prompt leaves no room for one."""


class LocalSolver(Agent):
    """An `Agent` whose model also answers plain conversations.

    Args:
        team: loaded weights. bare: both roles of a hierarchical model are the backbone itself, so
            there is one model to ask.
    """

    def __init__(
        self,
        team: Any,
        settings: ModelSettings,
        *,
        bare: bool,
        plan_tokens: int,
        call_tokens: int,
        temperature: float,
    ) -> None:
        super().__init__(
            team.generate,
            team.policy.tokenizer,
            settings,
            plan_tokens=plan_tokens,
            call_tokens=call_tokens,
            temperature=temperature,
        )
        self.source = team  # what training's own rollouts sample from
        self._role: Role | None = None
        if bare or settings.form != "hierarchical":
            self._role = roles_of(settings.form)[0]

    def complete(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, seeds: Sequence[str]
    ) -> list[str | None]:
        """One text per conversation, ended by the end-of-turn token or ``max_tokens`` only.

        Raises:
            ConfigError: planner and executor are two models; neither answers whole conversations.
        """
        role = self._text_role()
        prompts = [
            token_ids(self.tokenizer, conversation(self.tokenizer, spoken(c)))
            for c in conversations
        ]
        room = self.settings.max_context - max_tokens
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
        texts: list[str | None] = [None] * len(prompts)
        if fitting:
            generated = self.generate(
                [prompts[i] for i in fitting],
                role,
                max_tokens=max_tokens,
                temperature=self.temperature,
                seeds=[f"{seeds[i]}/text" for i in fitting],
            )
            for i, samples in zip(fitting, generated, strict=True):
                texts[i] = samples[0].text
        return texts

    def _text_role(self) -> Role:
        """Whose weights answer plain conversations.

        Raises:
            ConfigError: nobody's.
        """
        if self._role is None:
            raise ConfigError(
                "a hierarchical model has a planner and an executor; neither was trained to answer "
                "a whole conversation in one text",
                "ask base, a flat model (low_only, single_level) or a server for texts",
            )
        return self._role


def spoken(messages: Sequence[Message]) -> list[Turn]:
    """A conversation as turns of text; calls of earlier turns are a line of it."""
    return [{"role": m.role, "content": spoken_text(m)} for m in messages]
