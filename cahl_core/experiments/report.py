"""The report of an experiment: Markdown, one HTML page that needs no other file, and their numbers.

Everything lies in ``reports/experiments/<name>/``: report.md, report.html, results.json,
outcomes.jsonl (the runs that every table entry can be recomputed from), plots/*.png.
"""

from __future__ import annotations

import base64
import html as escaping
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.experiments.measures import MEASURES
from cahl_core.experiments.plots import figures
from cahl_core.experiments.results import collect
from cahl_core.experiments.runner import Experiment
from cahl_core.files import atomic_dir, read_json, read_jsonl, write_json, write_jsonl

FOLDER = Path("reports/experiments")
TEXT = {
    "intervals": "Measures with their intervals",
    "learning": "Learning curves",
    "crossplay": "Cross-play",
}
Table = tuple[list[str], list[list[str]]]


def write_report(experiment: Experiment, settings: Settings) -> Path:
    """Writes the report of the finished cells; returns the page's path."""
    target = experiment.root / FOLDER / experiment.grid.name
    results = collect(experiment)
    images = figures(results)
    finished = [c for c in experiment.cells if experiment.status(c) == "finished"]
    with atomic_dir(target) as folder:
        write_json(folder / "results.json", results)
        (folder / "report.md").write_text(markdown(results, list(images)), encoding="utf-8")
        (folder / "report.html").write_text(html(results, images), encoding="utf-8")
        (folder / "plots").mkdir()
        for name, content in images.items():
            (folder / "plots" / name).write_bytes(content)
        lines = (o for c in finished for o in read_jsonl(experiment.folder(c).outcomes))
        write_jsonl(folder / "outcomes.jsonl", lines)
    return target / "report.html"


def headline(folder: Path) -> dict[str, float]:
    """Reward and success of every row of the first table, for MLflow."""
    results = read_json(folder / "results.json")
    first: dict[str, Any] = next(iter(results["tables"].values()))
    return {
        f"{name}/{row['row'].replace(' / ', '-')}": row["measures"][name]["value"]
        for row in first["greedy"]
        for name in ("reward", "success")
        if row["measures"][name]["value"] is not None
    }


# --- tables --------------------------------------------------------------------------------------


def main_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row per arm: seeds, tokens, every measure with its interval."""
    header = ["arm", "seeds", "sampled tokens", *(m.heading for m in MEASURES.values())]
    body = [
        [
            row["row"],
            str(len(row["seeds"])),
            _tokens(row["sampled_tokens"]),
            *(shown(row["measures"][name], name) for name in MEASURES),
        ]
        for row in rows
    ]
    return header, body


def difference_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row per arm: every measure less the reference's; * where the interval excludes 0."""
    header = ["arm", *(m.heading for m in MEASURES.values())]
    body = [
        [row["row"], *(_difference(row["less_reference"][name]) for name in MEASURES)]
        for row in rows
        if row["less_reference"]
    ]
    return header, body


def shown(interval: Mapping[str, Any], name: str = "") -> str:
    """``0.412 [0.310, 0.520]``.

    >>> shown({"value": 0.5, "low": 0.25, "high": 0.75, "method": "bootstrap"})
    '0.500 [0.250, 0.750]'
    """
    if interval["value"] is None:
        return "–"
    mark = "†" if interval["method"] == "wilson" else ""
    if interval["low"] is None:
        return f"{interval['value']:.3f} [–]"
    return f"{interval['value']:.3f}{mark} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _difference(interval: Mapping[str, Any]) -> str:
    if interval["value"] is None:
        return "–"
    low, high = interval["low"], interval["high"]
    if low is None:
        return f"{interval['value']:+.3f} [–]"
    mark = "*" if low > 0 or high < 0 else ""
    return f"{interval['value']:+.3f}{mark} [{low:+.3f}, {high:+.3f}]"


def _tokens(used: Sequence[float]) -> str:
    low, high = min(used), max(used)
    return f"{low:,.0f}" if low == high else f"{low:,.0f}–{high:,.0f}"


