"""Tables on the terminal: drawn where somebody looks, plain aligned text where a program reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints the table; numbers are aligned to the right."""
    if sys.stdout.isatty():
        _drawn(header, rows, title)
        return
    if title:
        print(title)
    print("\n".join(aligned(header, rows)))


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a plain table.

    >>> aligned(["rule", "n"], [["duplicate", "12"], ["x", "3"]])
    ['rule        n', 'duplicate  12', 'x           3']
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    right = numeric(rows, len(header))
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [header, *rows]
    ]


def numeric(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns hold only numbers."""
    return [
        bool(rows) and all(_is_number(row[i]) or not row[i].strip("-–") for row in rows)
        for i in range(columns)
    ]


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).strip(" %-").isdigit()


def _drawn(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left")
    for name, number in zip(header, numeric(rows, len(header)), strict=True):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
