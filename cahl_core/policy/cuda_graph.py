"""Decoding steps as recorded CUDA graphs: one launch instead of several hundred.

A step's operations, shapes and addresses stay the same until the batch is rebuilt, so it is recorded
once per batch and replayed. Where recording fails, decoding goes on step by step and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from cahl_core.memory import is_out_of_memory
from cahl_core.policy.prefix_state import PrefixState

Step = Callable[[Tensor, Tensor, PrefixState], Tensor]


class Recorded:
    """One recorded step. The result of a call is overwritten by the next one."""

    def __init__(self, step: Step, tokens: Tensor, positions: Tensor, state: PrefixState) -> None:
        self.state, self.built = state, state.built
        self.tokens, self.positions = tokens.clone(), positions.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up outside the recording
            step(self.tokens, self.positions, state)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = step(self.tokens, self.positions, state)

    def serves(self, state: PrefixState) -> bool:
        """Whether the batch is still the one that was recorded."""
        return self.state is state and self.built == state.built

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        self.graph.replay()
        return self.out


class GraphedStep:
    """A step that records itself for every batch; the first call of a batch is the recording.

    The recorded operations write the present token's keys and values, so recording and replaying a
    step twice leaves what doing it once would.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._recorded: Recorded | None = None
        self._works = True

    def __call__(self, tokens: Tensor, positions: Tensor, state: PrefixState) -> Tensor:
        if not self._works:
            return self._step(tokens, positions, state)
        if self._recorded is None or not self._recorded.serves(state):
            self._recorded = None  # its memory is free for the next one
            try:
                self._recorded = Recorded(self._step, tokens, positions, state)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._works = False
                warnings.warn(f"decoding without CUDA graphs: {error}", stacklevel=2)
                return self._step(tokens, positions, state)
        return self._recorded(tokens, positions)

    def forget(self) -> None:
        """Gives up the recording: the weights it reads are about to be replaced."""
        self._recorded = None
