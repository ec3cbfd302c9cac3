"""Keys and values of a decoding batch, and attention of one step over them.

``P`` prompts with ``n`` samples each decode together as ``N = P * n`` rows. A row's query attends to its
prompt's keys, held once for all its samples, and to its own suffix, which is written in place into a
preallocated buffer. The two parts are computed apart and weighed by their log-sum-exp, which is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

PAD = 64  # prefixes are padded to a multiple of this: few distinct shapes
CALL = (
    512  # what one more call of a kernel costs, in tokens whose keys and values are read meanwhile
)


@dataclass
class PrefixState:
    """Shared prefixes, and a suffix per row, for all layers.

    Attributes:
        keys, values: per layer ``[P, H, L, D]``; prompts shorter than ``L`` are padded on the right.
        bias: ``[P, 1, 1, L]``; 0 at real prompt tokens, -inf at padding.
        lengths, ends: tokens of each prompt, and the same as ``[P, 1]`` on the device.
        suffix_keys, suffix_values: per layer ``[P * n, H, T, D]``.
        runs: neighbouring prompts that attend together, padded to the longest of them (`runs_of`).
        length: suffix tokens written so far, the present step's included.
        cursor: ``[1]``, the place in the suffix that the present step writes, on the device.
        suffix_bias: ``[1, 1, 1, T]``; 0 at written places, -inf at the others.
        built: how often `select` has replaced the tensors.
    """

    lengths: list[int]
    samples: int
    room: int
    ends: Tensor
    bias: Tensor
    cursor: Tensor
    suffix_bias: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    suffix_keys: list[Tensor] = field(default_factory=list)
    suffix_values: list[Tensor] = field(default_factory=list)
    length: int = 0
    built: int = 0
    runs: list[tuple[int, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.runs = runs_of(self.lengths)

    @classmethod
    def empty(
        cls,
        lengths: list[int],
        samples: int,
        room: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> PrefixState:
        """Room for prompts of ``lengths`` tokens and ``room`` suffix tokens per sample."""
        longest = max(lengths) + -max(lengths) % PAD
        ends = torch.tensor(lengths, device=device)[:, None]
        bias = torch.zeros(len(lengths), longest, device=device, dtype=dtype)
        bias.masked_fill_(torch.arange(longest, device=device) >= ends, float("-inf"))
        return cls(
            lengths,
            samples,
            room,
            ends,
            bias[:, None, None],
            torch.full((1,), -1, dtype=torch.long, device=device),
            torch.full((1, 1, 1, room), float("-inf"), device=device, dtype=dtype),
        )

    def write(self, layer: int, prompt: int, keys: Tensor, values: Tensor, start: int = 0) -> None:
        """Takes over ``[H, n, D]`` keys and values of a prompt's tokens from ``start`` on."""
        if layer == len(self.keys):
            rows, longest = len(self.lengths), self.bias.shape[3]
            for own, shared, like in (
                (self.suffix_keys, self.keys, keys),
                (self.suffix_values, self.values, values),
            ):
                heads, _, width = like.shape
                shared.append(like.new_zeros(rows, heads, longest, width))
                own.append(like.new_zeros(rows * self.samples, heads, self.room, width))
        stop = start + keys.shape[1]
        self.keys[layer][prompt, :, start:stop] = keys
        self.values[layer][prompt, :, start:stop] = values

    def advance(self) -> None:
        """Makes room for the next token of every row."""
        self.length += 1
        self.cursor += 1
        self.suffix_bias[..., self.length - 1] = 0

    def biases(self, window: int | None) -> tuple[Tensor, Tensor]:
        """What is added to the scores of the prefix and of the suffix at the present step."""
        if window is None:
            return self.bias, self.suffix_bias
        prefix = torch.arange(self.bias.shape[3], device=self.bias.device)
        suffix = torch.arange(self.room, device=self.bias.device)
        behind = self.ends + self.cursor - prefix  # distance from the query to each prompt token
        hidden = (behind >= window)[:, None, None]
        return (
            self.bias.masked_fill(hidden, float("-inf")),
            self.suffix_bias.masked_fill(self.cursor - suffix >= window, float("-inf")),
        )

    def select(self, prompts: list[int], rows: Tensor) -> None:
        """Keeps the given prompts and rows (ordered by prompt, the same number for each)."""
        kept = torch.tensor(prompts, device=self.bias.device)
        self.built += 1
        for layer in range(len(self.keys)):
            if len(prompts) < len(self.keys[layer]):
                self.keys[layer] = self.keys[layer][kept]
                self.values[layer] = self.values[layer][kept]
            self.suffix_keys[layer] = self.suffix_keys[layer][rows]
            self.suffix_values[layer] = self.suffix_values[layer][rows]
        self.bias, self.ends = self.bias[kept], self.ends[kept]
        self.lengths = [self.lengths[p] for p in prompts]
        self.runs = runs_of(self.lengths)
        self.samples = len(rows) // len(prompts)


