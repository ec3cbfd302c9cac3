"""Planner and executor as one thing to sample from, whatever they share (``model.weights``).

``two_adapters``: two LoRA adapters on one frozen backbone. ``shared_adapter``: one adapter plays both
roles. ``two_models``: each role has a copy of the backbone whose matrices all train (in float32;
embeddings and head stay frozen); the frozen references of both share a third copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cahl_core.config import ModelSettings
from cahl_core.errors import ModelError
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Completion, Engine
from cahl_core.policy.shards import is_sharded, refresh_whole, whole
from cahl_core.roles import Role, roles_of

REFERENCE_SUFFIX = "_ref"
SHARED = "shared"


class Source(Protocol):
    """What rollouts sample from: a `Team`, an `Engine`, or a script in tests."""

    @property
    def policy(self) -> Any: ...

    def generate(
        self, prompts: Sequence[Sequence[int]], role: Role, **options: Any
    ) -> list[list[Completion]]: ...


@dataclass(frozen=True, slots=True)
class Member:
    """What one role is played by: a policy, and the adapter on it (``None``: the whole model)."""

    policy: Policy
    adapter: str | None
    reference: tuple[Policy, str] | None = None


class Team:
    """The members by role; samples like an `Engine` that knows which weights a role has."""

    def __init__(self, members: dict[Role, Member]) -> None:
        self.members = members
        self._engines: dict[int, Engine] = {}
        for member in members.values():
            self._engines.setdefault(id(member.policy), Engine(member.policy))

    @property
    def policy(self) -> Policy:
        """The first member's policy: its tokenizer, settings and device are those of all."""
        return next(iter(self.members.values())).policy

    @property
    def decoded_tokens(self) -> int:
        return sum(e.decoded_tokens for e in self._engines.values())

    @property
    def prefilled_tokens(self) -> int:
        return sum(e.prefilled_tokens for e in self._engines.values())

    @property
    def seconds_prefill(self) -> float:
        return sum(e.seconds_prefill for e in self._engines.values())

    @property
    def seconds_decode(self) -> float:
        return sum(e.seconds_decode for e in self._engines.values())

    def take_notes(self) -> list[str]:
        """What the engines want the user to know since this was called last."""
        notes = [note for e in self._engines.values() for note in e.notes]
        for engine in self._engines.values():
            engine.notes.clear()
        return notes

    def prepare(self) -> None:
        """Makes what decodes, which needs backbones that are not sharded yet."""
        for engine in self._engines.values():
            engine.prepare()

    def decodes(self, policy: Policy) -> bool:
        """Whether this process samples from ``policy`` itself."""
        return id(policy) in self._engines

    def weights_changed(self) -> None:
        """To be called after an update, by all processes: the next generation uses the new weights."""
        for engine in self._engines.values():
            refresh_whole(engine.policy)
            engine.weights_changed()

    def generate(
        self, prompts: Sequence[Sequence[int]], role: Role, **options: Any
    ) -> list[list[Completion]]:
        """`Engine.generate` with the weights of ``role``."""
        member = self.members[role]
        name = member.adapter or role
        return self._engines[id(member.policy)].generate(prompts, name, **options)

    def save(self, folder: Path | None) -> None:
        """Writes every role's adapter (or model) to ``folder/<role>``, ready for `load_team`.

        Args:
            folder: ``None`` in the processes that write nothing; they have to call it too, for their
                parts of sharded models.
        """
        for role, member in self.members.items():
            if member.adapter is None:
                save_model(member.policy, folder / role if folder else None)
            elif folder is not None:
                member.policy.save_adapter(member.adapter, folder / role)


def load_team(
    backbone: Path,
    folder: Path | None,
    settings: ModelSettings,
    *,
    device: torch.device | None = None,
) -> Team:
    """The trained roles below ``folder``; ``None`` gives every role the bare backbone.

    Raises:
        ModelError: something is missing or does not fit.
    """
    roles = roles_of(settings.form)
    if folder is None or not (folder / roles[0] / "config.json").exists():
        policy = Policy.load(backbone, folder, settings, device=device)
        return Team({role: Member(policy, role if folder else None) for role in roles})
    return Team(
        {
            role: Member(Policy.load(folder / role, None, settings, device=device), None)
            for role in roles
        }
    )


def load_trainable(
    backbone: Path, start: Path, settings: ModelSettings, device: torch.device
) -> Team:
    """Every role as SFT left it, ready to train, with a frozen copy as its reference.

    Args:
        start: the SFT adapters, one directory per role.
    """
    if settings.weights == "two_models":
        return _two_models(backbone, start, settings, device)
    roles = roles_of(settings.form)
    shared = settings.weights == "shared_adapter"
    policy = Policy.load(backbone, None, settings, device=device)
    names = [SHARED] if shared else list(roles)
    for name, role in zip(names, roles, strict=False):
        policy.add_adapter(name, start / role, trainable=True)
        policy.add_adapter(name + REFERENCE_SUFFIX, start / role)
    members: dict[Role, Member] = {}
    for role in roles:
        name = SHARED if shared else role
        members[role] = Member(policy, name, (policy, name + REFERENCE_SUFFIX))
    return Team(members)


def _two_models(backbone: Path, start: Path, settings: ModelSettings, device: torch.device) -> Team:
    whole = settings.model_copy(update={"dtype": "float32"})
    references = Policy.load(backbone, None, whole, device=device)
    members: dict[Role, Member] = {}
    for role in roles_of(settings.form):
        references.add_adapter(role + REFERENCE_SUFFIX, start / role)
        policy = Policy.load(backbone, None, whole, device=device)
        policy.add_adapter(role, start / role)
        merged = policy.model.merge_and_unload()
        policy = Policy(merged, policy.tokenizer, whole)
        for parameter in policy.decoder.parameters():
            parameter.requires_grad_(True)
        for module in (policy.causal.get_input_embeddings(), policy.causal.get_output_embeddings()):
            module.requires_grad_(False)
        members[role] = Member(policy, None, (references, role + REFERENCE_SUFFIX))
    return Team(members)


def save_model(policy: Policy, folder: Path | None) -> None:
    """Writes a whole model and its tokenizer (safetensors and JSON) directly into ``folder``.

    ``None`` writes nothing and only gives this process's parts of a sharded model.
    """
    if policy.adapters:
        raise ModelError("a policy with adapters is saved by its adapters")
    tensors: dict[str, Tensor] = {}
    for name, tensor in policy.model.state_dict().items():
        found = whole(tensor)
        if folder is not None:
            tensors[name] = found.cpu() if is_sharded(tensor) else found
    if folder is None:
        return
    kept = policy.model.config._attn_implementation
    policy.model.config._attn_implementation = "sdpa"  # ours is registered in this process only
    try:
        policy.model.save_pretrained(str(folder), state_dict=tensors)
    finally:
        policy.model.config._attn_implementation = kept
    policy.tokenizer.save_pretrained(str(folder))
