"""A report as blocks, so that Markdown, HTML and the console show the same content.

Every text in a block is plain text; the renderers escape it. Prose may set code in backticks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Heading:
    """``level`` 1 is the document's title; ``anchor`` is what a table of contents links to."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph; ``kind`` "warning" is set off from the rest."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first ``left`` columns and those of ``wide`` hold words, the rest numbers.

    Attributes:
        strong: rows (from 0) that stand out.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    wide: Sequence[int] = ()
    strong: frozenset[int] = frozenset()
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """One value with its interval; ``model`` numbers its colour."""

    value: float | None
    low: float | None
    high: float | None
    model: int
    title: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows of marks on one axis: bars from 0, or points around 0 where ``signed``.

    Only HTML draws it; the numbers stand in a table beside it.
    """

    rows: Sequence[tuple[str, Sequence[Mark]]]
    legend: Sequence[tuple[str, int]] = ()
    signed: bool = False
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Fold:
    """A text that is opened on demand; ``tags`` are short words beside the title."""

    title: str
    text: str
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Folds:
    """Texts of one kind; HTML can filter them. ``brief`` of them are shown in Markdown."""

    items: Sequence[Fold]
    brief: int = 3
    searchable: bool = field(default=False)


Block = Heading | Prose | Bullets | Table | Chart | Folds


def slug(text: str) -> str:
    """An anchor of safe characters.

    >>> slug("BFCL v3: <live>")
    'bfcl-v3-live'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# --- Markdown ------------------------------------------------------------------------------------


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks in Markdown; texts of models and data are indented code, which Markdown does not read."""
    text = "\n\n".join(part for block in blocks if (part := _markdown(block))) + "\n"
    return text.encode(
        errors="backslashreplace"
    ).decode()  # UTF-8 cannot hold half a surrogate pair


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {inline(text)}"
        case Prose(text, kind):
            return f"> **Note.** {inline(text)}" if kind == "warning" else inline(text)
        case Bullets(items):
            return "\n".join(f"- {inline(item)}" for item in items)
        case Table():
            return _table(block)
        case Folds(items, brief):
            shown = "\n\n".join(_fold(item) for item in items[:brief])
            left = len(items) - brief
            return shown + (f"\n\n{left} more in the HTML page." if left > 0 else "")
        case Chart():
            return ""


def inline(text: str) -> str:
    """One line of Markdown that shows the text; backticks keep their meaning, markup has none.

    >>> inline("a <b> | `c`")
    'a &lt;b> \\\\| `c`'
    """
    line = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|*\[\]]|^[#>+-])", r"\\\1", line)


def _table(table: Table) -> str:
    words = {*range(table.left), *table.wide}
    marks = ["---" if i in words else "---:" for i in range(len(table.header))]
    rows = [
        [f"**{inline(c)}**" if i in table.strong and c else inline(c) for c in row]
        for i, row in enumerate(table.rows)
    ]
    lines = [[inline(h) for h in table.header], marks, *rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{inline(table.caption)}\n\n{body}" if table.caption else body


def _fold(fold: Fold) -> str:
    tags = f" ({', '.join(inline(t) for t in fold.tags)})" if fold.tags else ""
    code = "\n".join("    " + line for line in fold.text.splitlines() or [""])
    return f"**{inline(fold.title)}**{tags}\n\n{code}"


# --- console -------------------------------------------------------------------------------------


def console(blocks: Sequence[Block]) -> str:
    """The blocks as plain text for a terminal."""
    return "\n\n".join(part for block in blocks if (part := _console(block))) + "\n"


def _console(block: Block) -> str:
    match block:
        case Heading(text, level):
            return (
                clean(text).upper() if level == 1 else clean(text) + "\n" + "-" * len(clean(text))
            )
        case Prose(text):
            return clean(text)
        case Bullets(items):
            return "\n".join(f"- {clean(item)}" for item in items)
        case Table():
            return _columns(block)
        case Folds(items, brief):
            shown = "\n\n".join(
                "\n".join([f"[{clean(f.title)}]", *(f"  {clean(x)}" for x in f.text.splitlines())])
                for f in items[:brief]
            )
            left = len(items) - brief
            return shown + (f"\n\n… {left} more" if left > 0 else "")
        case Chart():
            return ""


def clean(text: str) -> str:
    """Without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _columns(table: Table) -> str:
    lines = [[clean(c) for c in line] for line in [table.header, *table.rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    words = {*range(table.left), *table.wide}
    body = "\n".join(
        "  ".join(
            c.ljust(widths[i]) if i in words else c.rjust(widths[i]) for i, c in enumerate(line)
        ).rstrip()
        for line in lines
    )
    return f"{clean(table.caption)}\n{body}" if table.caption else body