def runs_of(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cuts prompts into runs of neighbours so that attention reads least.

    A run costs its number of prompts times its longest, and `CALL`; the cheapest cut of all is found.

    Returns:
        first prompt, the one after the last, and the longest length of each run.

    >>> runs_of([100, 110, 4000])
    [(0, 2, 110), (2, 3, 4000)]
    >>> runs_of([100, 110, 120])
    [(0, 3, 120)]
    """
    best = np.zeros(len(lengths) + 1, np.int64)  # cost of the cheapest cut of the first prompts
    start = np.zeros(len(lengths) + 1, np.int64)  # where its last run begins
    longest = np.zeros(0, np.int64)  # of the prompts from each place up to the present one
    for stop, length in enumerate(lengths, 1):
        longest = np.maximum(np.append(longest, 0), length)
        cost = best[:stop] + longest * np.arange(stop, 0, -1) + CALL
        start[stop] = cost.argmin()
        best[stop] = cost[start[stop]]
    runs: list[tuple[int, int, int]] = []
    stop = len(lengths)
    while stop:
        first = int(start[stop])
        runs.insert(0, (first, stop, max(lengths[first:stop])))
        stop = first
    return runs


def attend_cpu(
    state: PrefixState, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> Tensor:
    """One decoding step of one layer by PyTorch's flash kernel for CPUs.

    Args:
        query: ``[N, g, H, D]``; head ``j`` of key-value head ``h`` stands at ``[:, j, h]``.
        key, value: ``[N, H, D]`` of the new tokens.

    Returns:
        ``[N, g * H * D]``.
    """
    rows, groups, heads, width = query.shape
    prompts, written = len(state.lengths), state.length
    keys, values = state.suffix_keys[layer], state.suffix_values[layer]
    keys[:, :, written - 1], values[:, :, written - 1] = key, value
    shared = query.reshape(prompts, -1, heads, width).transpose(1, 2)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    outs, sums = [], []
    for start, stop, longest in state.runs:
        queries, mask = shared[start:stop], None
        if min(state.lengths[start:stop]) < longest:
            mask = state.bias[start:stop, ..., :longest].expand(-1, 1, queries.shape[2], -1)
        prefix = (x[layer][start:stop, :, :longest] for x in (state.keys, state.values))
        out, total = flash(queries, *prefix, 0.0, False, attn_mask=mask, scale=scaling)
        outs.append(out.transpose(1, 2))
        sums.append(total.transpose(1, 2))
    suffix = (x[:, :, :written] for x in (keys, values))
    own, own_sum = flash(query.transpose(1, 2), *suffix, 0.0, False, scale=scaling)
    # the kernel's results lie in memory as [N, g, H, D]: no reshape copies
    first, first_sum = (x[0] if len(x) == 1 else torch.cat(x) for x in (outs, sums))
    share = torch.sigmoid(
        first_sum.reshape(rows, groups, heads) - own_sum.transpose(1, 2)
    ).unsqueeze(3)
    out = torch.lerp(
        own.transpose(1, 2), first.reshape(rows, groups, heads, -1), share.to(first.dtype)
    )
    return out.reshape(rows, -1)


def attend_static(
    state: PrefixState,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None = None,
) -> Tensor:
    """`attend_cpu` in operations whose shapes and addresses stay the same from step to step.

    A recorded CUDA graph can therefore be replayed for every step: the place written and what is
    masked are read from the device.

    Args:
        window: positions a query sees, its own included (sliding-window layers); ``None``: all.
    """
    rows, groups, heads, width = query.shape
    prompts = len(state.lengths)
    keys, values = state.suffix_keys[layer], state.suffix_values[layer]
    keys.index_copy_(2, state.cursor, key.unsqueeze(2))
    values.index_copy_(2, state.cursor, value.unsqueeze(2))
    query = query * scaling
    shared = query.reshape(prompts, -1, heads, width).transpose(1, 2)
    shared_bias, own_bias = state.biases(window)
    first, first_sum = _part(shared, state.keys[layer], state.values[layer], shared_bias)
    own, own_sum = _part(query.transpose(1, 2), keys, values, own_bias)
    first = first.transpose(1, 2).reshape(rows, groups, heads, -1)
    first_sum = first_sum.transpose(1, 2).reshape(rows, groups, heads)
    share = torch.sigmoid(first_sum - own_sum.transpose(1, 2)).unsqueeze(3).to(first.dtype)
    return torch.lerp(own.transpose(1, 2), first, share).reshape(rows, -1)


def _part(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, and the log-sum-exp of its scores."""
    scores = (query @ keys.transpose(2, 3)).float() + bias
    total = scores.logsumexp(3)
    # where a window hides every key the sum is -inf, and the weights are 0 instead of undefined
    weights = torch.exp(scores - total.clamp_min(-1e30).unsqueeze(3))
    return weights.to(values.dtype) @ values, total
