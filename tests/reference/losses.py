"""Advantages and losses once more, as plain loops over Python floats.

A batch is a list of completions, each with an advantage and a list of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Token:
    new: float
    old: float
    reference: float
    sampled: float
    entropy: float = 0.0


@dataclass
class Completion:
    tokens: list[Token]
    advantage: float


@dataclass
class Options:
    loss_type: str
    normalisation: str = "auto"
    clip_low: float = 0.2
    clip_high: float = 0.3
    kl_weight: float = 0.0
    entropy_weight: float = 0.0
    importance: str = "none"
    cap: float = 2.0
    max_tokens: int = 16
    paper: dict[str, str] = field(
        default_factory=lambda: {
            "grpo": "sequence",
            "gspo": "sequence",
            "dapo": "token",
            "cispo": "token",
            "dr_grpo": "constant",
        }
    )


def loss(batch: Sequence[Completion], options: Options, frozen: Sequence[Completion] = ()) -> float:
    """The batch's loss.

    Args:
        frozen: the batch that stop-gradients look at, for finite differences; ``batch`` by default.
    """
    total = 0.0
    for completion, still in zip(batch, frozen or batch, strict=True):
        weight = token_weight(batch, completion, options)
        for t, (token, fixed) in enumerate(zip(completion.tokens, still.tokens, strict=True)):
            term = -importance(completion, t, options) * policy(completion, token, fixed, options)
            difference = token.reference - token.new
            term += options.kl_weight * (math.exp(difference) - difference - 1)
            term -= options.entropy_weight * token.entropy
            total += weight * term
    return total


def token_weight(batch: Sequence[Completion], completion: Completion, options: Options) -> float:
    kind = options.normalisation
    if kind == "auto":
        kind = options.paper[options.loss_type]
    if kind == "sequence":
        return 1 / len(batch) / len(completion.tokens)
    if kind == "token":
        return 1 / sum(len(c.tokens) for c in batch)
    return 1 / len(batch) / options.max_tokens


def policy(completion: Completion, token: Token, fixed: Token, options: Options) -> float:
    low, high = 1 - options.clip_low, 1 + options.clip_high
    advantage = completion.advantage
    if options.loss_type == "cispo":
        ratio = math.exp(fixed.new - fixed.old)
        return min(max(ratio, low), high) * advantage * token.new
    ratio = math.exp(token.new - token.old)
    if options.loss_type == "gspo":
        whole = 1.0
        for other in completion.tokens:
            whole *= math.exp(other.new - other.old)
        ratio = whole ** (1 / len(completion.tokens))
    clipped = min(max(ratio, low), high)
    return min(ratio * advantage, clipped * advantage)


def importance(completion: Completion, position: int, options: Options) -> float:
    if options.importance == "none":
        return 1.0
    if options.importance == "token":
        token = completion.tokens[position]
        return min(math.exp(token.old) / math.exp(token.sampled), options.cap)
    product = 1.0
    for token in completion.tokens:
        product *= math.exp(token.old) / math.exp(token.sampled)
    return min(product, options.cap)


def advantages(rewards: Sequence[float], kind: str, batch: Sequence[float]) -> list[float]:
    """Of one group; ``batch`` are all rewards of the role's batch."""
    count = len(rewards)
    if max(rewards) - min(rewards) < 1e-9:
        return [0.0] * count
    mean = sum(rewards) / count
    out = []
    for i, reward in enumerate(rewards):
        if kind == "leave_one_out":
            others = [r for j, r in enumerate(rewards) if j != i]
            out.append(reward - sum(others) / len(others))
        elif kind == "group_mean":
            out.append(reward - mean)
        else:
            out.append(
                (reward - mean) / (deviation(rewards if kind == "group_std" else batch) + 1e-6)
            )
    return out


def deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