def cross_table(crossed: Mapping[str, Any]) -> Table:
    """A row per arm and measure: on and off the diagonal, their difference, the interaction."""
    header = ["arm", "measure", "seeds", "diagonal", "off-diagonal", "difference", "interaction"]
    body = [
        [
            label,
            name,
            str(len(found["seeds"])),
            f"{found['diagonal']:.3f}",
            f"{found['off_diagonal']:.3f}",
            _difference(found["gap_interval"]),
            f"{found['interaction']:+.4f}",
        ]
        for label, tables in crossed.items()
        for name, found in tables.items()
    ]
    return header, body


def cell_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """A row per cell: how it ended, what it used."""
    header = ["cell", "status", "steps", "sampled tokens", "minutes", "MLflow run"]
    body = [
        [
            c["id"],
            c["status"],
            str(c["steps"]) if c["trains"] else "–",
            f"{c['sampled_tokens']:,.0f}" if c["trains"] else "–",
            _minutes(c.get("seconds")),
            c["mlflow_run_id"] or "–",
        ]
        for c in cells
    ]
    return header, body


def _minutes(phases: Mapping[str, float] | None) -> str:
    own = [(phases or {}).get(name, 0.0) for name in ("train", "evaluate", "cross_play")]
    return f"{sum(own) / 60:.1f}" if phases else "–"


# --- pages ---------------------------------------------------------------------------------------


def sections(results: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Headings and tables of the report, in order."""
    found: list[tuple[str, Table]] = []
    for split, modes in results["tables"].items():
        for mode, rows in modes.items():
            found.append((f"{split}, {mode}", main_table(rows)))
            found.append((f"{split}, {mode}: less {results['reference']}", difference_table(rows)))
    if results["cross_play"]:
        found.append(("Cross-play, greedy", cross_table(results["cross_play"])))
    found.append(("Cells", cell_table(results["cells"])))
    return [(title, table) for title, table in found if table[1]]


def markdown(results: Mapping[str, Any], images: Sequence[str]) -> str:
    """The report in Markdown; plots are links to files beside it."""
    parts = [f"# Experiment {results['experiment']}\n", results["description"] + "\n"]
    parts += ["## Notes\n", "\n".join(f"- {_one_line(note)}" for note in results["notes"]) + "\n"]
    for title, (header, rows) in sections(results):
        lines = [header, ["---"] * len(header), *rows]
        body = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        parts.append(f"## {title}\n\n{body}\n")
    parts += [f"![{_caption(name)}](plots/{name})\n" for name in images]
    return "\n".join(parts)


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def html(results: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The report as one self-contained page."""
    escape = escaping.escape
    name = escape(results["experiment"])
    notes = "".join(f"<li>{escape(note)}</li>" for note in results["notes"])
    pictures = "".join(
        f'<h2>{escape(_caption(file))}</h2><img alt="{escape(_caption(file))}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        for file, content in images.items()
    )
    tables = "".join(f"<h2>{escape(t)}</h2>{_html_table(*table)}" for t, table in sections(results))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head><body><h1>Experiment {name}</h1>"
        f"<p>{escape(results['description'])}</p><h2>Notes</h2><ul>{notes}</ul>"
        f"{tables}{pictures}<p>Numbers: results.json; every run: outcomes.jsonl. "
        f"Written {escape(results['written'])}.</p></body></html>\n"
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaping.escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaping.escape(c)}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _caption(file: str) -> str:
    kind, _, rest = file.removesuffix(".png").partition("-")
    return f"{TEXT[kind]}{': ' + rest if rest else ''}"


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:96em;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}"
    "th,td{border-bottom:1px solid #ddd;padding:.3em .6em;text-align:right;white-space:nowrap}"
    "th{font-weight:600;white-space:normal}th:first-child,td:first-child{text-align:left}"
    "div{overflow-x:auto}img{max-width:100%}"
)
