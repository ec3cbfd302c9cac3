"""The real agent over a function that writes the texts: for tests of benchmarks, without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from characters import CharacterTokenizer, Text

from cahl_core.config import ModelSettings
from cahl_core.serving.agent import Agent
from cahl_core.train_config import Form

# (role, prompt, seed without its attempt's label) → text
Writer = Callable[[str, str, str], str]


def scripted_agent(write: Writer, form: Form = "hierarchical", max_context: int = 1 << 20) -> Agent:
    """An agent of the form whose every text is ``write(role, prompt, seed)``."""

    def generate(
        prompts: Sequence[Sequence[int]], role: str, *, seeds: Sequence[str], **_: Any
    ) -> list[list[Text]]:
        return [
            [Text(write(role, "".join(map(chr, prompt)), seed.rpartition("/")[0]))]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    settings = ModelSettings(max_context=max_context, form=form)
    return Agent(generate, CharacterTokenizer(), settings, plan_tokens=64, call_tokens=32)  # type: ignore[arg-type]
