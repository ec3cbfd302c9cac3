"""Near-equal texts: duplicates among requests, and overlap with the questions of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahl_core.errors import DataError
from cahl_core.files import read_jsonl

GRAM = 10
EXACT_WORDS = 5  # shorter questions ("how are you") are equal by chance


def normalise(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation.

    >>> normalise("What's 2+2,\\n please?")
    ('what', 's', '2', '2', 'please')
    """
    return tuple(re.findall(r"\w+", text.lower()))


def grams(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All runs of ten words."""
    return (words[i : i + GRAM] for i in range(len(words) - GRAM + 1))


@dataclass
class Benchmark:
    """The questions that no training request may repeat."""

    questions: int = 0
    exact: set[tuple[str, ...]] = field(default_factory=set)
    ten_grams: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, text: str) -> None:
        words = normalise(text)
        self.questions += 1
        if len(words) >= EXACT_WORDS:
            self.exact.add(words)
        self.ten_grams.update(grams(words))

    def overlap(self, text: str) -> str | None:
        """How ``text`` repeats a question: ``"exact"``, the shared ten words, or ``None``."""
        words = normalise(text)
        if words in self.exact:
            return "exact"
        shared = next((g for g in grams(words) if g in self.ten_grams), None)
        return " ".join(shared) if shared else None


def read_bfcl(folder: Path) -> Benchmark:
    """Every user question of the BFCL v3 wheel, those of unscored categories too.

    Raises:
        DataError: the folder has no question file.
    """
    benchmark = Benchmark()
    files = sorted((folder / "bfcl_eval" / "data").glob("BFCL_v3_*.json"))
    files += sorted((folder / "bfcl_eval" / "data" / "unused_datasets" / "question").glob("*.json"))
    if not files:
        raise DataError(f"{folder} holds no BFCL questions", "run `cahl fetch` again")
    for file in files:
        for record in read_jsonl(file):
            for text in _user_texts(record.get("question") or []):
                benchmark.add(text)
    return benchmark


def _user_texts(turns: Iterable[Any]) -> Iterator[str]:
    for turn in turns:
        messages = turn if isinstance(turn, list) else [turn]
        for message in messages:
            if isinstance(message, dict) and message.get("role") == "user":
                yield str(message.get("content") or "")
