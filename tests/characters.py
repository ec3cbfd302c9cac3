"""The barest tokenizer, for tests that ask what is asked of a model and have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class CharacterTokenizer:
    """One token per character, and the barest chat template."""

    chat_template = "yes"
    added_tokens_decoder: Mapping[int, Any] = {}
    all_special_tokens: Sequence[str] = ("<|end|>",)

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"[{t['role']}]{t['content']}<|end|>" for t in turns)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


@dataclass
class Text:
    """A completion of as many tokens as it has characters."""

    text: str

    @property
    def token_ids(self) -> list[int]:
        return [0] * len(self.text)
