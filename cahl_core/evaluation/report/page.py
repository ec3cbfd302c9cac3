"""Blocks as one HTML file that needs no network, no script to be read, and no other file.

Texts are escaped. A content policy allows the page's own style and script and nothing else, so that even a
text that became markup could load and run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Sequence
from pathlib import Path

from cahl_core.evaluation.report.document import (
    Block,
    Bullets,
    Chart,
    Fold,
    Folds,
    Heading,
    Mark,
    Prose,
    Table,
)

ASSETS = Path(__file__).parent / "assets"
COLOURS = 8  # of models, as in the style
BAR, GAP = 10, 3  # height of a bar and space around it, pixels


def render_page(title: str, blocks: Sequence[Block]) -> str:
    """The whole page; headings of level 2 are its table of contents."""
    style, script = (_asset(f"report.{kind}") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    contents = "".join(
        f'<a href="#{b.anchor}">{escape(b.text)}</a>'
        for b in blocks
        if isinstance(b, Heading) and b.level == 2 and b.anchor
    )
    body = "\n".join(block_html(b) for b in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><nav>{contents}</nav>"
        f"<main>\n{body}\n</main><script>{script}</script></body></html>\n"
    )


def escape(text: str) -> str:
    """Text as text; half a surrogate pair, which UTF-8 cannot hold, becomes its escape."""
    return html.escape(text.encode(errors="backslashreplace").decode())


def prose(text: str) -> str:
    """Escaped, with code where backticks say so."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def block_html(block: Block) -> str:
    """One block."""
    match block:
        case Heading(text, level, anchor):
            mark = f' id="{anchor}"' if anchor else ""
            return f"<h{level}{mark}>{escape(text)}</h{level}>"
        case Prose(text, kind):
            return (
                f'<p class="warning">{prose(text)}</p>'
                if kind == "warning"
                else f"<p>{prose(text)}</p>"
            )
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{prose(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _table(block)
        case Chart():
            return chart(block)
        case Folds():
            return _folds(block)


def _table(table: Table) -> str:
    words = {*range(table.left), *table.wide}

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{_class(i, words, table.wide)}>{prose(c)}</{tag}>" for i, c in enumerate(row)
        )

    body = "".join(
        f"<tr{' class=strong' if i in table.strong else ''}>{cells(row, 'td')}</tr>"
        for i, row in enumerate(table.rows)
    )
    caption = f"<figcaption>{prose(table.caption)}</figcaption>" if table.caption else ""
    head = cells(table.header, "th")
    return (
        f'<figure class="card">{caption}<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
    )


def _class(column: int, words: set[int], wide: Sequence[int]) -> str:
    if column in wide:
        return ' class="wide"'
    return ' class="word"' if column in words else ""


# --- charts --------------------------------------------------------------------------------------


def chart(chart: Chart) -> str:
    """Labels as text and marks as stretching SVG, so that it can be read at every width."""
    reach = _reach(chart) if chart.signed else 1.0
    low = -reach if chart.signed else 0.0
    ticks = [low + (reach - low) * i / 4 for i in range(5)]
    legend = "".join(
        f'<span class="key"><i class="m{number % COLOURS}"></i>{escape(name)}</span>'
        for name, number in chart.legend
    )
    scale = "".join(f"<span>{_tick(t, chart.signed)}</span>" for t in ticks)
    rows = "".join(
        f'<div class="label">{_label(label)}</div>{_marks(marks, low, reach, chart.signed)}'
        for label, marks in chart.rows
    )
    caption = f"<figcaption>{prose(chart.caption)}</figcaption>" if chart.caption else ""
    return (
        f'<figure class="chart">{caption}<div class="legend">{legend}</div>'
        f'<div class="grid">{rows}<div></div><div class="scale">{scale}</div></div></figure>'
    )


def _label(text: str) -> str:
    """May break after underscores."""
    return escape(text).replace("_", "_<wbr>")


def _reach(chart: Chart) -> float:
    """Half the width of a signed axis: the largest bound, up to the next 10 points."""
    ends = [
        abs(x)
        for _, ms in chart.rows
        for m in ms
        for x in (m.value, m.low, m.high)
        if x is not None
    ]
    return max(0.1, math.ceil(max(ends, default=0.0) * 10 - 1e-9) / 10)


def _tick(value: float, signed: bool) -> str:
    number = f"{value * 100:.4g}".replace("-", "−")
    return f"+{number}" if signed and value > 0 else number


def _marks(marks: Sequence[Mark], low: float, high: float, signed: bool) -> str:
    height = len(marks) * (BAR + GAP) + GAP
    grid = "".join(
        f'<line class="tick" x1="{25 * i}" x2="{25 * i}" y1="0" y2="{height}"/>' for i in range(5)
    )
    shapes = "".join(
        _mark(mark, GAP + i * (BAR + GAP), low, high, signed) for i, mark in enumerate(marks)
    )
    return (
        f'<svg class="marks" viewBox="0 0 100 {height}" height="{height}" preserveAspectRatio="none" '
        f'role="img">{grid}{shapes}</svg>'
    )


def _mark(mark: Mark, y: int, low: float, high: float, signed: bool) -> str:
    if mark.value is None:
        return ""

    def x(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    middle, colour = y + BAR / 2, f"m{mark.model % COLOURS}"
    zero = x(0.0)
    left, width = min(zero, x(mark.value)), abs(x(mark.value) - zero)
    bar = f'<rect class="{colour}{" pale" if signed else ""}" x="{left:.2f}" y="{y}" width="{width:.2f}" height="{BAR}"/>'  # noqa: E501
    line = ""
    if mark.low is not None and mark.high is not None:
        ends = f'x1="{x(mark.low):.2f}" x2="{x(mark.high):.2f}"'
        line = f'<line class="interval" {ends} y1="{middle}" y2="{middle}"/>'
    return f"<g><title>{escape(mark.title)}</title>{bar}{line}</g>"


# --- texts ---------------------------------------------------------------------------------------


def _folds(folds: Folds) -> str:
    items = "".join(_fold(item) for item in folds.items)
    if not folds.searchable:
        return f'<div class="folds">{items}</div>'
    return (
        '<div class="folds"><label class="filter" hidden>Filter <input type="search" '
        f'placeholder="words of an item"></label>{items}<p class="none" hidden>No item has that.</p></div>'
    )


def _fold(fold: Fold) -> str:
    tags = "".join(f'<span class="tag">{escape(t)}</span>' for t in fold.tags)
    return (
        f"<details><summary><span>{escape(fold.title)}</span>{tags}</summary>"
        f"<pre>{escape(fold.text)}</pre></details>"
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
