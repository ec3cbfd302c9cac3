"""How far the prepared data moved since their previous version.

Shares of sources and kinds are compared by total variation distance, shapes and lengths by the
population stability index (PSI) of their histograms. Rules of thumb of credit scoring, where PSI comes
from, put a slight shift at 0.1 and a large one at 0.25. A measure counts only beyond what chance gives:
between two samples of one distribution PSI is about chi-squared with B - 1 degrees of freedom times
1/n + 1/m (B bins, n and m tasks), and total variation at most half the root of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahl_core.datasets.statistics import LENGTHS, SHAPES
from cahl_core.files import digest, read_json, write_json

SLIGHT, LARGE = 0.1, 0.25
EMPTY = 1e-4  # share that stands for none, so that the index stays finite
LISTED = 10


def total_variation(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Half the sum of the differences of shares: 0 equal, 1 nothing in common.

    >>> total_variation({"x": 1, "y": 1}, {"x": 2})
    0.5
    """
    left, right = _shares(a), _shares(b)
    return sum(abs(left.get(k, 0) - right.get(k, 0)) for k in left.keys() | right.keys()) / 2


def stability_index(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """PSI of two histograms with the same bins.

    >>> stability_index({"1": 5, "2": 5}, {"1": 50, "2": 50})
    0.0
    """
    left, right = _shares(a), _shares(b)
    total = 0.0
    for key in sorted(left.keys() | right.keys()):
        p, q = max(left.get(key, 0), EMPTY), max(right.get(key, 0), EMPTY)
        total += (p - q) * math.log(p / q)
    return total


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    whole = sum(counts.values())
    return {k: n / whole for k, n in counts.items()} if whole else {}


def compare(current: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every measure with its verdict (``none``, ``slight``, ``large``), and the worst of them.

    Args:
        current, previous: what `statistics.summarise` gives; ``None`` where there is no earlier one
            (one that another release wrote in another form counts as none).
    """
    if previous is None or previous.get("form") != current.get("form"):
        return {"verdict": "first version", "measures": {}, "sentences": []}
    measures: dict[str, dict[str, Any]] = {}
    for name, pair in _categories(current, previous).items():
        noise = math.sqrt(chance(*pair)) / 2
        measures[name] = _measure("total variation", total_variation(*pair), noise)
    for group, names in (("shapes", SHAPES), ("lengths", LENGTHS)):
        for name in names:
            pair = (_histogram(current[group][name]), _histogram(previous[group][name]))
            measures[name] = _measure("stability index", stability_index(*pair), chance(*pair))
    verdicts = [m["verdict"] for m in measures.values()]
    worst = next((v for v in ("large", "slight") if v in verdicts), "none")
    sentences = [
        f"{name}: {m['measure']} {m['value']:.3f} ({m['verdict']})"
        for name, m in measures.items()
        if m["verdict"] != "none"
    ]
    sentences += _tools(current, previous)
    tasks = {"before": previous["tasks"], "now": current["tasks"]}
    return {"verdict": worst, "tasks": tasks, "measures": measures, "sentences": sentences}


def _categories(
    current: Mapping[str, Any], previous: Mapping[str, Any]
) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    def kept(found: Mapping[str, Any]) -> dict[str, int]:
        return {name: source["kept"] for name, source in found["sources"].items()}

    return {
        "sources": (kept(current), kept(previous)),
        "kinds": (current["kinds"], previous["kinds"]),
        "languages": (current["languages"]["all"], previous["languages"]["all"]),
    }


def chance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """The PSI that two samples of one distribution stay below 99 times in 100."""
    from scipy.stats import chi2

    bins, n, m = len(a.keys() | b.keys()), sum(a.values()), sum(b.values())
    if bins < 2 or not n or not m:
        return 0.0
    return float(chi2.ppf(0.99, bins - 1)) * (1 / n + 1 / m)


def _measure(name: str, value: float, noise: float) -> dict[str, Any]:
    shift = "large" if value > LARGE else "slight" if value > SLIGHT else "none"
    return {
        "measure": name,
        "value": round(value, 6),
        "chance": round(noise, 6),
        "verdict": shift if value > noise else "none",
    }


def _histogram(found: Mapping[str, Any]) -> dict[str, int]:
    return dict(found.get("histogram", found))


def _tools(current: Mapping[str, Any], previous: Mapping[str, Any]) -> list[str]:
    now, before = (set(s["tools"]["names"]) for s in (current, previous))
    said = []
    for names, what in ((now - before, "tools newly called"), (before - now, "no longer called")):
        if names:
            more = ", ..." if len(names) > LISTED else ""
            said.append(f"{what}: {len(names)} ({', '.join(sorted(names)[:LISTED])}{more})")
    return said


def record(folder: Path, current: Mapping[str, Any]) -> dict[str, Any]:
    """Compares with the previous version kept in ``folder``, and keeps this one.

    Writes ``drift.json``, ``current.json`` and ``previous.json``. Preparing the same data again leaves
    what counts as the previous version.
    """
    latest, earlier = folder / "current.json", folder / "previous.json"
    if latest.exists() and digest(read_json(latest)) != digest(current):
        latest.replace(earlier)
    write_json(latest, current)
    found = compare(current, read_json(earlier) if earlier.exists() else None)
    write_json(folder / "drift.json", found)
    return found
