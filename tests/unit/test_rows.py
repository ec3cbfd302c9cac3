"""Supervised rows: filled, in the order drawn, and counted."""

from __future__ import annotations

import random

from cahl_core.training.examples import Drawn, Example, rows_of

BUDGET = 2000


def _groups(count: int = 300) -> list[list[Example]]:
    """Records of one to four examples that share their tools."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(50_000) for _ in range(draw.randrange(low, high))]

    groups = []
    for _ in range(count):
        tools = ids(80, 300)
        groups.append(
            [Example(tools + ids(5, 40), ids(10, 60)) for _ in range(draw.randrange(1, 5))]
        )
    return groups


def test_rows_are_full_and_no_token_is_encoded_twice() -> None:
    groups, drawn = _groups(), Drawn()
    rows = [row for row, _ in rows_of(iter(groups), BUDGET, 5000, drawn)]
    tokens = sum(map(len, rows))
    assert all(len(row) <= BUDGET for row in rows)
    assert tokens > 0.9 * BUDGET * len(rows)
    assert drawn.encoded == tokens
    assert drawn.least <= tokens <= 1.05 * drawn.least


def test_every_example_is_in_one_row_near_where_it_was_drawn() -> None:
    groups = _groups()
    order = {id(e): number for number, e in enumerate(e for g in groups for e in g)}
    found = [
        order[id(pending[i])]
        for row, pending in rows_of(iter(groups), BUDGET, 5000)
        for i in row.indices
    ]
    assert sorted(found) == list(range(len(order)))
    assert max(abs(place - number) for place, number in enumerate(found)) < 400  # three windows
