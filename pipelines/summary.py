"""The table a pipeline run ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cahl_core.files import read_json
from cahl_core.stage import last_record

MODELS = {"base": "base", "sft": "after SFT", "cahl": "after CAHL"}
METRICS = Path("metrics/evaluate.json")
REPORT = Path("reports/evaluation/report.html")


def summary(root: Path, stages: Sequence[str], ran: Sequence[str]) -> RenderableType:
    """Scores of the three models, time and memory per stage, what to look at next."""
    parts: list[RenderableType] = [_stages(root, stages, ran), _next(root, stages)]
    if (root / METRICS).exists():
        parts.insert(0, _scores(read_json(root / METRICS)))
    return Group(*parts)


def _scores(scores: dict[str, Any]) -> Table:
    table = Table(title=f"BFCL v3, {scores.get('n', '?')} items", title_justify="left")
    table.add_column("model")
    for name in ("BFCL accuracy", "95 % interval", "plan validity", "call validity", "mean reward"):
        table.add_column(name, justify="right")
    for key, label in MODELS.items():
        if row := scores.get(key):
            table.add_row(
                label,
                _percent(row, "bfcl_accuracy"),
                f"{_percent(row, 'bfcl_accuracy_low')} – {_percent(row, 'bfcl_accuracy_high')}",
                _percent(row, "plan_validity"),
                _percent(row, "call_validity"),
                _number(row, "mean_reward"),
            )
    return table


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
