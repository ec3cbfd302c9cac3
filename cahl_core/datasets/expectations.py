"""Great Expectations on the prepared tasks: what must hold before anything is trained on them.

The report is plain JSON and one self-contained HTML page, without times or run ids, so that the
same data gives the same bytes.
"""

from __future__ import annotations

import html
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.datasets.plans import plan_from_gold
from cahl_core.datasets.prompts import PromptMeter
from cahl_core.records import ToolTask

if TYPE_CHECKING:
    import pandas as pd

Report = dict[str, Any]


def frame(
    train: Sequence[ToolTask], dev: Sequence[ToolTask], meter: PromptMeter, faulty_share: float
) -> pd.DataFrame:
    """One row per prepared task with the facts that expectations speak about."""
    import pandas as pd

    held = {t.messages[-1].content for t in dev}
    rows = [
        {
            "id": task.id,
            "source": task.source,
            "split": name,
            "request": task.messages[-1].content.strip() or None,
            "n_tools": len(task.tools),
            "n_steps": len(task.steps),
            "prompt_tokens": meter.planner(task),
            "gold_tools_offered": {c.name for c in task.calls} <= {t.name for t in task.tools},
            "plan_is_gold": task.plan is not None
            and [(s.tool, s.arguments) for s in task.plan.sub_tasks]
            == [(s.tool, s.arguments) for s in plan_from_gold(task).sub_tasks],
            "in_both_splits": name == "train" and task.messages[-1].content in held,
            "faulty_share": faulty_share,
        }
        for name, tasks in (("train", train), ("dev", dev))
        for task in tasks
    ]
    return pd.DataFrame(rows)


def _suite(settings: Settings) -> list[Any]:
    gxe: Any = importlib.import_module("great_expectations.expectations")  # exports untyped
    prepare = settings.prepare
    critical: dict[str, Any] = {"severity": "critical"}
    warning: dict[str, Any] = {"severity": "warning"}
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=2, **critical),
        gxe.ExpectColumnValuesToNotBeNull(column="id", **critical),
        gxe.ExpectColumnValuesToBeUnique(column="id", **critical),
        gxe.ExpectColumnValuesToNotBeNull(column="request", **critical),
        gxe.ExpectColumnDistinctValuesToBeInSet(
            column="source", value_set=list(prepare.sources), **critical
        ),
        gxe.ExpectColumnDistinctValuesToContainSet(
            column="split", value_set=["train", "dev"], **critical
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="prompt_tokens", min_value=1, max_value=prepare.max_prompt_tokens, **critical
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="n_steps", min_value=0, max_value=max(prepare.max_steps, 4), **critical
        ),
        gxe.ExpectColumnValuesToBeInSet(column="gold_tools_offered", value_set=[True], **critical),
        gxe.ExpectColumnValuesToBeInSet(column="plan_is_gold", value_set=[True], **critical),
        gxe.ExpectColumnValuesToBeInSet(column="in_both_splits", value_set=[False], **critical),
        gxe.ExpectColumnMaxToBeBetween(
            column="faulty_share", max_value=prepare.max_faulty_share, **critical
        ),
        gxe.ExpectColumnValuesToBeBetween(column="n_tools", min_value=1, **warning),
        gxe.ExpectColumnValuesToBeBetween(column="n_tools", max_value=20, mostly=0.99, **warning),
    ]


def validate(table: pd.DataFrame, settings: Settings) -> Report:
    """Runs the suite; ``success`` is false if a critical expectation failed."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    batch = (
        context.data_sources.add_pandas("prepared")
        .add_dataframe_asset("tasks")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": table})
    )
    results = [_result(batch.validate(e, result_format="BASIC"), e) for e in _suite(settings)]
    failed = [r for r in results if not r["success"] and r["severity"] == "critical"]
    return {"success": not failed, "rows": len(table), "results": results}


def _result(outcome: Any, expectation: Any) -> Report:
    observed = outcome.result.get("observed_value")
    if observed is None:
        count = outcome.result.get("unexpected_count")
        samples = [str(v) for v in outcome.result.get("partial_unexpected_list") or []][:3]
        observed = f"{count} unexpected" + (f", for example {samples}" if samples else "")
    limits = {
        key: value
        for key in ("min_value", "max_value", "value_set", "mostly")
        if (value := getattr(expectation, key, None)) is not None
    }
    return {
        "expectation": type(expectation).__name__,
        "column": getattr(expectation, "column", None) or "table",
        "limits": limits,
        "success": bool(outcome.success),
        "severity": str(getattr(expectation.severity, "value", expectation.severity)),
        "observed": observed if isinstance(observed, int | float | str) else str(observed),
    }


def page(report: Report) -> str:
    """The report as one HTML page that needs nothing from elsewhere."""
    rows = "\n".join(
        f"<tr class={'ok' if r['success'] else r['severity']}>"
        + "".join(
            f"<td>{html.escape(str(cell))}</td>"
            for cell in (
                "met" if r["success"] else f"FAILED ({r['severity']})",
                r["expectation"],
                r["column"],
                r["limits"] or "",
                r["observed"],
            )
        )
        + "</tr>"
        for r in report["results"]
    )
    verdict = "all critical expectations met" if report["success"] else "critical failure"
    return PAGE.format(rows=rows, verdict=verdict, count=report["rows"])


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Expectations on the prepared tasks</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left }}
.ok td:first-child {{ color: #17713a }}
.critical td:first-child {{ color: #b3261e; font-weight: 600 }}
.warning td:first-child {{ color: #9a6700; font-weight: 600 }}
</style></head><body>
<h1>Expectations on the prepared tasks</h1>
<p>{count} tasks: {verdict}.</p>
<table><tr><th>Result</th><th>Expectation</th><th>Column</th><th>Limits</th><th>Observed</th></tr>
{rows}
</table></body></html>
"""
