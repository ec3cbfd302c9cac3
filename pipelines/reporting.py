"""What the UI shows beside a materialization: metrics, sums, links, figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from cahl_core.files import read_json
from cahl_core.lineage import DvcStage, locked_sums
from cahl_core.stage_record import last_record
from pipelines.figures import figures


def data_version(stage: DvcStage, root: Path) -> str:
    """The md5 ``dvc.lock`` records for the stage's outs; of several outs, the md5 of their list."""
    locked = locked_sums(root)
    sums = [locked[path] for path in stage.outs if path in locked]
    if len(sums) == 1:
        return sums[0]
    return hashlib.md5("\n".join(sums).encode()).hexdigest()


def stage_metadata(stage: DvcStage, root: Path) -> dict[str, Any]:
    """Metadata of the stage's files as they are now, whether or not it just ran."""
    record = last_record(root, stage.name)
    locked = locked_sums(root)
    sums = {path: locked[path] for path in stage.products if path in locked}
    shown: dict[str, Any] = {"dvc_md5": dg.MetadataValue.json(sums)}
    shown |= {key: as_metadata(value) for key, value in (record.get("metadata") or {}).items()}
    for path in stage.metrics:
        shown |= _numbers(root / path)
    if "wall_seconds" in record:
        shown["wall_seconds"] = record["wall_seconds"]
        shown["peak_memory_gb"] = round(record["peak_rss_bytes"] / 1e9, 2)
    if "mlflow" in record:
        shown["mlflow_run"] = dg.MetadataValue.url(record["mlflow"]["url"])
    for title, markdown in figures(stage, root):
        shown[title] = dg.MetadataValue.md(markdown)
    return shown


def as_metadata(value: Any) -> Any:
    """A link for an address, markdown for text of several lines, JSON for what has structure."""
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return dg.MetadataValue.url(value)
    if isinstance(value, str) and ("\n" in value or value.startswith("![")):
        return dg.MetadataValue.md(value)
    if isinstance(value, Mapping | list | tuple):
        return dg.MetadataValue.json(json.loads(json.dumps(value, default=str)))
    return value if isinstance(value, bool | int | float | str) else str(value)


def _numbers(path: Path) -> dict[str, float]:
    """The numbers of a metrics file down to its second level, keys joined by dots."""
    if not path.exists():
        return {}
    flat: dict[str, float] = {}
    for key, value in read_json(path).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, number in inner:
            if isinstance(number, int | float) and not isinstance(number, bool):
                flat[f"{key}.{name}" if name else key] = number
    return flat
