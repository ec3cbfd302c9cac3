"""Whether a server samples from the weights that we train: its log-probabilities against ours.

One short completion per server and role is scored by our own forward pass, at the temperature that
training uses: another backbone differs by far more than the rounding of another kernel, and
log-probabilities of unscaled logits are closer to ours at temperature 1. (That an adapter is the right
one is known by its name, which carries its digest.)
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cahl_core.errors import RolloutServerError
from cahl_core.policy.engine import Completion
from cahl_core.policy.logprobs import sequence_logprobs
from cahl_core.roles import Role
from cahl_core.rollouts.pool import Server
from cahl_core.rollouts.served import Served
from cahl_core.rollouts.wire import Ask

TEXT = "Find a hotel in Lisbon for two nights from 3 May and book the cheapest one."
SAMPLES, TOKENS = 4, 16


def verify(source: Served) -> dict[str, float]:
    """The mean gap in nats per token by server and role, each within ``train.rollouts.max_gap``.

    Every process calls this, after the first `Served.publish`.

    Raises:
        RolloutServerError: a gap is larger, or a server's log-probabilities are raw ones.
    """
    gaps: dict[str, float] = {}
    for server in source.pool.servers:
        for role in source.team.members:
            gaps[f"{server.url} {role}"] = _checked(source, server, role)
    return gaps


def _checked(source: Served, server: Server, role: Role) -> float:
    settings = source.settings
    own = settings.train.planner if role == "planner" else settings.train.executor
    prompt = list(source.policy.tokenizer.encode(TEXT, add_special_tokens=False))
    ask = Ask(prompt, SAMPLES, TOKENS, own.temperature, "probe", ())
    found = [c for c in source.view().ask(server, ask, role) if c.token_ids]
    gap = _gap(source, role, prompt, found, own.temperature)
    if own.temperature != 1.0 and _gap(source, role, prompt, found, 1.0) < 0.5 * gap:
        raise RolloutServerError(
            f"{server.url} reports log-probabilities of unscaled logits, and the {role} samples at "
            f"temperature {own.temperature:g}",
            "start vLLM with --logprobs-mode processed_logprobs",
        )
    if gap > settings.train.rollouts.max_gap:
        raise RolloutServerError(
            f"{server.url} does not sample from our weights: as {role} its log-probabilities are "
            f"{gap:.2f} nats per token away from ours (train.rollouts.max_gap="
            f"{settings.train.rollouts.max_gap:g}); it serves another backbone, or one in another "
            "precision",
            "start it with the backbone of data/backbone (docs/rollout-servers.md)",
        )
    return gap


def _gap(
    source: Served,
    role: Role,
    prompt: list[int],
    found: Sequence[Completion],
    temperature: float,
) -> float:
    member = source.team.members[role]
    with member.policy.using(member.adapter):
        ours = sequence_logprobs(
            member.policy,
            [prompt] * len(found),
            [c.token_ids for c in found],
            budget=len(prompt) + SAMPLES * TOKENS,
            temperature=temperature,
        )
    gaps = [
        abs(theirs - mine)
        for completion, scored in zip(found, ours, strict=True)
        for theirs, mine in zip(completion.logprobs, scored.tolist(), strict=True)
    ]
    return statistics.fmean(gaps) if gaps else 0.0
