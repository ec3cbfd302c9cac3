"""BFCL items as benchmarks hand them out, and what is said of each edition's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.errors import EvaluationError
from cahl_core.evaluation.bfcl.formulas import Edition
from cahl_core.evaluation.bfcl.schemas import tool
from cahl_core.evaluation.core import Item
from cahl_core.files import sha256
from cahl_core.records import Message, ToolSpec

# Labels that no answer can meet, or only a degenerate one (an empty HashMap for java_64): lists of mixed
# types, empty lists of accepted values, gold parameters outside the document. They stay in every score.
UNANSWERABLE: Mapping[str, tuple[str, ...]] = {
    "v3": (
        "java_36", "java_64", "java_65", "live_simple_106-63-0", "live_simple_112-68-0",
        "live_multiple_862-181-3", "live_multiple_964-207-0",
    ),
    "v4": (
        "simple_java_36", "simple_java_64", "simple_java_65", "live_simple_106-63-0",
        "live_simple_112-68-0", "live_multiple_862-181-3", "live_multiple_964-207-0",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BfclEntry:
    """What a benchmark keeps of an item: the request, and the accepted answers for people to read."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    gold: Any


@dataclass(frozen=True, slots=True)
class Loaded:
    """The items of one load, and where their data lies.

    Attributes:
        counts: items of each category.
        data: file within the package → sha256, all that a score depends on.
    """

    items: list[Item]
    counts: dict[str, int]
    data: dict[str, str]


def loaded(reply: Mapping[str, Any], edition: Edition, wheel: Path, shown: Any = None) -> Loaded:
    """A worker's reply as items.

    Args:
        shown: whatever else a model's texts depend on.

    Raises:
        EvaluationError: the package is another version.
    """
    check_version(reply["version"], edition, wheel)
    items = [_item(record, shown) for record in reply["items"]]
    counts: dict[str, int] = {}
    for item in items:
        counts[item.category] = counts.get(item.category, 0) + 1
    return Loaded(items, counts, {name: sha256(wheel / name) for name in reply["files"]})


def check_version(found: str, edition: Edition, wheel: Path) -> None:
    """Raises an `EvaluationError` if the package is another version."""
    if found != edition.prefix:
        raise EvaluationError(
            f"{wheel} is {found}, not {edition.prefix}",
            f"source bfcl-{edition.name} is needed: cahl fetch",
        )


def checksums(wheel: Path, files: Sequence[str]) -> dict[str, str]:
    """SHA-256 of files of the package's data."""
    return {f: sha256(wheel / "bfcl_eval" / "data" / f) for f in files}


def _item(record: Mapping[str, Any], shown: Any) -> Item:
    where = f"BFCL item {record['id']}"
    messages = tuple(Message.from_json(m, where) for m in record["messages"])
    tools = tuple(tool(f) for f in record["functions"])
    seen: dict[str, Any] = {"messages": [m.to_json() for m in messages]}
    # with a prompt of the package's the documents are in the messages
    seen |= {"tools": [t.to_json() for t in tools]} if shown is None else {"settings": shown}
    return Item(record["id"], record["category"], seen, BfclEntry(messages, tools, record["gold"]))


def ceiling(edition: Edition, counts: Mapping[str, int], categories: Sequence[str]) -> float:
    """Share of the items of ``categories`` whose label an ordinary answer can meet."""
    total = sum(counts[c] for c in categories)
    lost = sum(name.rsplit("_", 1)[0] in categories for name in UNANSWERABLE[edition.name])
    return 1 - lost / total
