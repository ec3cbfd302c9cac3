"""Which keys each tile of a packed row attends to: the work of tree attention, planned once per row.

A row is laid out depth first, so the ancestors of a tile's first token are all that any of its tokens
sees outside the tile: a tile needs these keys and its own, and a mask only for those that not every
token of it sees. Entries between unrelated branches are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahl_core.policy.packing import Packed, visible_to


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries ``start`` to ``stop`` of a row and the keys they see.

    Attributes:
        spans: the keys as disjoint ascending (start, stop) intervals, ``m`` in all.
        visible: ``[stop - start, w]``: which of the *last* ``w`` keys each query sees; it sees all
            of the keys before them.
    """

    start: int
    stop: int
    spans: tuple[tuple[int, int], ...]
    visible: NDArray[np.bool_]

    @property
    def keys(self) -> int:
        return sum(stop - start for start, stop in self.spans)


def tiles(row: Packed, size: int, window: int | None = None) -> Iterator[Tile]:
    """The tiles of ``size`` queries that cover a row, in order.

    Args:
        window: a token sees only ancestors less than so many positions above it (itself is 0).
    """
    ends = row.ends()
    for start in range(0, len(row), size):
        stop = min(start + size, len(row))
        above = np.flatnonzero(ends[:start] > start)
        keys = np.concatenate([above, np.arange(start, stop)])
        visible = visible_to(row, ends, np.arange(start, stop), keys, window)
        seen = visible.any(axis=0)
        keys, visible = keys[seen], visible[:, seen]
        partly = np.flatnonzero(~visible.all(axis=0))
        first = int(partly[0]) if len(partly) else len(keys)
        yield Tile(start, stop, spans_of(keys), visible[:, first:])


def spans_of(positions: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Ascending positions as intervals.

    >>> spans_of(np.array([0, 1, 2, 7, 8]))
    ((0, 3), (7, 9))
    """
    if not len(positions):
        return ()
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    return tuple((int(part[0]), int(part[-1]) + 1) for part in np.split(positions, breaks))
