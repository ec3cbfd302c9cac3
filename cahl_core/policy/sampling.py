"""Drawing tokens: every sample from its own generator, and when a text has come to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # tokens whose probabilities are added up first
TAIL_TOKENS = 16  # a stop text never spans more tokens than this


def uniforms(seed: str, count: int) -> Tensor:
    """The draws of one sample: uniform in [0, 1), float64, determined by its seed alone."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little") >> 1
    return torch.rand(count, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def choose(logits: Tensor, draws: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The next token of every row and its log-probability at the temperature, ``[N]`` each.

    Args:
        logits: ``[N, vocabulary]``.
        draws: ``[N]`` uniform in [0, 1); ``None`` takes the likeliest token (``temperature`` 0).
    """
    if draws is None:
        tokens = logits.argmax(dim=1)
        return tokens, _at(logits, tokens) - logits.logsumexp(dim=1)
    logits = logits / temperature if temperature != 1.0 else logits
    largest = logits.amax(dim=1, keepdim=True)
    weights = torch.exp(logits - largest)
    tokens, total = _inverse(weights, draws)
    return tokens, _at(logits, tokens) - largest[:, 0] - total.log()


def _inverse(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts each row's distribution at its draw; the tokens, and the rows' sums.

    Sums of blocks first, then inside the block that is hit: one pass over the vocabulary.
    """
    rows, vocabulary = weights.shape
    if rest := -vocabulary % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, rest))
    blocks = weights.view(rows, -1, BLOCK)
    bounds = blocks.sum(dim=2, dtype=torch.float32).double().cumsum(dim=1)
    total = bounds[:, -1]
    point = (draws.to(weights.device) * (1 - 1e-12) * total)[:, None]  # below the total for certain
    block = torch.searchsorted(bounds, point, right=True).clamp_(max=bounds.shape[1] - 1)
    below = bounds.gather(1, block) - blocks.sum(dim=2, dtype=torch.float32).gather(1, block)
    inner = blocks[torch.arange(rows, device=weights.device), block[:, 0]].double().cumsum(dim=1)
    # rounding may put the point just outside the block: its last token with any weight is meant then
    within = torch.minimum((point - below).clamp_min_(0.0), inner[:, -1:] * (1 - 1e-12))
    token = block * BLOCK + torch.searchsorted(inner, within, right=True)
    return token[:, 0], total.to(weights.dtype)


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(1, tokens[:, None])[:, 0]


class Endings:
    """Whether a completion has come to its end: an end token, a stop text, a text gone astray.

    Args:
        ends: end tokens.
        stop: texts whose appearance ends a completion.
        openings: if given, the texts a completion has to begin with.
    """

    def __init__(
        self, tokenizer: Any, ends: set[int], stop: Sequence[str], openings: Sequence[str]
    ) -> None:
        self.tokenizer, self.ends = tokenizer, ends
        self.stop, self.openings = tuple(stop), tuple(openings)
        self._last = {s[-1] for s in stop if s}
        self._plain = all(c.isascii() and not c.isspace() for c in self._last)
        self._may_stop: dict[int, bool] = {}

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether the last token ends the completion as it should."""
        return ids[-1] in self.ends or (
            bool(self.stop) and self._completes(ids[-1]) and self._stopped(ids)
        )

    def strayed(self, ids: Sequence[int]) -> bool:
        """Whether the completion can no longer begin with any of the openings."""
        if not self.openings or len(ids) > TAIL_TOKENS:
            return False
        text = self._text(ids).lstrip()
        return not any(text.startswith(o) or o.startswith(text) for o in self.openings)

    def _stopped(self, ids: Sequence[int]) -> bool:
        tail = self._text(ids[-TAIL_TOKENS:])
        return any(s in tail for s in self.stop)

    def _completes(self, token: int) -> bool:
        """Whether this token can be the one that completes a stop text: it holds its last character.

        A token's own text shows every visible ASCII character it holds; others may be cut in two.
        """
        if not self._plain:
            return True
        if token not in self._may_stop:
            text = self._text([token])
            self._may_stop[token] = any(c in text for c in self._last)
        return self._may_stop[token]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text
