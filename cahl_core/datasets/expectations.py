"""Great Expectations on raw records and prepared tasks: five suites, each critical or warning.

``raw`` looks at the source records, ``prepared`` at every task, ``sft`` at what supervised training
writes, ``rl`` at what gold earns, ``eval`` at the splits. A critical expectation that fails stops what
follows (`cahl prepare` fails, Dagster's check blocks); a warning is shown. The results are plain JSON,
without times or run ids, so that the same data give the same bytes.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.datasets.checks import LIMITS
from cahl_core.datasets.derive import KINDS
from cahl_core.datasets.splits import DEV, SPLITS, TRAIN, UNSEEN

if TYPE_CHECKING:
    import pandas as pd

Report = dict[str, Any]
CRITICAL: dict[str, Any] = {"severity": "critical"}
WARNING: dict[str, Any] = {"severity": "warning"}
MIN_GOLD_SHARE = 0.99  # of the tasks whose gold earns the maximum
SHOWN = 3


def run_suites(frames: Mapping[str, pd.DataFrame], settings: Settings) -> Report:
    """``{"success", "suites": {name: {"success", "warnings", "rows", "results"}}}``.

    Args:
        frames: ``tasks`` (one row of facts per task) and ``raw`` (one row per source record).

    ``success`` is false where a critical expectation failed.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    source = context.data_sources.add_pandas("prepare")
    raw = _raw_facts(frames["raw"])
    tasks = _task_facts(frames["tasks"])
    suites = {}
    for name, expectations in _suites(settings).items():
        table = raw if name == "raw" else tasks
        suite = gx.ExpectationSuite(name=name, expectations=expectations)
        asset = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        batch = asset.get_batch({"dataframe": table})
        outcome = batch.validate(suite, result_format="BASIC")
        results = [_result(r) for r in outcome.results]
        suites[name] = _summary(results, len(table))
    return {"success": all(s["success"] for s in suites.values()), "suites": suites}


def _summary(results: list[Report], rows: int) -> Report:
    order = sorted(results, key=lambda r: (r["column"], r["expectation"], str(r["limits"])))
    failed = [r for r in order if not r["success"]]
    critical = sum(r["severity"] == "critical" for r in failed)
    return {
        "success": not critical,
        "warnings": len(failed) - critical,
        "rows": rows,
        "results": order,
    }


def _raw_facts(raw: pd.DataFrame) -> pd.DataFrame:
    table = raw.copy()
    table["faulty"] = ~table["rule"].isin(["", *LIMITS])
    judged = table[~table["held_out"]]
    share = float(judged["faulty"].mean()) if len(judged) else 0.0
    table["faulty_share"] = share
    table["key"] = table["source"] + " " + table["id"]
    return table


def _task_facts(tasks: pd.DataFrame) -> pd.DataFrame:
    table = tasks.drop(columns=["gold_tools", "offered_tools"]).copy()
    dev = set(tasks.loc[tasks["split"] != TRAIN, "text_digest"])
    train = tasks["split"] == TRAIN
    table["in_two_splits"] = train & tasks["text_digest"].isin(dev)
    unseen = {t for names in tasks.loc[tasks["split"] == UNSEEN, "gold_tools"] for t in names}
    table["offers_unseen_tool"] = [
        split != UNSEEN and not unseen.isdisjoint(offered)
        for split, offered in zip(tasks["split"], tasks["offered_tools"], strict=True)
    ]
    table["depth_beyond_calls"] = tasks["depth"] > tasks["n_calls"].clip(lower=1)
    longest = tasks[["planner_tokens", "executor_tokens"]].max(axis=1)
    table["prompt_tokens"] = longest
    table["context_tokens"] = (
        (tasks["planner_tokens"] + tasks["plan_tokens"]).combine(
            tasks["executor_tokens"] + tasks["execution_tokens"], max
        )
    )  # fmt: skip
    table["declines"] = (tasks["n_calls"] == 0).astype(int)
    return table


def _suites(settings: Settings) -> dict[str, list[Any]]:
    return {
        "raw": _raw(settings),
        "prepared": _prepared(settings),
        "sft": _sft(settings),
        "rl": _rl(),
        "eval": _eval(settings),
    }


def _gxe() -> Any:
    return importlib.import_module("great_expectations.expectations")  # exports untyped names


def _raw(settings: Settings) -> list[Any]:
    gxe, prepare = _gxe(), settings.prepare
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, **CRITICAL),
        gxe.ExpectColumnValuesToNotBeNull(column="id", **CRITICAL),
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column="source", value_set=list(prepare.sources), **CRITICAL
        ),
        gxe.ExpectColumnMaxToBeBetween(
            column="faulty_share", max_value=prepare.max_faulty_share, **CRITICAL
        ),
        gxe.ExpectColumnValuesToBeUnique(column="key", mostly=0.99, **WARNING),
        gxe.ExpectColumnValuesToBeInSet(
            column="rule", value_set=["", *LIMITS], mostly=0.9, **WARNING
        ),
    ]


