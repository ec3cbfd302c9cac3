"""The table a pipeline run ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cahl_core.files import read_json
from cahl_core.stage_record import last_record

MODELS = {"base": "base", "sft": "after SFT", "cahl": "after CAHL"}
METRICS = Path("metrics/evaluate.json")
REPORT = Path("reports/evaluation/report.html")


def summary(root: Path, stages: Sequence[str], ran: Sequence[str]) -> RenderableType:
    """Scores of the three models, time and memory per stage, what to look at next."""
    parts: list[RenderableType] = [_stages(root, stages, ran), _next(root, stages)]
    if (root / METRICS).exists():
        parts.insert(0, _scores(read_json(root / METRICS)))
    return Group(*parts)


def _scores(metrics: dict[str, Any]) -> Table:
    """One row per benchmark and model; of BFCL the items that need calls."""
    table = Table(title=f"evaluation, {metrics.get('n', '?')} items", title_justify="left")
    for name in ("benchmark", "model"):
        table.add_column(name)
    for name in ("n", "accuracy", "95 % interval", "plan validity", "call validity", "mean reward"):
        table.add_column(name, justify="right")
    for benchmark in _benchmarks(metrics):
        for key, own in metrics.items():
            if row := isinstance(own, dict) and own.get(benchmark):
                table.add_row(*_score(benchmark, MODELS.get(key, key), row))
    return table


def _benchmarks(metrics: dict[str, Any]) -> list[str]:
    own = [value for value in metrics.values() if isinstance(value, dict)]
    return list(dict.fromkeys(name for rows in own for name, row in rows.items() if "n" in row))


def _score(benchmark: str, model: str, row: dict[str, Any]) -> list[str]:
    found = row.get("calls_due", row)
    return [
        benchmark + (", calls due" if "calls_due" in row else ""),
        model,
        str(found["n"]),
        _percent(found, "accuracy"),
        f"{_percent(found, 'low')} – {_percent(found, 'high')}",
        _percent(row, "plan_validity"),
        _percent(row, "call_validity"),
        _number(row, "mean_reward"),
    ]


def _stages(root: Path, stages: Sequence[str], ran: Sequence[str]) -> Table:
    table = Table(title="stages", title_justify="left")
    for name in ("stage", "wall time", "peak memory", ""):
        table.add_column(name, justify="left" if name in ("stage", "") else "right")
    for name in stages:
        record = last_record(root, name)
        note = "" if name in ran else "unchanged, from an earlier run"
        table.add_row(name, _duration(record), _memory(record), note)
    return table


def _next(root: Path, stages: Sequence[str]) -> Text:
    lines = ["make ui: the asset graph in Dagster, and MLflow"]
    for name in reversed(stages):
        if url := (last_record(root, name).get("mlflow") or {}).get("url"):
            lines.append(f"MLflow run ({name}): {url}")
            break
    if (root / REPORT).exists():
        lines.append(f"evaluation report: {REPORT}")
    return Text("\n".join(["Look at next:", *(f"  {line}" for line in lines)]))


def show(content: RenderableType) -> None:
    """Prints to standard output, wide enough for the table where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    console.print(content)


def _percent(row: dict[str, Any], key: str) -> str:
    return f"{100 * row[key]:.1f} %" if row.get(key) is not None else "–"


def _number(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3f}" if row.get(key) is not None else "–"


def _duration(record: dict[str, Any]) -> str:
    if "wall_seconds" not in record:
        return "–"
    minutes, seconds = divmod(round(record["wall_seconds"]), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _memory(record: dict[str, Any]) -> str:
    return f"{record['peak_rss_bytes'] / 1e9:.1f} GB" if "peak_rss_bytes" in record else "–"
