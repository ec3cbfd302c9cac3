"""Asset checks: what must hold before the next stage may run.

One check per Great Expectations suite of ``prepare``, one for test questions among the training data, one
for drift. A failed critical expectation is an ERROR and blocks what follows; a warning is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from cahl_core.errors import DataError
from cahl_core.files import read_json

REPORTS = Path("reports/data")
EXPECTATIONS = REPORTS / "expectations.json"
CONTAMINATION = REPORTS / "contamination.json"
REPORT = REPORTS / "report.html"
DRIFT = Path(
    ".cahl/prepare/drift.json"
)  # no out: the same data drift differently from different pasts
SUITES = {
    "raw": "Great Expectations on the source records.",
    "prepared": "Great Expectations on every prepared task.",
    "sft": "Great Expectations on what supervised training writes.",
    "rl": "Great Expectations on what gold earns: a reward that gold cannot reach teaches nonsense.",
    "eval": "Great Expectations on the splits: no request twice, no unseen tool in training.",
}
DESCRIPTIONS = {
    **{f"expectations_{name}": text for name, text in SUITES.items()},
    "decontamination": "Every test set named in prepare.decontaminate was compared with.",
    "drift": "How far the data moved since their previous version.",
}


def prepared_data_checks(root: Path) -> dg.AssetChecksDefinition:
    """All checks of the asset ``prepare``, in one step."""
    verdicts: dict[str, Callable[[], dg.AssetCheckResult]] = {
        f"expectations_{name}": partial(judge, root / EXPECTATIONS, name) for name in SUITES
    }
    verdicts["decontamination"] = partial(judge_contamination, root / CONTAMINATION)
    verdicts["drift"] = partial(judge_drift, root / DRIFT)
    specs = [
        dg.AssetCheckSpec(name, asset="prepare", description=text, blocking=name != "drift")
        for name, text in DESCRIPTIONS.items()
    ]

    @dg.multi_asset_check(specs=specs, name="prepared_data")
    def checks() -> Iterator[dg.AssetCheckResult]:
        for name, verdict in verdicts.items():
            yield verdict()._replace(asset_key=dg.AssetKey("prepare"), check_name=name)

    return checks


def judge(path: Path, suite: str) -> dg.AssetCheckResult:
    """ERROR for a failed critical expectation or an unreadable report, WARN for lesser ones."""
    try:
        results = read_json(path)["suites"][suite]["results"]
    except (OSError, DataError, KeyError, TypeError) as error:
        return _unreadable(path, error)
    failed = [r for r in results if not r.get("success")]
    critical = [r for r in failed if r.get("severity", "critical") == "critical"]
    return dg.AssetCheckResult(
        passed=not failed,
        severity=_error(bool(critical)),
        description=_describe(results, failed),
        metadata={
            "expectations": len(results),
            "failed": len(failed),
            "failed_critical": len(critical),
            "failures": dg.MetadataValue.json(failed),
            "report": str(REPORT),
        },
    )


def judge_contamination(path: Path) -> dg.AssetCheckResult:
    """ERROR where no report can be read; WARN where a test set could not be compared with."""
    try:
        found = read_json(path)
        unchecked: list[str] = found["not_checked"]
        benchmarks: dict[str, Any] = found["benchmarks"]
        aside = {name: b["exact"] + b["ten_gram"] for name, b in benchmarks.items()}
    except (OSError, DataError, KeyError, TypeError) as error:
        return _unreadable(path, error)
    removed = ", ".join(f"{name} {n}" for name, n in aside.items()) or "no test set is named"
    return dg.AssetCheckResult(
        passed=not unchecked,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"records set aside: {removed}"
        + (f"; NOT compared with: {', '.join(unchecked)}" if unchecked else ""),
        metadata={"set_aside": dg.MetadataValue.json(aside), "report": str(REPORT)},
    )


def judge_drift(path: Path) -> dg.AssetCheckResult:
    """WARN where the data moved far; passed where they moved little or have no past."""
    try:
        found = read_json(path)
        verdict, sentences = str(found["verdict"]), list(found["sentences"])
    except (OSError, DataError, KeyError, TypeError) as error:
        return _unreadable(path, error, dg.AssetCheckSeverity.WARN)
    return dg.AssetCheckResult(
        passed=verdict != "large",
        severity=dg.AssetCheckSeverity.WARN,
        description=f"drift: {verdict}" + "".join(f"; {s}" for s in sentences),
        metadata={"measures": dg.MetadataValue.json(found.get("measures", {}))},
    )


def _error(critical: bool) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN


def _unreadable(
    path: Path,
    error: Exception,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=False,
        severity=severity,
        description=f"no validation report in {path.name}: {error}; run prepare again",
    )


def _describe(results: list[dict[str, Any]], failed: list[dict[str, Any]]) -> str:
    if not failed:
        return f"all {len(results)} expectations hold"
    named = "; ".join(
        f"{r.get('expectation')} on {r.get('column') or 'the table'}: {r.get('observed')}"
        for r in failed
    )
    return f"{len(failed)} of {len(results)} expectations fail: {named} (see {REPORT})"
