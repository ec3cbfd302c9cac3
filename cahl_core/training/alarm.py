"""The collapse alarm: warnings when entropy, length or learning signal of a role leave their bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from cahl_core.roles import ROLES
from cahl_core.train_config import AlarmSettings

GROUPS = ("groups", "zero_variance_groups")
LENGTHS = {"planner": "plan_tokens", "executor": "executor_tokens"}


class CollapseAlarm:
    """Says when entropy, length or signal of a role leave their bounds (``train.alarm``).

    Means are over the last ``window`` rows, lengths against the mean of the first ``window`` rows.
    An alarm is raised once and again only after it has cleared. Entropy and groups are watched in the
    rows in which the role learned (``<role>/loss`` is there), entropy where it had tokens to learn from:
    without any it is reported as 0. Lengths are watched in all rows.
    """

    def __init__(self, settings: AlarmSettings) -> None:
        self.settings = settings
        self._recent: dict[str, list[float]] = {}
        self._first: dict[str, list[float]] = {}
        self._raised: set[str] = set()

    def feed(self, row: Mapping[str, float]) -> list[str]:
        """Takes one step's metrics; returns the warnings that are new with it."""
        for key in self._watched(row):
            if key in row and isfinite(row[key]):
                self._note(key, float(row[key]))
        now = {name: text for role in ROLES for name, text in self._alarms(role)}
        new = [text for name, text in now.items() if name not in self._raised]
        self._raised = set(now)
        return new

    def _watched(self, row: Mapping[str, float]) -> Iterator[str]:
        yield from LENGTHS.values()
        for role in ROLES:
            if f"{role}/loss" not in row:
                continue
            yield from (f"{role}/{name}" for name in GROUPS)
            if row.get(f"{role}/trained_tokens", 1.0) > 0:
                yield f"{role}/entropy"

    def _note(self, key: str, value: float) -> None:
        window = self.settings.window
        first = self._first.setdefault(key, [])
        if key in LENGTHS.values() and len(first) < window:
            first.append(value)
        self._recent[key] = [*self._recent.get(key, []), value][-window:]

    def _alarms(self, role: str) -> Iterator[tuple[str, str]]:
        bounds, over = self.settings, f"over the last {self.settings.window} steps"
        entropy = self._mean(f"{role}/entropy")
        if entropy is not None and entropy < bounds.min_entropy:
            yield (
                f"{role}/entropy",
                (
                    f"{role}: entropy {entropy:.4f} nats per token {over}, below "
                    f"train.alarm.min_entropy={bounds.min_entropy:g}: its samples are becoming one "
                    f"text; raise train.{role}.entropy_weight, kl_weight or temperature"
                ),
            )
        yield from self._length(role, LENGTHS[role], over)
        flat = self._flat_share(role)
        if flat is not None and flat > bounds.zero_variance:
            yield (
                f"{role}/zero_variance",
                (
                    f"{role}: {flat:.0%} of its groups {over} have equal rewards, above "
                    f"train.alarm.zero_variance={bounds.zero_variance:g}: little is learned; set "
                    f"train.{role}.dynamic_sampling=true, or larger groups, or other tasks"
                ),
            )

    def _length(self, role: str, key: str, over: str) -> Iterator[tuple[str, str]]:
        now, first, factor = self._mean(key), self._first.get(key, []), self.settings.length_factor
        start = sum(first) / len(first) if first else 0.0
        if now is None or not start:
            return
        if now > factor * start:
            yield (
                f"{role}/longer",
                (
                    f"{role}: {now:.1f} tokens per text {over}, {now / start:.1f} times the first "
                    f"steps' {start:.1f} (train.alarm.length_factor={factor:g}): look at the texts with "
                    "`cahl inspect`; loss_type=dr_grpo does not favour long wrong texts"
                ),
            )
        elif now * factor < start:
            yield (
                f"{role}/shorter",
                (
                    f"{role}: {now:.1f} tokens per text {over} against {start:.1f} in the first steps "
                    f"(train.alarm.length_factor={factor:g}): look at the texts with `cahl inspect`; "
                    "declining may have become what pays"
                ),
            )

    def _mean(self, key: str) -> float | None:
        """Over the window; ``None`` until it is full."""
        values = self._recent.get(key, [])
        return sum(values) / len(values) if len(values) == self.settings.window else None

    def _flat_share(self, role: str) -> float | None:
        groups, flat = (self._mean(f"{role}/{name}") for name in GROUPS)
        return flat / groups if groups and flat is not None else None

    def to_json(self) -> dict[str, Any]:
        """The state, for a checkpoint."""
        return {
            "recent": {key: list(values) for key, values in self._recent.items()},
            "first": {key: list(values) for key, values in self._first.items()},
            "raised": sorted(self._raised),
        }

    def load_json(self, state: Mapping[str, Any]) -> None:
        """Takes over what `to_json` gave: the alarm goes on as if it had not stopped."""
        self._recent = {key: list(values) for key, values in state["recent"].items()}
        self._first = {key: list(values) for key, values in state["first"].items()}
        self._raised = set(state["raised"])
