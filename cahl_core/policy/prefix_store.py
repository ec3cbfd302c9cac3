"""Keys and values kept from one generation for the next, so that a tool turn encodes only what is new.

A conversation's next prompt repeats the one before and adds the call's result. What the store holds of
a prompt is taken from it; the other tokens attend to it as they would to freshly encoded ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cahl_core.policy.packing import Ids, Packed, common_prefix, visible_to

TILE = 128  # queries whose keys are gathered together


@dataclass(slots=True)
class Kept:
    """An encoded row: per layer ``[H, L, D]``."""

    tokens: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the keys and values of some row positions come from."""

    kept: Kept
    there: Tensor
    here: Tensor


class Continuation:
    """A packed row of which part is encoded already.

    Attributes:
        new: ``[U]``, the row positions to be encoded; the last token of every sequence is one.
        kept: the row's keys and values, complete when every layer has attended.
    """

    def __init__(
        self, row: Packed, found: Sequence[tuple[Kept, Ids]], device: torch.device
    ) -> None:
        """
        Args:
            found: for every sequence of the row, the kept row that begins as it does and the
                positions there of the common tokens.
        """
        self.row, self.device = row, device
        self.kept = Kept(len(row))
        missing = np.ones(len(row), dtype=bool)
        self._sources: list[_Source] = []
        for path, (kept, there) in zip(row.paths, found, strict=True):
            here = path[: len(there)]
            fresh = missing[here]
            missing[here] = False
            if fresh.any():
                places = [torch.from_numpy(p[fresh]).to(device) for p in (there, here)]
                self._sources.append(_Source(kept, *places))
        missing[[path[-1] for path in row.paths]] = True  # their hidden states are asked for
        self.new = np.flatnonzero(missing)
        self._new = torch.from_numpy(self.new).to(device)
        self._tiles: dict[int | None, list[tuple[slice, Tensor, Tensor | None]]] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None = None,
    ) -> Tensor:
        """Attention of the new tokens to all they see in the row.

        Args:
            query: ``[Hq, U, D]``; key, value: ``[H, U, D]`` of the new tokens.

        Returns:
            ``[U, Hq, D]``.
        """
        keys, values = self._complete(layer, key, value)
        groups = len(query) // len(keys)
        parts = []
        for queries, seen, mask in self._plan(window):
            k, v = (
                x[:, seen].repeat_interleave(groups, 0) if groups > 1 else x[:, seen]
                for x in (keys, values)
            )
            part = torch.nn.functional.scaled_dot_product_attention(
                query[None, :, queries], k[None], v[None], mask, scale=scaling
            )
            parts.append(part[0])
        return torch.cat(parts, dim=1).transpose(0, 1)

    def _complete(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        whole = []
        for ours, name in ((key, "keys"), (value, "values")):
            full = ours.new_zeros(len(ours), len(self.row), ours.shape[2])
            for source in self._sources:
                full[:, source.here] = getattr(source.kept, name)[layer][:, source.there]
            full[:, self._new] = ours
            getattr(self.kept, name).append(full)
            whole.append(full)
        return whole[0], whole[1]

    def _plan(self, window: int | None) -> list[tuple[slice, Tensor, Tensor | None]]:
        """Tiles of queries, each with the keys any of them sees and the mask between them."""
        if window not in self._tiles:
            ends, everything = self.row.ends(), np.arange(len(self.row))
            tiles = []
            for start in range(0, len(self.new), TILE):
                queries = self.new[start : start + TILE]
                visible = visible_to(self.row, ends, queries, everything, window)
                seen = np.flatnonzero(visible.any(axis=0))
                visible = visible[:, seen]
                mask = None if visible.all() else torch.from_numpy(visible).to(self.device)
                where = torch.from_numpy(seen).to(self.device)
                tiles.append((slice(start, start + len(queries)), where, mask))
            self._tiles[window] = tiles
        return self._tiles[window]


class PrefixStore:
    """Encoded rows under the present weights of one adapter, the oldest given up first.

    Args:
        budget: tokens kept at most.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._rows: list[tuple[Kept, list[tuple[int, ...]]]] = []
        # sorted: what begins like a prompt for longest stands beside where the prompt would stand
        self._sequences: list[tuple[tuple[int, ...], Kept, Ids]] = []

    def clear(self) -> None:
        """Forgets everything: the weights have changed."""
        self._rows.clear()
        self._sequences.clear()

    def open(
        self, row: Packed, prompts: Sequence[Sequence[int]], device: torch.device
    ) -> Continuation:
        """The row with what is known of it.

        Args:
            prompts: what the row's ``indices`` refer to.
        """
        return Continuation(row, [self._find(prompts[i]) for i in row.indices], device)

    def add(self, row: Packed, prompts: Sequence[Sequence[int]], kept: Kept) -> None:
        """Keeps a row that every layer has attended over."""
        sequences = []
        for index, path in zip(row.indices, row.paths, strict=True):
            sequences.append(tuple(prompts[index]))
            self._sequences.append((sequences[-1], kept, path))
        self._rows.append((kept, sequences))
        while len(self._rows) > 1 and sum(k.tokens for k, _ in self._rows) > self.budget:
            oldest, _ = self._rows.pop(0)
            self._sequences = [s for s in self._sequences if s[1] is not oldest]
        self._sequences.sort(key=lambda s: s[0])

    def _find(self, prompt: Sequence[int]) -> tuple[Kept, Ids]:
        """The kept row that begins most like the prompt, and where its common tokens stand."""
        wanted = tuple(prompt)
        place = bisect_left(self._sequences, wanted, key=lambda s: s[0])
        ids = np.asarray(prompt, dtype=np.int64)
        best: tuple[Kept, Ids] = Kept(0), np.empty(0, dtype=np.int64)
        for sequence, kept, path in self._sequences[max(0, place - 1) : place + 1]:
            shared = common_prefix(ids, np.asarray(sequence, dtype=np.int64))
            if shared > len(best[1]):
                best = kept, path[:shared]
        return best
