"""How long a packed row may be here and now: what runs out of memory is done again in halves.

Only this process changes: gradients are sums over rows, whatever the rows are, so the others need not
know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

import torch

from cahl_core.config import Settings
from cahl_core.errors import MemoryLimitError
from cahl_core.memory import is_out_of_memory, release_memory

UNHURT = "gradients are not affected: rows add up"


class Halvable(Protocol):
    """One forward pass's worth of sequences."""

    @property
    def tokens(self) -> int: ...
    @property
    def sequences(self) -> int: ...
    def halves(self) -> list[Self]: ...


R = TypeVar("R", bound=Halvable)


class RowBudget:
    """Tokens that a packed row may have; shrinks when memory runs out and never grows again.

    Attributes:
        tokens: the bound; a single sequence may be longer.
        splits: rows that did not fit and were halved so far.
    """

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None] | None = None,
        *,
        divisible: bool = True,
    ) -> None:
        """
        Args:
            say: told once of every change.
            divisible: False where other processes expect as many passes as were agreed on (sharded
                weights): running out of memory is an error then.
        """
        self.tokens = settings.train.row_tokens
        self.splits = 0
        self._checkpointed = settings.model.gradient_checkpointing
        self._say = say or (lambda message: None)
        self._divisible = divisible
        self._longest = 0

    def run(self, rows: Sequence[R], work: Callable[[R], None], device: torch.device) -> list[R]:
        """Does ``work`` for every row, in halves where it does not fit; returns the rows it did.

        ``work`` must leave nothing behind when it fails.

        Raises:
            MemoryLimitError: a single sequence does not fit.
        """
        waiting, done = list(reversed(rows)), []
        while waiting:
            row = waiting.pop()
            if self._divisible and row.tokens > self.tokens and row.sequences > 1:
                waiting += reversed(row.halves())
                continue
            try:
                work(row)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                release_memory(device, error)
                waiting += reversed(self._split(row, error))
            else:
                done.append(row)
        return done

    def note_long(self, tokens: int) -> None:
        """Says, once for each new longest one, that a single sequence is over the budget."""
        if tokens > max(self.tokens, self._longest):
            self._longest = tokens
            self._say(
                f"warning: a sequence of {tokens} tokens is over train.row_tokens={self.tokens}; "
                "it has a row of its own"
            )

    def _split(self, row: R, error: Exception) -> list[R]:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if row.sequences == 1 or not self._divisible:
            raise MemoryLimitError(*self._stuck(row, reason)) from None
        halves = row.halves()
        self.splits += 1
        shorter = min(max(half.tokens for half in halves), row.tokens - 1)
        if shorter < self.tokens:
            self.tokens = shorter
            self._say(
                f"warning: a packed row of {row.tokens} tokens ran out of memory ({reason}); rows "
                f"have at most {shorter} tokens from here on ({UNHURT}). To start there: "
                f"train.row_tokens={shorter}"
            )
        return halves

    def _stuck(self, row: R, reason: str) -> tuple[str, str]:
        one = row.sequences == 1
        kept = "" if self._checkpointed else "model.gradient_checkpointing=true, "
        if one:
            change = "lower model.max_context or train.*.max_tokens, or model.dtype=bfloat16"
            what = f"one sequence of {row.tokens} tokens does not fit in memory: {reason}"
        else:
            change = f"lower train.row_tokens (now {self.tokens})"
            what = f"a packed row of {row.tokens} tokens does not fit in memory: {reason}"
        return what, f"set {kept}{change}; `cahl plan-run` predicts the peak"


@contextmanager
def explained() -> Iterator[None]:
    """What runs out of memory in the body and cannot be made smaller says what to change.

    Raises:
        MemoryLimitError: in place of the allocator's own error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryLimitError) or not is_out_of_memory(error):
            raise
        raise MemoryLimitError(
            f"the update's gradients and optimizer state do not fit in memory: {error}",
            "set model.dtype=bfloat16, a lower model.lora.rank, or a smaller backbone; `cahl plan-run` "
            "predicts the peak",
        ) from error
