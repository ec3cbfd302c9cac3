"""A packed row of an update: its sequences with what the loss needs of each of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cahl_core.policy.packing import Packed, pack


@dataclass(slots=True)
class UpdateRow:
    """One packed row; the tensors are ``[T]`` over its completions' tokens, one after another.

    Attributes:
        lengths: tokens of each completion.
        old, importance: set once the first epoch has done the row.
    """

    packed: Packed
    lengths: list[int]
    advantages: Tensor
    weights: Tensor
    sampled: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None
    importance: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Of the row, its prompts included."""
        return len(self.packed)

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    def halves(self) -> list[UpdateRow]:
        """The row's sequences in two rows, with what is known of each."""
        middle = len(self.lengths) // 2
        return [self._part(slice(middle)), self._part(slice(middle, None))]

    def _part(self, which: slice) -> UpdateRow:
        start = sum(self.lengths[: which.start or 0])
        own = slice(start, start + sum(self.lengths[which]))
        return UpdateRow(
            part(self.packed, which),
            self.lengths[which],
            self.advantages[own],
            self.weights[own],
            self.sampled[own],
            None if self.reference is None else self.reference[own],
            None if self.old is None else self.old[own],
            None if self.importance is None else self.importance[own],
        )


def part(row: Packed, which: slice) -> Packed:
    """Some of a row's sequences as a row of their own, in the same order."""
    sequences = [row.input_ids[path].tolist() for path in row.paths[which]]
    (alone,) = pack(sequences, sum(map(len, sequences)))
    return replace(alone, indices=[row.indices[which][i] for i in alone.indices])
