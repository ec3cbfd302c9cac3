"""Decontamination: no training request may repeat a test question.

A user's text of at least five words that equals a test question's after normalising, or that shares a
run of ten words with one, is contaminated. Shared tool names are counted and reported; alone they are
no fault, since tests name tools after everyday functions.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.sources import Source
from cahl_core.errors import ConfigError, DataError
from cahl_core.files import read_jsonl
from cahl_core.records import ToolTask

GRAM = 10
EXACT_WORDS = 5  # shorter questions ("how are you") are equal by chance
IDS_LISTED = 50
JOIN = ", "


def normalise(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation.

    >>> normalise("What's 2+2,\\n please?")
    ('what', 's', '2', '2', 'please')
    """
    return tuple(re.findall(r"\w+", text.lower()))


def grams(words: Sequence[str]) -> Iterator[int]:
    """A 64-bit hash of every run of ten words."""
    import xxhash

    return (
        xxhash.xxh64_intdigest(" ".join(words[i : i + GRAM]).encode())
        for i in range(len(words) - GRAM + 1)
    )


@dataclass(frozen=True, slots=True)
class Overlap:
    """How one text repeats test questions, ``exact`` or ``ten_gram``, and of which benchmarks.

    ``benchmark`` joins the names where several hold the question (BFCL v4 keeps most of v3's).
    """

    benchmark: str
    how: str

    @property
    def benchmarks(self) -> list[str]:
        return self.benchmark.split(JOIN)

    def __str__(self) -> str:
        return f"{self.benchmark}: {self.how}"


def _joined(names: str | None, name: str) -> str:
    if names is None:
        return name
    return names if name in names.split(JOIN) else sys.intern(f"{names}{JOIN}{name}")


@dataclass
class Benchmarks:
    """The questions and tool names of all test sets, by name."""

    questions: Counter[str] = field(default_factory=Counter)
    exact: dict[tuple[str, ...], str] = field(default_factory=dict)
    ten_grams: dict[int, str] = field(default_factory=dict)
    tools: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, name: str, text: str) -> None:
        words = normalise(text)
        self.questions[name] += 1
        if len(words) >= EXACT_WORDS:
            self.exact[words] = _joined(self.exact.get(words), name)
        for gram in grams(words):
            self.ten_grams[gram] = _joined(self.ten_grams.get(gram), name)

    def overlap(self, text: str) -> Overlap | None:
        """How ``text`` repeats a question, exact before ten words in a row, or ``None``."""
        words = normalise(text)
        if words in self.exact:
            return Overlap(self.exact[words], "exact")
        shared = next((g for g in grams(words) if g in self.ten_grams), None)
        return None if shared is None else Overlap(self.ten_grams[shared], "ten_gram")

    def of_task(self, task: ToolTask) -> Overlap | None:
        """The first overlap of any user's text of the task."""
        found = (self.overlap(m.content) for m in task.messages if m.role == "user")
        return next(filter(None, found), None)

    def shared_tools(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Per benchmark the tool names that ``names`` has too."""
        own = set(names)
        return {name: sorted(own & tools) for name, tools in sorted(self.tools.items())}


def read_benchmarks(root: Path, sources: Sequence[Source]) -> tuple[Benchmarks, list[str]]:
    """The questions of every listed source that is fetched, and what could not be checked.

    Raises:
        ConfigError: a source that is no test set; DataError: a fetched one without questions.
    """
    found = Benchmarks()
    unchecked: list[str] = []
    for source in sources:
        folder = root / "data" / "raw" / source.name
        if not folder.is_dir():
            unchecked.append(f"{source.name} (not fetched)")
            continue
        for text, tools in _questions(folder, source, unchecked):
            found.add(source.name, text)
            found.tools[source.name].update(tools)
        if not found.questions[source.name]:
            raise DataError(f"{folder} holds no questions", "run `cahl fetch` again")
    return found, unchecked


def _questions(
    folder: Path, source: Source, unchecked: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """User texts with the tools offered beside them."""
    if source.format == "bfcl":
        yield from _bfcl(folder, unchecked)
        return
    format_ = source_format(folder, source)
    if format_ not in READERS:
        raise ConfigError(
            f"source '{source.name}' has format '{format_}', which holds no questions",
            "correct prepare.decontaminate",
        )
    for record in READERS[format_](folder, source.name, ReadLimits()):
        if "malformed" in record:
            unchecked.append(f"{record['id']} ({record['malformed']})")
        tools = [str(_name(t)) for t in record.get("tools") or []]
        for message in record.get("messages") or []:
            if message.get("role") == "user":
                yield str(message.get("content") or ""), tools


def source_format(folder: Path, source: Source) -> str:
    """The format of what lies in ``folder``: a mirror may have given records for upstream files."""
    from cahl_core.datasets.sources import read_origin

    return read_origin(folder, source).format


def _bfcl(folder: Path, unchecked: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Every user question of a BFCL wheel, those of unscored categories too."""
    data = folder / "bfcl_eval" / "data"
    files = sorted(data.glob("BFCL_v*_*.json"))
    files += sorted((data / "unused_datasets" / "question").glob("*.json"))
    for file in files:
        try:
            records = [r for r in read_jsonl(file) if isinstance(r, dict)]
        except DataError:  # format_sensitivity only lists variants of other questions
            unchecked.append(f"{file.name} (not JSON Lines)")
            continue
        for record in records:
            tools = [str(_name(t)) for t in record.get("function") or []]
            for text in _user_texts(record.get("question") or []):
                yield text, tools


def _name(tool: Any) -> Any:
    function = tool.get("function", tool) if isinstance(tool, dict) else {}
    return function.get("name") if isinstance(function, dict) else None


def _user_texts(turns: Iterable[Any]) -> Iterator[str]:
    for turn in turns:
        messages = turn if isinstance(turn, list) else [turn]
        for message in messages:
            if isinstance(message, dict) and message.get("role") == "user":
                yield str(message.get("content") or "")


def report(
    benchmarks: Benchmarks,
    unchecked: Sequence[str],
    contaminated: Sequence[tuple[str, str, Overlap]],
    tool_names: Iterable[str],
) -> dict[str, Any]:
    """The content of ``contamination.json``.

    Args:
        contaminated: source, id and overlap of every record that was set aside for it.
        tool_names: the names offered in the kept records.
    """
    shared = benchmarks.shared_tools(tool_names)
    found: dict[str, Any] = {}
    for name in sorted(benchmarks.questions):
        own = [(s, i, o.how) for s, i, o in contaminated if name in o.benchmarks]
        found[name] = {
            "questions": benchmarks.questions[name],
            "exact": sum(how == "exact" for _, _, how in own),
            "ten_gram": sum(how == "ten_gram" for _, _, how in own),
            "by_source": dict(sorted(Counter(s for s, _, _ in own).items())),
            "ids": sorted(f"{i} ({how})" for _, i, how in own)[:IDS_LISTED],
            "tool_names_shared": len(shared.get(name, ())),
            "tool_names": shared.get(name, [])[:IDS_LISTED],
        }
    return {
        "method": f"users' texts, lower case, words only; equal (from {EXACT_WORDS} words on), or "
        f"a run of {GRAM} words in common",
        "benchmarks": found,
        "not_checked": sorted(unchecked),
    }
