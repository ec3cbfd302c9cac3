"""Asset checks: what must hold before the next stage may run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from cahl_core.errors import DataError
from cahl_core.files import read_json

EXPECTATIONS = Path("data/prepared/expectations.json")
REPORT = Path("data/prepared/expectations.html")


def prepared_data_check(root: Path) -> dg.AssetChecksDefinition:
    """Blocks training while a critical expectation on the prepared data fails."""

    @dg.asset_check(
        asset="prepare",
        blocking=True,
        description="Great Expectations on the prepared tasks; critical ones stop what follows.",
    )
    def expectations() -> dg.AssetCheckResult:
        return judge(root / EXPECTATIONS)

    return expectations


def judge(path: Path) -> dg.AssetCheckResult:
    """ERROR for a failed critical expectation or an unreadable report, WARN for lesser ones."""
    try:
        results = read_json(path)["results"]
    except (OSError, DataError, KeyError, TypeError) as error:
        return dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"no validation report in {path.name}: {error}; run prepare again",
        )
    failed = [r for r in results if not r.get("success")]
    critical = [r for r in failed if r.get("severity", "critical") == "critical"]
    return dg.AssetCheckResult(
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN,
        description=_describe(results, failed),
        metadata={
            "expectations": len(results),
            "failed": len(failed),
            "failed_critical": len(critical),
            "failures": dg.MetadataValue.json(failed),
            "report": str(REPORT),
        },
    )


def _describe(results: list[dict[str, Any]], failed: list[dict[str, Any]]) -> str:
    if not failed:
        return f"all {len(results)} expectations hold"
    named = "; ".join(
        f"{r.get('expectation')} on {r.get('column') or 'the table'}: {r.get('observed')}"
        for r in failed
    )
    return f"{len(failed)} of {len(results)} expectations fail: {named} (see {REPORT})"
