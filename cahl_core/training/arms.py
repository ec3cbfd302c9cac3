"""The arms: who learns at a step, and whose credit a role gets (docs/method.md, "Arms").

All arms share one code path; an arm is a mask on what learns, a form of what is sampled
(``model.form``), or another assignment of rewards or advantages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cahl_core.config import Settings
from cahl_core.errors import TrainingError
from cahl_core.rewards import planner_total
from cahl_core.roles import Role, roles_of
from cahl_core.train_config import Arm
from cahl_core.training.tree import Tree


def learners(settings: Settings, step: int) -> tuple[Role, ...]:
    """The roles that are updated at ``step`` (from 0)."""
    arm: Arm = settings.train.arm
    if arm == "freeze_low":
        return ("planner",)
    if arm == "freeze_high":
        return ("executor",)
    if arm == "alternate_k":
        turn = step // settings.train.alternate_every
        return ("planner",) if turn % 2 == 0 else ("executor",)
    return roles_of(settings.model.form)


def shuffle_credit(trees: Sequence[Tree], settings: Settings) -> None:
    """Pays every plan for the executions of the next tree's plan of the same number.

    What the plan says itself (form, parameters) keeps its own reward; only what executions earned is
    exchanged, so nothing links a plan to what it caused.

    Raises:
        TrainingError: there is one tree only, which would keep its own credit.
    """
    if len(trees) < 2:
        raise TrainingError(
            "shuffled_credit needs two tasks per process and step",
            "raise train.tasks_per_step to at least twice the number of processes",
        )
    weights = settings.train.rewards
    earned = [
        [(p.reward.execution, p.reward.success) if p.reward else (0.0, 0.0) for p in t.plans]
        for t in trees
    ]
    for number, tree in enumerate(trees):
        donors = earned[(number + 1) % len(trees)]
        for node, (execution, success) in zip(tree.plans, donors, strict=True):
            if node.reward is None or node.sample is None:
                continue
            own = node.reward
            total = planner_total(own.form, own.parameters, execution, success, weights)
            node.reward = replace(own, execution=execution, success=success, total=total)
            node.sample.reward = total
