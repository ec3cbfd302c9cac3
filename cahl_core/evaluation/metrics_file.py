"""``metrics/evaluate.json``: the numbers of an evaluation that DVC, MLflow and Dagster follow.

{"n": items, "<model>": {"<benchmark>": {"n", "accuracy", "low", "high", "plan_validity",
 "call_validity", "redundant_call_rate", …the benchmark's own numbers}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahl_core.evaluation.metrics import wilson

MEASURES = (
    "plan_validity",
    "redundant_call_rate",
    "calls_per_task",
    "tokens_per_task",
    "adherence",
)


def metrics_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the file, from the content of results.json."""
    found: dict[str, Any] = {
        "n": sum(n for b in results["benchmarks"].values() for n in b["evaluated"].values())
    }
    for model, own in results["results"].items():
        found[model] = {name: _benchmark(summary) for name, summary in own.items()}
        found[model] |= results.get("combined", {}).get(model, {})
    return found


def _benchmark(summary: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, measures = summary["accuracy"], summary["measures"]
    invalid = measures["invalid_call_rate"]["value"]
    return {
        "n": summary["n"],
        "accuracy": accuracy["value"],
        "low": accuracy["low"],
        "high": accuracy["high"],
        "call_validity": None if invalid is None else 1 - invalid,
        **{name: measures[name]["value"] for name in MEASURES},
        **{f"pass_at_{k}": value["value"] for k, value in summary["pass_at"].items()},
        "by_category": {c: row["accuracy"]["value"] for c, row in summary["by_category"].items()},
        **_numbers(summary["own"]),
        **_calls_due(summary["own"]),
    }


def calls_due(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """n, accuracy and Wilson's interval over the items of BFCL that need calls; ``None`` elsewhere."""
    ast = own.get("ast")
    if not ast:
        return None
    low, high = wilson(round(ast["accuracy"] * ast["n"]), ast["n"])
    return {
        "n": ast["n"], "value": ast["accuracy"], "low": low, "high": high, "method": "proportion",
    }  # fmt: skip


def _calls_due(own: Mapping[str, Any]) -> dict[str, Any]:
    found = calls_due(own)
    if found is None:
        return {}
    return {
        "calls_due": {"accuracy": found["value"], **{k: found[k] for k in ("n", "low", "high")}}
    }


def score(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a benchmark's row that a short table shows: n, accuracy, low, high."""
    shown: Mapping[str, Any] = row.get("calls_due", row)
    return shown


def _numbers(value: Any) -> Any:
    """The numbers of a benchmark's own summary; texts and lists are for the report."""
    if isinstance(value, Mapping):
        kept = {str(k): _numbers(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v is not None and v != {}}
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers as ``a/b/c`` keys; what was not observed is left out."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{_plain(str(key))}"] = float(value)
    return found


def _plain(name: str) -> str:
    """MLflow refuses other characters in names of metrics."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """``model/benchmark/accuracy`` and the mean reward: what a materialization shows."""
    found: dict[str, float] = {}
    for model, own in metrics.items():
        if not isinstance(own, Mapping):
            continue
        for name, row in own.items():
            if "n" not in row:  # combined scores
                found |= flat(row, f"{model}/{name}/")
                continue
            shown = {**row, "accuracy": score(row)["accuracy"]}
            for key in ("accuracy", "plan_validity", "call_validity", "mean_reward"):
                if shown.get(key) is not None:
                    found[f"{model}/{name}/{key}"] = float(shown[key])
    return found
