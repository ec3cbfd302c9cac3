"""What derived tasks are made of: usable tools, their gold calls, values seen per argument."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from cahl_core.datasets.names import words
from cahl_core.datasets.variation import usable
from cahl_core.records import ToolSpec, ToolTask

COMMON = {
    "a", "an", "and", "api", "at", "based", "by", "calculate", "check", "create", "data",
    "details", "find", "for", "from", "generate", "get", "given", "in", "information", "is",
    "location", "of", "on", "or", "retrieve", "search", "specific", "the", "their", "to",
    "using", "with",
}  # fmt: skip


@dataclass
class Catalogue:
    """Usable tools of the parent records, their gold calls, and the values seen per argument."""

    parents: dict[str, list[ToolTask]] = field(default_factory=lambda: defaultdict(list))
    tools: dict[str, ToolSpec] = field(default_factory=dict)
    calls: dict[str, list[tuple[ToolTask, dict[str, Any]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    seen: dict[tuple[str, str], list[Any]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, tasks: Sequence[ToolTask]) -> Catalogue:
        catalogue = cls()
        for task in tasks:
            for tool in task.tools:
                if usable(tool):
                    catalogue.tools.setdefault(tool.name, tool)
                    catalogue.parents[tool.name].append(task)
            for call, values in zip(task.calls, task.meta.get("resolved") or (), strict=False):
                if values is not None and call.name in catalogue.tools:
                    catalogue.calls[call.name].append((task, values))
                for name, value in (values or {}).items():
                    catalogue.seen[call.name, name].append(value)
        return catalogue

    @cached_property
    def names(self) -> list[str]:
        return sorted(self.tools)

    @cached_property
    def sharing(self) -> dict[str, list[str]]:
        """The tools of each topic word, in order."""
        index: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            for word in sorted(self.topics[name]):
                index[word].append(name)
        return index

    def related(self, wanted: Iterable[str], without: Collection[str]) -> list[str]:
        """Tools that share a topic word with ``wanted``, without those named."""
        found = {n for word in sorted(wanted) for n in self.sharing.get(word, ())}
        return sorted(found.difference(without))

    @cached_property
    def topics(self) -> dict[str, frozenset[str]]:
        return {name: topic(tool) for name, tool in self.tools.items()}


def topic(tool: ToolSpec) -> frozenset[str]:
    """Content words of a tool's name and description, without plural."""
    return topic_of(tool.name, tool.description)


@lru_cache(maxsize=65536)
def topic_of(name: str, description: str) -> frozenset[str]:
    """`topic` of a tool with this name and description."""
    text = words(name) + [w.strip(".,()").lower() for w in description.split()]
    return frozenset(w.rstrip("s") for w in text if len(w) > 2 and w not in COMMON)


def content_words(text: str) -> set[str]:
    """The words of a request that could be a tool's topic, as `topic` writes them."""
    found = (w.strip(".,?!'\"():[]").lower() for w in text.split())
    return {w.rstrip("s") for w in found if len(w) > 3 and w not in COMMON}
