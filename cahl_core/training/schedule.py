"""The learning rate over the steps of training, as a share of each role's own."""

from __future__ import annotations

import math

from cahl_core.train_config import RoleSettings


def lr_scale(role: RoleSettings, step: int, total: int) -> float:
    """Linear warm-up to 1, then constant, or down to ``min_lr_share`` at the last step.

    Args:
        step: from 0.
        total: steps of the whole training.

    >>> role = RoleSettings(schedule="linear", warmup_steps=2, min_lr_share=0.0)
    >>> [lr_scale(role, step, 6) for step in range(6)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < role.warmup_steps:
        return (step + 1) / role.warmup_steps
    if role.schedule == "constant":
        return 1.0
    peak = max(role.warmup_steps - 1, 0)
    done = min(1.0, (step - peak) / max(1, total - 1 - peak))
    height = 1.0 - done if role.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return role.min_lr_share + (1.0 - role.min_lr_share) * height
