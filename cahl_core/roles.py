"""Who writes texts in each form of the model; a role is also its adapter's name."""

from __future__ import annotations

from typing import Literal

from cahl_core.train_config import Form

Role = Literal["planner", "executor"]
ROLES: tuple[Role, ...] = ("planner", "executor")


def roles_of(form: Form) -> tuple[Role, ...]:
    """The roles of a form, in the order they write.

    The flat forms have one: in ``low_only`` the executor reads the whole request, in
    ``single_level`` its one text holds plan and calls.

    >>> roles_of("hierarchical"), roles_of("single_level")
    (('planner', 'executor'), ('executor',))
    """
    return ROLES if form == "hierarchical" else ("executor",)
