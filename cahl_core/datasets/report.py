"""The data report: one self-contained HTML page, the same bytes for the same data."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cahl_core.datasets.checks import LIMITS, RULES
from cahl_core.datasets.splits import SPLITS

SHAPE_TITLES = {
    "n_steps": "Gold steps per task",
    "depth": "Depth of the dependencies",
    "n_tools": "Tools offered per task",
    "parallel": "Most calls that do not need one another",
}
LENGTH_TITLES = {
    "planner_tokens": "Planner prompt, tokens",
    "executor_tokens": "Executor prompt, tokens",
    "plan_tokens": "Gold plan, tokens",
}
BAR_WIDTH, BAR_HEIGHT, LABEL_WIDTH, COUNT_WIDTH = 260, 16, 130, 60
LANGUAGES = 8


def page(
    statistics: Mapping[str, Any],
    suites: Mapping[str, Any],
    contamination: Mapping[str, Any],
    sources: Mapping[str, Any],
    examples: Sequence[Mapping[str, str]],
) -> str:
    """The page.

    Args:
        statistics: `statistics.summarise`; suites: `expectations.run_suites`;
        contamination: `contamination.report`; sources: counts per source;
        examples: quarantined records to show, several of a rule.
    """
    sections = [
        ("Expectations", _suites(suites)),
        ("Sources", _sources(statistics)),
        ("Shapes", _charts(statistics)),
        ("Contamination", _contamination(contamination)),
        ("Quarantine", _quarantine(sources, examples)),
    ]
    body = "\n".join(
        f"<section><h2>{title}</h2>\n{content}\n</section>" for title, content in sections
    )
    return PAGE.format(style=STYLE, summary=_summary(statistics, suites, sources), body=body)


def _summary(
    statistics: Mapping[str, Any], suites: Mapping[str, Any], sources: Mapping[str, Any]
) -> str:
    aside = sum(sum(s["quarantined"].values()) for s in sources.values())
    warnings = sum(s["warnings"] for s in suites["suites"].values())
    verdict = "met" if suites["success"] else "FAILED"
    tiles = [
        *(
            (f"{n:,}", f"{name.replace('_', ' ')} tasks")
            for name, n in statistics["splits"].items()
        ),
        (f"{sum(s['tasks'] for s in sources.values()):,}", "prompts read"),
        (f"{aside:,}", "set aside"),
        (verdict, f"critical expectations, {warnings} warnings"),
    ]
    return "".join(f"<div class=tile><b>{_text(n)}</b>{_text(label)}</div>" for n, label in tiles)


def _suites(suites: Mapping[str, Any]) -> str:
    rows = []
    for name, suite in suites["suites"].items():
        for r in suite["results"]:
            state = "ok" if r["success"] else r["severity"]
            label = "met" if r["success"] else f"failed ({r['severity']})"
            limits = ", ".join(f"{k} {v}" for k, v in r["limits"].items())
            rows.append(
                f"<tr class={state}>"
                + _cells([name, label, r["expectation"], r["column"], limits, str(r["observed"])])
                + "</tr>"
            )
    header = ["suite", "result", "expectation", "column", "limits", "observed"]
    failed = [r for r in rows if not r.startswith("<tr class=ok>")]
    return (
        _table(header, failed) if failed else "<p>Every expectation is met.</p>"
    ) + f"<details><summary>all {len(rows)} expectations</summary>{_table(header, rows)}</details>"


def _sources(statistics: Mapping[str, Any]) -> str:
    rows = [
        "<tr>"
        + _cells(
            [
                name,
                s["records"],
                s["tasks"],
                s["kept"],
                s["held_out"],
                sum(s["quarantined"].values()),
                *(s["written"][split] for split in SPLITS),
                s["lengths"]["planner_tokens"]["p50"],
                s["lengths"]["planner_tokens"]["p95"],
            ]
        )
        + "</tr>"
        for name, s in statistics["sources"].items()
    ]
    header = ["source", "records", "prompts", "kept", "held out", "set aside",
              *(s.replace("_", " ") for s in SPLITS), "prompt tokens p50", "p95"]  # fmt: skip
    note = "<p>Prompts = kept + held out + set aside. The splits hold derived tasks too.</p>"
    return note + _table(header, rows)


def _charts(statistics: Mapping[str, Any]) -> str:
    charts = [
        bars("Tasks by kind", statistics["kinds"]),
        bars(
            f"Languages of {statistics['languages']['classified']} sampled requests",
            _few(statistics["languages"]["all"]),
        ),
    ]
    charts += [bars(title, statistics["shapes"][key]) for key, title in SHAPE_TITLES.items()]
    for key, title in LENGTH_TITLES.items():
        found = statistics["lengths"][key]
        labels = {f"from {edge}": n for edge, n in found["histogram"].items()}
        charts.append(bars(f"{title} (p50 {found['p50']}, p95 {found['p95']})", labels))
    return f"<div class=charts>{''.join(charts)}</div>"


def _few(counts: Mapping[str, int]) -> dict[str, int]:
    ordered = list(counts.items())
    rest = sum(n for _, n in ordered[LANGUAGES:])
    return dict(ordered[:LANGUAGES]) | ({"others": rest} if rest else {})


def bars(title: str, counts: Mapping[str, int]) -> str:
    """A horizontal bar chart as inline SVG; colours follow the page's light or dark scheme."""
    most = max(counts.values(), default=0) or 1
    width = LABEL_WIDTH + BAR_WIDTH + COUNT_WIDTH
    lines = []
    for row, (label, count) in enumerate(counts.items()):
        y = row * (BAR_HEIGHT + 6)
        length = round(BAR_WIDTH * count / most, 1)
        middle = y + BAR_HEIGHT - 4
        lines.append(
            f'<text x="{LABEL_WIDTH - 8}" y="{middle}" text-anchor="end">{_text(label)}</text>'
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{length}" height="{BAR_HEIGHT}" rx="2"/>'
            f'<text x="{LABEL_WIDTH + length + 6}" y="{middle}">{count:,}</text>'
        )
    height = max(len(counts), 1) * (BAR_HEIGHT + 6)
    return (
        f"<figure><figcaption>{_text(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{_text(title)}">{"".join(lines)}</svg></figure>'
    )


