"""What learns: one adapter (or one model) with its optimizer and its frozen reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from cahl_core.config import Settings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.shards import is_sharded, part_like, whole
from cahl_core.policy.team import REFERENCE_SUFFIX, Team
from cahl_core.roles import Role
from cahl_core.train_config import RoleSettings


class Trainee:
    """One adapter in training: its tensors, its AdamW, its gradient norm bound."""

    def __init__(
        self,
        policy: Policy,
        name: str | None,
        learning_rate: float,
        grad_clip: float,
        weight_decay: float = 0.0,
        reference: tuple[Policy, str] | None = None,
        label: str | None = None,
    ) -> None:
        """
        Args:
            name: the adapter; ``None`` trains the whole model of ``policy``.
            reference: the policy and adapter that the KL term pulls towards.
            label: under which its tensors stand in a checkpoint; the adapter's name by default.
        """
        self.label = label or str(name)
        self.policy = policy
        self._reference = reference
        self.name = name
        self.learning_rate = learning_rate
        self.grad_clip = grad_clip
        self.parameters = policy.parameters(name)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99)
        )

    def activate(self) -> None:
        """Makes this the one that forward passes of ``self.policy`` use and give gradients to."""
        if self.name is not None:
            self.policy.activate(self.name)

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        """The policy to score with under the reference's weights, without gradients."""
        policy, name = self._reference or (self.policy, f"{self.name}{REFERENCE_SUFFIX}")
        with torch.no_grad(), policy.using(name):
            yield policy

    def step(self, scale: float) -> float:
        """One AdamW step at ``scale`` times the learning rate; returns the gradient norm before
        clipping. A non-finite norm skips the step and leaves everything as it was.
        """
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)))
        if norm == norm and norm != float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * scale
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part only; `tensors` is then to be called by all of them."""
        return any(map(is_sharded, self.parameters))

    def tensors(self) -> dict[str, Tensor]:
        """Adapter and optimizer state under flat names; whole ones, however many processes train."""
        out: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            state = self.optimizer.state.get(parameter, {})
            for key, value in {"value": parameter.detach(), **state}.items():
                out[f"{self.label}.{index}.{key}"] = whole(value).contiguous().cpu()
        return out

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` wrote, of any number of processes."""
        for index, parameter in enumerate(self.parameters):
            prefix = f"{self.label}.{index}."
            keys = sorted(key for key in tensors if key.startswith(prefix))
            mine = {key.removeprefix(prefix): tensors[key] for key in keys}
            parameter.copy_(part_like(mine.pop("value"), parameter))
            self.optimizer.state.pop(parameter, None)
            if mine:
                self.optimizer.state[parameter] = {
                    k: v.clone() if k == "step" else part_like(v, parameter).clone()
                    for k, v in mine.items()
                }


def make_trainees(team: Team, settings: Settings) -> dict[Role, tuple[Trainee, RoleSettings]]:
    """Each role's trainee and settings; roles that share an adapter share the trainee."""
    train = settings.train
    made: dict[tuple[int, str | None], Trainee] = {}
    out: dict[Role, tuple[Trainee, RoleSettings]] = {}
    for role, member in team.members.items():
        own = train.planner if role == "planner" else train.executor
        key = (id(member.policy), member.adapter)
        if key not in made:
            made[key] = Trainee(
                member.policy,
                member.adapter,
                own.learning_rate,
                own.grad_clip,
                reference=member.reference,
                label=member.adapter or role,
            )
        out[role] = (made[key], own)
    return out
