"""A prediction as text and as JSON, and beside what a run really took."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cahl_core.cost.peaks import gib, shortage
from cahl_core.cost.prediction import Prediction, training
from cahl_core.cost.workload import ASSUMPTIONS
from cahl_core.errors import DataError
from cahl_core.files import read_jsonl

TIMES = ("prefill", "decode", "rollout", "reference", "update", "step")
# what a row of a run calls it, and how a prediction of it is made
MEASURED_TOKENS = {
    "encoded_prompt_tokens": "encoded",
    "sampled_tokens": "sampled",
}


def as_json(prediction: Prediction, free: int | None) -> dict[str, Any]:
    """Everything, in bytes, tokens and seconds, for machines."""
    memory = prediction.memory
    return {
        "steps": prediction.settings.train.steps,
        "tokens_per_step": prediction.tokens,
        "tokens_per_step_by_role": prediction.by_role,
        "memory_bytes": {
            "stays": memory.stays,
            "adds": memory.adds,
            "peak": {phase: memory.peak(phase) for phase in memory.adds},
            "free": free,
        },
        "seconds_per_step": prediction.seconds,
        "seconds_in_all": prediction.total_seconds,
        "warnings": warnings(prediction, free),
        "assumptions": list(assumptions(prediction)),
    }


def assumptions(prediction: Prediction) -> Iterator[str]:
    """What a prediction rests on."""
    yield from ASSUMPTIONS
    yield f"{prediction.signal:.0%} of the groups have a signal and are trained on (--signal)"


def warnings(prediction: Prediction, free: int | None) -> list[str]:
    """What would stop or hurt the run, with what to change."""
    said = []
    if free is not None:
        said += shortage(prediction.memory, prediction.settings, prediction.passes, free)
    if prediction.too_long:
        said.append(
            f"{prediction.too_long} prompts of {len(prediction.steps)} steps leave no room for a "
            "completion: raise model.max_context, or lower prepare.max_prompt_tokens"
        )
    longest = max(own.longest_row for load in prediction.steps for own in load.roles.values())
    if longest > prediction.settings.train.row_tokens:
        said.append(
            f"a sequence of {longest} tokens is over train.row_tokens="
            f"{prediction.settings.train.row_tokens} and has a row of its own"
        )
    return said


def lines(prediction: Prediction, free: int | None) -> Iterator[str]:
    """The prediction for people."""
    settings = prediction.settings
    train = settings.train
    yield (
        f"{settings.profile}: {train.steps} steps of {train.tasks_per_step} tasks, "
        f"{train.plans_per_task} plans each, {train.executions_per_plan} executions per sub-task"
    )
    yield f"\ntokens per step (mean of {len(prediction.steps)} steps)"
    yield from _tokens(prediction)
    yield "\nmemory in GiB"
    yield from _memory(prediction)
    yield f"  free now: {'unknown' if free is None else gib(free)}"
    if prediction.seconds:
        yield "\nseconds per step"
        for name in TIMES:
            yield f"  {name:<10}{prediction.seconds[name]:>10.2f}"
        yield f"  whole run: {_duration(prediction.total_seconds)}"
    yield "\nassumed"
    yield from (f"  {sentence}" for sentence in assumptions(prediction))
    yield from (f"warning: {sentence}" for sentence in warnings(prediction, free))


def _tokens(prediction: Prediction) -> Iterator[str]:
    roles = list(prediction.by_role)
    names = {
        "encoded": "prompts encoded",
        "sampled": "sampled, expected",
        "sampled_bound": "sampled, at most",
        "packed": "update's rows, expected",
        "packed_bound": "update's rows, at most",
    }
    yield f"  {'':<26}" + "".join(f"{r:>12}" for r in [*roles, "together"])
    for key, label in names.items():
        values = [*(prediction.by_role[r][key] for r in roles), prediction.tokens[key]]
        yield f"  {label:<26}" + "".join(f"{v:>12,.0f}" for v in values)
    yield f"  {'reference, expected':<26}{prediction.tokens['reference']:>12,.0f}"


def _memory(prediction: Prediction) -> Iterator[str]:
    memory = prediction.memory
    for name, value in memory.stays.items():
        yield f"  {name:<26}{gib(value):>8}"
    for phase, parts in memory.adds.items():
        added = ", ".join(f"{name} {gib(value)}" for name, value in parts.items())
        yield f"  {phase + ', peak':<26}{gib(memory.peak(phase)):>8}  (+ {added})"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


# --- against a run --------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, float]]:
    """The steps of a run, as training leaves them.

    Raises:
        DataError: the file is missing or holds no step.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist", "a run leaves .cahl/reports/train_steps.jsonl")
    rows = [dict(row) for row in read_jsonl(path)]
    if not rows:
        raise DataError(f"{path} holds no step", "give the file of a run that did at least one")
    return rows


def against(
    prediction: Prediction, rows: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Predicted and measured values, and their ratio: means of tokens, medians of seconds, peaks."""
    found: dict[str, dict[str, float]] = {}

    def put(name: str, predicted: float, measured: float) -> None:
        ratio = predicted / measured if measured else float("nan")
        found[name] = {"predicted": predicted, "measured": measured, "ratio": ratio}

    for key, own in MEASURED_TOKENS.items():
        put(key, prediction.tokens[own], statistics.fmean(row[key] for row in rows))
    for role, counts in prediction.by_role.items():
        if all(f"{role}/packed_tokens" in row for row in rows):
            measured = statistics.fmean(row[f"{role}/packed_tokens"] for row in rows)
            put(f"{role}/packed_tokens", counts["packed"], measured)
    for phase in ("rollout", "reference", "update"):
        peaks = [row[k] for row in rows if (k := f"memory/{phase}_peak_gib") in row]
        if peaks:
            put(f"memory/{phase}_peak_gib", prediction.memory.peak(phase) / 2**30, max(peaks))
    for phase in TIMES if prediction.seconds else ():
        measured = statistics.median(row[f"seconds/{phase}"] for row in rows)
        put(f"seconds/{phase}", prediction.seconds[phase], measured)
    if prediction.speed:
        put("seconds/update of these tokens", *_update_of(rows, prediction))
    return found


def _update_of(rows: Sequence[Mapping[str, float]], prediction: Prediction) -> tuple[float, float]:
    """Seconds of the update that the measured speed gives the tokens trained on, and the run's."""
    speed, settings = prediction.speed, prediction.settings
    assert speed is not None
    spent = [
        row.get(f"{role}/packed_tokens", 0.0) * training(role, settings, speed)
        for row in rows
        for role in prediction.by_role
    ]
    return sum(spent) / len(rows), statistics.fmean(row["seconds/update"] for row in rows)


def comparison(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """`against` for people."""
    yield f"\n{'':<30}{'predicted':>12}{'measured':>12}{'ratio':>8}"
    for name, values in found.items():
        numbers = f"{values['predicted']:>12,.2f}{values['measured']:>12,.2f}"
        yield f"{name:<30}{numbers}{values['ratio']:>8.2f}"
