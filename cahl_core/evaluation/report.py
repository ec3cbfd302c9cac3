"""The evaluation as a page for people: Markdown, and one HTML file that needs no other.

Model and data texts are shown as text only: escaped in HTML, indented as code in Markdown.
"""

from __future__ import annotations

import html as escaping
import json
from collections.abc import Mapping, Sequence
from typing import Any

Records = Mapping[str, Sequence[Mapping[str, Any]]]

COLUMNS = (
    ("bfcl_accuracy", "BFCL accuracy"),
    ("interval", "95 % interval"),
    ("irrelevance", "irrelevance (official)"),
    ("irrelevance_strict", "irrelevance (strict)"),
    ("decode_failures", "decode failures"),
    ("plan_validity", "plan validity"),
    ("call_validity", "call validity"),
    ("mean_reward", "mean reward"),
    ("calls_per_task", "calls per dev task"),
    ("redundant_call_rate", "redundant calls"),
)
EXAMPLES = 3
TEXT_CHARS = 1200
COLOURS = {"base": "#9aa5b1", "sft": "#4c9be8", "cahl": "#e8743b"}


def number(value: Any) -> str:
    """Three decimals; ``–`` where nothing could be observed."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def summary_table(results: Mapping[str, Any]) -> str:
    """The headline numbers of all models as a Markdown table."""
    return _markdown_table(*_summary(results))


def markdown(results: Mapping[str, Any], records: Records) -> str:
    """The whole report in Markdown."""
    parts = [
        "# Evaluation\n",
        _markdown_table(*_summary(results)),
        "\n## By category\n",
        _markdown_table(*_categories(results)),
        "\n## How to read it\n",
        "\n".join(f"- {note}" for note in notes(results)),
        "\n## Examples\n",
    ]
    for title, record in _examples(records):
        body = "\n".join("    " + line for line in _example_text(record).splitlines())
        parts.append(f"### {title}\n\n{body}\n")
    return "\n".join(parts) + "\n"


def html(results: Mapping[str, Any], records: Records) -> str:
    """The whole report as one self-contained page."""
    items = "".join(f"<li>{escaping.escape(note)}</li>" for note in notes(results))
    examples = "".join(
        f"<h3>{escaping.escape(title)}</h3><pre>{escaping.escape(_example_text(record))}</pre>"
        for title, record in _examples(records)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{STYLE}</style></head><body><h1>Evaluation</h1>"
        f"{_html_table(*_summary(results))}<h2>By category</h2>{chart(results)}"
        f"{_html_table(*_categories(results))}<h2>How to read it</h2><ul>{items}</ul>"
        f"<h2>Examples</h2>{examples}</body></html>\n"
    )


def notes(results: Mapping[str, Any]) -> list[str]:
    """What was measured and how, and what it must not be compared with."""
    protocol = results["protocol"]
    evaluated = sum(row["evaluated"] for row in results["items"].values())
    missing = ", ".join(f"{c} {n}" for c, n in results["not_evaluated"].items())
    scope = (
        "every single-turn item; official_non_live and official_live in metrics/evaluate.json follow "
        "the v3 leaderboard without executable categories"
        if results["full"]
        else f"a fixed stratified sample (ids in results.json, digest {results['sample_digest']})"
    )
    return [
        f"{results['benchmark']} with the checkers of its own package, {evaluated} items: {scope}.",
        f"Not evaluated here: {missing or 'nothing'}. The leaderboard's overall score needs the "
        "multi-turn categories: these numbers are not comparable with it.",
        f"Prompts: {protocol['prompt']}; tools as {protocol['tool_rendering']}; backbone "
        f"{protocol['backbone']}; {protocol['decoding']}. A text that can no longer begin with its "
        "opening tag is ended there: whatever followed, it would be outside the grammar.",
        "BFCL accuracy: mean over the items that need calls. Irrelevance is apart: officially any "
        "output without a decodable call is right there, so broken output passes; strict counts "
        "valid plans that decline. Decode failures include prompts too long for the context.",
        "Intervals: Wilson, 95 %, over items.",
        "Plan validity (our definition): share of plans, BFCL and dev, that parse and name only "
        "listed tools. Call validity: 1 - invalid-call rate, where a call is invalid if it does not "
        "parse, names an unknown tool or does not fit the tool's schema; – means no call was tried.",
        f"Mean reward: the planner's training reward on {len(results['dev_ids'])} held-back tasks, "
        "greedy. Redundant calls (our definition): repeated in a task, or beyond the gold calls of "
        "a solved one.",
        f"{len(results['unanswerable_labels_kept'])} labels of the package that no answer can meet "
        "stay in the scores.",
    ]


def _summary(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["model", "n", *(title for _, title in COLUMNS)]
    rows = []
    for name, summary in results["models"].items():
        interval = f"{summary['bfcl_accuracy_low']:.3f}–{summary['bfcl_accuracy_high']:.3f}"
        cells = {**summary, "interval": interval}
        rows.append([name, str(summary["bfcl_n"]), *(number(cells[key]) for key, _ in COLUMNS)])
    return header, rows


def _categories(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    models = results["models"]
    header = ["category", "n"]
    for name in models:
        header += [f"{name}: accuracy", "interval", "decode failures", "abstained"]
    rows = []
    for category in results["items"]:
        row = [category, str(results["items"][category]["evaluated"])]
        for summary in models.values():
            entry = summary["by_category"][category]
            row += [
                number(entry["accuracy"]),
                f"{entry['low']:.2f}–{entry['high']:.2f}",
                str(entry["decode_failures"]),
                str(entry["abstentions"]),
            ]
        rows.append(row)
    return header, rows


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(r) + " |" for r in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines) + "\n"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaping.escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaping.escape(c)}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def chart(results: Mapping[str, Any]) -> str:
    """Accuracy by category and model as horizontal bars with their intervals, inline SVG."""
    left, width, bar = 190, 420, 12
    models = results["models"]
    shapes: list[str] = []
    y = 24
    for index, name in enumerate(models):
        x = left + 110 * index
        shapes.append(f'<rect x="{x}" y="4" width="10" height="10" fill="{_colour(name)}"/>')
        shapes.append(f'<text x="{x + 15}" y="13">{escaping.escape(name)}</text>')
    for category in results["items"]:
        middle = y + bar * len(models) / 2 + 4
        label = escaping.escape(category)
        shapes.append(f'<text x="{left - 8}" y="{middle}" text-anchor="end">{label}</text>')
        for name, summary in models.items():
            shapes.append(_bar(summary["by_category"][category], name, left, y, width, bar))
            y += bar
        y += 10
    ticks = "".join(
        f'<line x1="{left + width * t / 4}" x2="{left + width * t / 4}" y1="20" y2="{y}" '
        f'stroke="#ddd"/><text x="{left + width * t / 4}" y="{y + 14}" text-anchor="middle">'
        f"{t / 4:.2f}</text>"
        for t in range(5)
    )
    size = f'viewBox="0 0 {left + width + 30} {y + 20}" width="{left + width + 30}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{ticks}{"".join(shapes)}</svg>'


def _bar(entry: Mapping[str, Any], name: str, left: int, y: int, width: int, height: int) -> str:
    low, high = left + width * entry["low"], left + width * entry["high"]
    middle = y + height / 2
    return (
        f'<rect x="{left}" y="{y + 1}" width="{width * entry["accuracy"]:.1f}" '
        f'height="{height - 2}" fill="{_colour(name)}"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="#333"/>'
    )


def _colour(name: str) -> str:
    return COLOURS.get(name, "#777")


def _examples(records: Records) -> list[tuple[str, Mapping[str, Any]]]:
    """Right and wrong items that need calls, of the last model (the one that is registered)."""
    name = list(records)[-1] if records else ""
    rows = [r for r in records.get(name, ()) if "relevance" not in r["category"]]
    right = sorted((r for r in rows if r["valid"]), key=lambda r: -len(r["calls"]))
    wrong = [r for r in rows if not r["valid"] and r["outcome"] == "calls"]
    broken = [r for r in rows if not r["valid"] and r["outcome"] != "calls"]
    return [
        (f"{name}, {kind}: {record['id']}", record)
        for kind, group in (("right", right), ("wrong calls", wrong), ("no calls", broken))
        for record in group[:EXAMPLES]
    ]


def _example_text(record: Mapping[str, Any]) -> str:
    lines = [f"request  {record['request']}", f"tools    {', '.join(record['tools'])}",
             f"plan     {record['plan_text']}"]  # fmt: skip
    lines += [f"executor {text}" for text in record["texts"]]
    lines += [f"call     {json.dumps(call, ensure_ascii=False)}" for call in record["calls"]]
    if not record["valid"]:
        lines.append(f"verdict  {record['outcome']}, {record['error_type']}: {record['error']}")
    return "\n".join(line[:TEXT_CHARS] for line in lines)


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse;margin:1em 0}th,td{border-bottom:1px solid #ddd;"
    "padding:.3em .7em;text-align:right}th:first-child,td:first-child{text-align:left}"
    "pre{background:#f6f6f6;padding:1em;white-space:pre-wrap}svg{font:12px system-ui,sans-serif}"
)
