"""Settings that contradict one another are refused with a sentence that names both."""

from __future__ import annotations

from typing import Any

import pytest

from cahl_core.config import validate
from cahl_core.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train": {"arm": "low_only"}}, "train.arm=low_only needs model.form=low_only"),
        ({"model": {"form": "single_level"}}, "train.arm=joint needs model.form=hierarchical"),
        (
            {"train": {"recombine": True, "history": "free_running"}},
            "train.recombine=true needs train.history=teacher_forced",
        ),
        (
            {"train": {"arm": "shuffled_credit", "tasks_per_step": 1}},
            "needs train.tasks_per_step of at least 2",
        ),
        (
            {"train": {"curriculum": {"low": 0.9, "high": 0.5}}},
            "train.curriculum.low must be below train.curriculum.high",
        ),
    ],
)
def test_contradictions_name_both_settings(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(values)
    message = str(refused.value)
    assert sentence in message
    assert "Value error" not in message and "{" not in message


def test_an_arm_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"train\.arm: .*'joint'.*'shuffled_credit', got 'jont'"):
        validate({"train": {"arm": "jont"}})


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_a_flat_forms_text_has_room_for_plan_and_calls(form: str) -> None:
    settings = validate({"model": {"form": form}, "train": {"arm": form}})
    hierarchical = validate({})
    planner, executor = (hierarchical.max_tokens(r) for r in ("planner", "executor"))
    assert settings.max_tokens("executor") == planner + 2 * executor
