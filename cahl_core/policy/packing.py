"""Packs sequences that share prefixes into rows in which every shared prefix stands once.

A row is a forest: each token attends to its ancestors only, and its position is its depth. The
log-probabilities and gradients of a packed row are those of the flat sequences (design: "one prompt,
many continuations"); the tests compare both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """One row of ``L`` tokens that holds several sequences.

    Attributes:
        input_ids: ``[L]``.
        position_ids: ``[L]``, the depth of each token in its tree.
        parents: ``[L]``, the row position of the token before; -1 at a root.
        paths: for every sequence of this row, the row positions of its tokens in order.
        indices: for every sequence of this row, its index in the list that was packed.
    """

    input_ids: Ids
    position_ids: Ids
    parents: Ids
    paths: list[Ids]
    indices: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    def padded(self, multiple: int) -> Packed:
        """The row with unrelated tokens after it, its length a multiple of ``multiple``."""
        extra = np.arange(-len(self) % multiple)
        if not len(extra):
            return self
        parents = np.concatenate([[-1], len(self) + extra[:-1]])
        return Packed(
            np.concatenate([self.input_ids, np.zeros_like(extra)]),
            np.concatenate([self.position_ids, extra]),
            np.concatenate([self.parents, parents]),
            self.paths,
            self.indices,
        )

    def ends(self) -> Ids:
        """``[L]``: the descendants of token ``i`` are the row positions from ``i + 1`` to ``ends[i]``.

        Rows are laid out depth first; `pack` and `padded` see to it.
        """
        ends = list(range(1, len(self) + 1))
        for child, parent in zip(
            range(len(self) - 1, -1, -1), self.parents[::-1].tolist(), strict=True
        ):
            if parent >= 0 and ends[child] > ends[parent]:
                ends[parent] = ends[child]
        return np.array(ends, dtype=np.int64)

    def mask(self, window: int | None = None) -> NDArray[np.bool_]:
        """``[L, L]``: whether token i attends to token j (`visible_to`)."""
        everything = np.arange(len(self))
        return visible_to(self, self.ends(), everything, everything, window)


def visible_to(
    row: Packed, ends: Ids, queries: Ids, keys: Ids, window: int | None = None
) -> NDArray[np.bool_]:
    """``[queries, keys]``: a token sees itself and its ancestors.

    Args:
        ends: of the row.
        window: it sees only tokens less than so many positions above it (itself is 0).
    """
    query, key = queries[:, None], keys[None, :]
    seen = (key <= query) & (query < ends[keys])
    if window is not None:
        seen &= row.position_ids[queries][:, None] - row.position_ids[keys] < window
    return seen


def pack(sequences: Sequence[Sequence[int]], budget: int) -> list[Packed]:
    """Packs token sequences into rows of at most ``budget`` tokens.

    Every sequence lands in exactly one row; within a row no prefix is repeated. A tree that fits is
    never divided; one that does not is divided at its branches, the lowest that will do, and repeats
    what is above them. A sequence longer than the budget gets a row of its own (what it shares
    with others is repeated there); whether that fits in memory is the caller's concern.
    """
    arrays = [np.asarray(s, dtype=np.int64) for s in sequences]
    order = sorted(range(len(arrays)), key=lambda i: tuple(sequences[i]))
    ranked = [arrays[i] for i in order]
    rows = []
    for part in _parts(ranked, _shared(ranked), budget):
        row = _Row()
        for rank in sorted(part.ranks):
            row.add(order[rank], ranked[rank])
        rows.append(row.close())
    return rows


def distinct_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of the tree of all sequences, each prefix counted once: the least there is to encode."""
    ranked = [np.asarray(s, dtype=np.int64) for s in sorted(map(tuple, sequences))]
    return sum(map(len, ranked)) - sum(_shared(ranked))


def _shared(ranked: Sequence[Ids]) -> list[int]:
    """The tokens each sequence shares with the one before it."""
    after_first = [common_prefix(first, second) for first, second in pairwise(ranked)]
    return [0, *after_first][: len(ranked)]


@dataclass(slots=True)
class _Part:
    """Sequences of one row, by their ranks in sorted order, and the tokens they take together."""

    ranks: list[int]
    tokens: int


def _parts(ranked: Sequence[Ids], shared: Sequence[int], budget: int) -> list[_Part]:
    """What goes into each row: first fit of whole trees, the largest first."""

    def divided(start: int, stop: int) -> list[_Part]:
        tokens = len(ranked[start]) + sum(
            len(ranked[i]) - shared[i] for i in range(start + 1, stop)
        )
        if tokens <= budget or stop - start == 1:
            return [_Part(list(range(start, stop)), tokens)]
        common = min(shared[start + 1 : stop])
        cuts = [i for i in range(start + 1, stop) if shared[i] == common]
        edges = pairwise([start, *cuts, stop])
        return _fitted([part for edge in edges for part in divided(*edge)], common, budget)

    trees = [i for i in range(len(ranked)) if not shared[i]]
    edges = pairwise([*trees, len(ranked)])
    return _fitted([part for edge in edges for part in divided(*edge)], 0, budget)


def _fitted(parts: list[_Part], common: int, budget: int) -> list[_Part]:
    """Joins parts that share their first ``common`` tokens, as far as the budget allows."""
    joined: list[_Part] = []
    for part in sorted(parts, key=lambda p: (-p.tokens, p.ranks[0])):
        added = part.tokens - common
        room = (p for p in joined if not added or p.tokens + added <= budget)
        place = next(room, None)
        if place is None:
            joined.append(_Part(list(part.ranks), part.tokens))
        else:
            place.ranks += part.ranks
            place.tokens += added
    return joined


def common_prefix(first: Ids, second: Ids) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


class _Row:
    """A row under construction; sequences arrive in sorted order."""

    def __init__(self) -> None:
        self.tokens: list[Ids] = []
        self.positions: list[Ids] = []
        self.parents: list[Ids] = []
        self.paths: list[Ids] = []
        self.indices: list[int] = []
        self.length = 0
        self.last: Ids = np.empty(0, dtype=np.int64)

    def add(self, index: int, sequence: Ids) -> None:
        shared = common_prefix(self.last, sequence)
        new = np.arange(self.length, self.length + len(sequence) - shared)
        path = np.concatenate([self.paths[-1][:shared], new]) if self.paths else new
        parents = new - 1
        if len(new):
            parents[0] = path[shared - 1] if shared else -1
        self.tokens.append(sequence[shared:])
        self.positions.append(np.arange(shared, len(sequence)))
        self.parents.append(parents)
        self.paths.append(path)
        self.indices.append(index)
        self.length += len(new)
        self.last = sequence

    def close(self) -> Packed:
        return Packed(
            np.concatenate(self.tokens),
            np.concatenate(self.positions),
            np.concatenate(self.parents),
            self.paths,
            self.indices,
        )
