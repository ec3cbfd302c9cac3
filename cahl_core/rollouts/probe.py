"""Whether a server samples from the weights that we train: its log-probabilities against ours.

One short completion per server and role is scored by our own forward pass, at the temperature that
training uses. Another backbone, another adapter, or log-probabilities of unscaled logits differ by far
more than the rounding of another kernel.
"""

from __future__ import annotations

import statistics

from cahl_core.errors import RolloutServerError
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
        RolloutServerError: a gap is larger; says what it may come from.
    """
    gaps: dict[str, float] = {}
    for server in source.pool.servers:
        for role in source.team.members:
            gap = _gap(source, server, role)
            gaps[f"{server.url} {role}"] = gap
            if gap > source.settings.train.rollouts.max_gap:
                raise _differs(source, server, role, gap)
    return gaps


def _gap(source: Served, server: Server, role: Role) -> float:
    settings, member = source.settings, source.team.members[role]
    own = settings.train.planner if role == "planner" else settings.train.executor
    prompt = list(source.policy.tokenizer.encode(TEXT, add_special_tokens=False))
    ask = Ask(prompt, SAMPLES, TOKENS, own.temperature, "probe", ())
    found = [c for c in source.view().ask(server, ask, role) if c.token_ids]
    with member.policy.using(member.adapter):
        ours = sequence_logprobs(
            member.policy,
            [prompt] * len(found),
            [c.token_ids for c in found],
            budget=len(prompt) + SAMPLES * TOKENS,
            temperature=own.temperature,
        )
    pairs = [
        (theirs, mine)
        for completion, scored in zip(found, ours, strict=True)
        for theirs, mine in zip(completion.logprobs, scored.tolist(), strict=True)
    ]
    return statistics.fmean(abs(a - b) for a, b in pairs) if pairs else 0.0


def _differs(source: Served, server: Server, role: Role, gap: float) -> RolloutServerError:
    own = source.settings.train.planner if role == "planner" else source.settings.train.executor
    raw = (
        ", or reports log-probabilities of unscaled logits (vLLM: --logprobs-mode "
        f"processed_logprobs; the {role} samples at temperature {own.temperature:g})"
        if own.temperature != 1.0
        else ""
    )
    return RolloutServerError(
        f"{server.url} does not sample from our weights: as {role} its log-probabilities are "
        f"{gap:.2f} nats per token away from ours (train.rollouts.max_gap="
        f"{source.settings.train.rollouts.max_gap:g}); it serves another backbone, other precision "
        f"or quantisation{raw}",
        "start it with the backbone of data/backbone (docs/rollout-servers.md)",
    )
