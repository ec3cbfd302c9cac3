"""The table at the end of a pipeline run."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from pipelines.summary import summary


def shown(root: Path, ran: list[str]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(root, ["prepare", "train"], ran))
    return console.export_text()


def test_scores_times_and_next_steps_are_there(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    bfcl = {
        "n": 128,
        "accuracy": 0.9,
        "low": 0.8,
        "high": 0.95,
        "calls_due": {"n": 100, "accuracy": 0.25, "low": 0.18, "high": 0.331},
        "plan_validity": 1.0,
        "call_validity": None,
    }
    dev = {"n": 12, "accuracy": 0.5, "low": 0.25, "high": 0.75, "mean_reward": 1.23456}
    row = {"bfcl_v3": bfcl, "dev": dev, "bfcl_v3_no_exec": {"overall": 0.2}}
    scores = {"n": 140, "base": row, "sft": row, "cahl": row}
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps(scores))
    sidecars = tmp_path / ".cahl/stages"
    sidecars.mkdir(parents=True)
    record = {"wall_seconds": 75.4, "peak_rss_bytes": 3.2e9, "mlflow": {"url": "http://m/1"}}
    (sidecars / "train.json").write_text(json.dumps(record))
    text = shown(tmp_path, ["train"])
    assert "140 items" in text
    for expected in ("after SFT", "after CAHL", "25.0 %", "18.0 % – 33.1 %", "100.0 %", "1.235"):
        assert expected in text
    assert "90.0 %" not in text  # with irrelevance, where broken output is right
    assert text.count("bfcl_v3, calls due") == text.count("dev ") == 3
    assert "1 min 15 s" in text
    assert "3.2 GB" in text
    [line] = [line for line in text.splitlines() if "prepare" in line]
    assert "unchanged, from an earlier run" in line
    assert "make ui" in text
    assert "http://m/1" in text


def test_without_an_evaluation_there_is_no_empty_table(tmp_path: Path) -> None:
    assert "evaluation" not in shown(tmp_path, [])