def _contamination(found: Mapping[str, Any]) -> str:
    rows = [
        "<tr>"
        + _cells(
            [
                name,
                b["questions"],
                b["exact"],
                b["ten_gram"],
                b["tool_names_shared"],
                ", ".join(b["ids"][:5]),
                ", ".join(b["tool_names"][:8]),
            ]
        )
        + "</tr>"
        for name, b in found["benchmarks"].items()
    ]
    header = ["test set", "questions", "equal", "ten words", "tool names shared", "set aside",
              "shared names"]  # fmt: skip
    unchecked = ", ".join(found["not_checked"])
    note = f"<p>{_text(found['method'])}. Records found this way are in no split.</p>"
    if unchecked:
        note += f"<p class=critical>Not checked: {_text(unchecked)}</p>"
    return note + (_table(header, rows) if rows else "<p>No test set was compared with.</p>")


def _quarantine(sources: Mapping[str, Any], examples: Sequence[Mapping[str, str]]) -> str:
    names = [n for n, s in sources.items() if s["quarantined"]]
    rules = [r for r in RULES if any(r in sources[n]["quarantined"] for n in names)]
    if not rules:
        return "<p>Nothing was set aside.</p>"
    counts = [
        "<tr>"
        + _cells(
            [rule, "limit" if rule in LIMITS else "fault", RULES[rule]]
            + [sources[n]["quarantined"].get(rule, "") for n in names]
        )
        + "</tr>"
        for rule in rules
    ]
    shown = [
        "<tr>" + _cells([e["source"], e["rule"], e["id"], e["detail"], e["excerpt"]]) + "</tr>"
        for e in examples
    ]
    return (
        _table(["rule", "", "meaning", *names], counts)
        + f"<details><summary>{len(shown)} examples</summary>"
        + _table(["source", "rule", "id", "detail", "excerpt"], shown)
        + "</details><p>All of them: <code>data/prepared/quarantine.jsonl</code>.</p>"
    )


def _table(header: Iterable[str], rows: Sequence[str]) -> str:
    kinds = [re.findall(r"<td( class=number)?>", row) for row in rows]
    numbers = [any(column) for column in zip(*kinds, strict=True)]
    head = "".join(
        f"<th{' class=number' if number else ''}>{_text(name)}</th>"
        for name, number in zip(header, numbers, strict=True)
    )
    return f"<div class=wide><table><tr>{head}</tr>\n" + "\n".join(rows) + "\n</table></div>"


def _cells(values: Iterable[Any]) -> str:
    return "".join(
        f"<td class=number>{value:,}</td>"
        if isinstance(value, int) and not isinstance(value, bool)
        else f"<td>{_text(value)}</td>"
        for value in values
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3f7fbf; --ok: #17713a; --bad: #b3261e;
        --warn: #9a6700; --soft: #8881 }
@media (prefers-color-scheme: dark) {
  :root { --ok: #5fc08a; --bad: #ff8a80; --warn: #e0b04a; --bar: #6aa7e0 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h2 { margin-top: 2.2rem }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem }
.tile { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; font-size: .85rem }
.tile b { display: block; font-size: 1.4rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .88rem }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .55rem; text-align: left;
         vertical-align: top; overflow-wrap: break-word; max-width: 34rem }
th, td:first-child, td:nth-child(2) { white-space: nowrap }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.ok td:nth-child(2) { color: var(--ok) }
.critical td:nth-child(2), p.critical { color: var(--bad); font-weight: 600 }
.warning td:nth-child(2) { color: var(--warn); font-weight: 600 }
.charts { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: .4rem }
svg { max-width: 100%; font: 12px system-ui, sans-serif } svg text { fill: currentColor }
svg rect { fill: var(--bar) }
details { margin: .6rem 0 } summary { cursor: pointer }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Data report</title><style>{style}</style></head><body>
<h1>Data report</h1>
<div class=tiles>{summary}</div>
{body}
</body></html>
"""