def _prepared(settings: Settings) -> list[Any]:
    gxe, prepare = _gxe(), settings.prepare
    kinds = ["original", "qa", *KINDS]
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=2, **CRITICAL),
        gxe.ExpectColumnValuesToNotBeNull(column="id", **CRITICAL),
        gxe.ExpectColumnValuesToBeUnique(column="id", **CRITICAL),
        gxe.ExpectColumnValuesToNotBeNull(column="request", **CRITICAL),
        gxe.ExpectColumnValuesToBeInSet(
            column="source", value_set=list(prepare.sources), **CRITICAL
        ),
        gxe.ExpectColumnValuesToBeInSet(column="kind", value_set=kinds, **CRITICAL),
        gxe.ExpectColumnValuesToBeBetween(
            column="prompt_tokens", min_value=0, max_value=prepare.max_prompt_tokens, **CRITICAL
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="n_steps", min_value=0, max_value=max(prepare.max_steps, 5), **CRITICAL
        ),
        gxe.ExpectColumnValuesToBeInSet(column="depth_beyond_calls", value_set=[False], **CRITICAL),
        gxe.ExpectColumnValuesToBeBetween(
            column="n_tools", max_value=prepare.max_tools + prepare.distractors, **CRITICAL
        ),
        gxe.ExpectColumnValuesToBeBetween(column="n_tools", max_value=20, mostly=0.99, **WARNING),
        gxe.ExpectColumnMeanToBeBetween(column="declines", max_value=0.5, **WARNING),
    ]


def _sft(settings: Settings) -> list[Any]:
    gxe = _gxe()
    return [
        gxe.ExpectColumnValuesToBeInSet(column="targets_parse", value_set=[True], **CRITICAL),
        gxe.ExpectColumnValuesToBeInSet(column="plan_is_gold", value_set=[True], **CRITICAL),
        gxe.ExpectColumnValuesToBeBetween(
            column="context_tokens", max_value=settings.model.max_context, **CRITICAL
        ),
    ]


def _rl() -> list[Any]:
    gxe = _gxe()
    found = [
        gxe.ExpectColumnValuesToBeInSet(column="gold_tools_offered", value_set=[True], **CRITICAL)
    ]
    for column in ("gold_planner_reward", "gold_executor_reward"):
        limits = {"column": column, "min_value": 1.0}
        found += [
            gxe.ExpectColumnValuesToBeBetween(**limits, mostly=MIN_GOLD_SHARE, **CRITICAL),
            gxe.ExpectColumnValuesToBeBetween(**limits, **WARNING),
        ]
    return found


def _eval(settings: Settings) -> list[Any]:
    gxe = _gxe()
    found = [
        gxe.ExpectColumnDistinctValuesToContainSet(
            column="split", value_set=[TRAIN, DEV], **CRITICAL
        ),
        gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS), **CRITICAL),
        gxe.ExpectColumnValuesToBeInSet(column="in_two_splits", value_set=[False], **CRITICAL),
        gxe.ExpectColumnValuesToBeInSet(column="offers_unseen_tool", value_set=[False], **CRITICAL),
    ]
    if settings.prepare.unseen_tool_tasks:
        found.append(
            gxe.ExpectColumnDistinctValuesToContainSet(
                column="split", value_set=[UNSEEN], **WARNING
            )
        )
    return found


def _result(outcome: Any) -> Report:
    configuration = outcome.expectation_config
    limits = {
        key: value
        for key in ("min_value", "max_value", "value_set", "mostly")
        if (value := configuration.kwargs.get(key)) is not None and (key, value) != ("mostly", 1)
    }
    name = "".join(part.capitalize() for part in configuration.type.split("_"))
    severity = configuration.severity
    return {
        "expectation": name,
        "column": configuration.kwargs.get("column") or "table",
        "limits": limits,
        "success": bool(outcome.success),
        "severity": str(getattr(severity, "value", severity)),
        "observed": _observed(outcome),
    }


def _observed(outcome: Any) -> int | float | str:
    """What was seen; where the expectation could not be evaluated, why."""
    observed = outcome.result.get("observed_value")
    if observed is not None:
        return observed if isinstance(observed, int | float | str) else str(observed)
    said = []
    for kind in ("unexpected", "missing"):
        count = outcome.result.get(f"{kind}_count")
        if count or (count == 0 and kind == "unexpected"):
            samples = [str(v) for v in outcome.result.get(f"partial_{kind}_list") or []][:SHOWN]
            said.append(f"{count} {kind}" + (f", for example {samples}" if samples else ""))
    if said:
        return "; ".join(said)
    details = outcome.exception_info or {}
    raised = [d for d in (details, *details.values()) if isinstance(d, Mapping)]
    reasons = [d["exception_message"] for d in raised if d.get("exception_message")]
    return f"not evaluated: {reasons[0]}" if reasons else ""
