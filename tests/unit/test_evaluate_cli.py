"""What the options of ``cahl evaluate`` become: settings, and only those that were given."""

from __future__ import annotations

from cahl_core.evaluate_cli import _overrides


def test_options_that_are_not_given_leave_the_projects_settings_alone() -> None:
    assert _overrides(None, None, None, None) == []
    assert _overrides(None, 4, None, ["evaluate.temperature=0.7"]) == [
        "evaluate.samples=4",
        "evaluate.temperature=0.7",
    ]


def test_models_are_one_setting_whatever_is_in_their_names() -> None:
    models = ["base", 'hf:a "b"?form=low_only']
    assert _overrides(models, None, 0.0, None) == [
        "evaluate.temperature=0.0",
        'evaluate.models=["base", "hf:a \\"b\\"?form=low_only"]',
    ]
