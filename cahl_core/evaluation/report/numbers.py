"""How numbers are written, and the tables over all benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahl_core.evaluation.metrics_file import calls_due
from cahl_core.evaluation.report.document import Table

DASH = "–"
# measure → heading, and how it is written
MEASURES: dict[str, tuple[str, str]] = {
    "plan_validity": ("plan validity %", "percent"),
    "adherence": ("adherence %", "percent"),
    "invalid_call_rate": ("invalid calls %", "percent"),
    "redundant_call_rate": ("redundant calls %", "percent"),
    "decode_failure_rate": ("decode failures %", "percent"),
    "calls_per_task": ("calls per task", "number"),
    "calls_per_solved_task": ("calls per solved task", "number"),
    "prompt_tokens_per_task": ("prompt tokens per task", "count"),
    "completion_tokens_per_task": ("written tokens per task", "count"),
}
COMBINED = {
    "bfcl_v3_no_exec": "BFCL v3 without executable categories",
    "bfcl_v4_nonagentic": "BFCL v4 nonagentic (our name, not its overall)",
}


def number(value: Any) -> str:
    """Three decimals; ``–`` where nothing could be observed.

    >>> number(0.5), number(3), number(None)
    ('0.500', '3', '–')
    """
    if value is None:
        return DASH
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def percent(share: float | None) -> str:
    """A share in percent with one decimal.

    >>> percent(0.1234)
    '12.3'
    """
    return DASH if share is None else f"{share * 100:.1f}"


def written(value: float | None, kind: str) -> str:
    """A number as ``percent``, ``number`` (two decimals), ``share`` (three), or ``count``."""
    if value is None:
        return DASH
    return {"percent": percent, "share": number, "number": _two, "count": _whole}[kind](value)


def _two(value: float) -> str:
    return f"{value:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def with_interval(found: Mapping[str, Any], kind: str = "percent") -> str:
    """An estimate with its bounds; † marks Wilson's, where a bootstrap has no width.

    >>> with_interval({"value": 0.5, "low": 0.25, "high": 0.75, "method": "bootstrap"})
    '50.0 [25.0, 75.0]'
    """
    if found["value"] is None:
        return DASH
    mark = "†" if found["method"] == "wilson" else ""
    bounds = f"{written(found['low'], kind)}, {written(found['high'], kind)}"
    return f"{written(found['value'], kind)}{mark} [{bounds if found['low'] is not None else DASH}]"


def signed(found: Mapping[str, Any], kind: str = "percent") -> str:
    """A difference, of shares in points; * where the interval leaves out 0.

    >>> signed({"value": 0.05, "low": 0.01, "high": 0.09, "method": "bootstrap"})
    '+5.0* [+1.0, +9.0]'
    """
    if found["value"] is None:
        return DASH
    scale, digits = {"percent": (100, 1), "number": (1, 2), "count": (1, 0)}[kind]
    value, low, high = (
        None if found[k] is None else f"{scale * found[k]:+.{digits}f}"
        for k in ("value", "low", "high")
    )
    if low is None:
        return f"{value} [{DASH}]"
    mark = "*" if found["low"] > 0 or found["high"] < 0 else ""
    return f"{value}{mark} [{low}, {high}]"


def p_value(value: float | None) -> str:
    """Three decimals, or that it is smaller."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def evaluated(results: Mapping[str, Any], benchmark: str) -> str:
    """``52 of 3,641`` items, or the number alone where it is all of them."""
    entry = results["benchmarks"][benchmark]
    done, whole = sum(entry["evaluated"].values()), sum(entry["counts"].values())
    return f"{done:,}" if done >= whole else f"{done:,} of {whole:,}"


# --- tables over all benchmarks ------------------------------------------------------------------


def summary(results: Mapping[str, Any]) -> Table:
    """A row per benchmark, a column per model: accuracy in percent with its interval.

    BFCL has a second row, for the items that need calls: broken output passes irrelevance.
    """
    models = list(results["results"])
    rows = []
    for name, entry in results["benchmarks"].items():
        own = [results["results"][model].get(name) for model in models]
        title = entry["title"]
        if (due := [calls_due(found["own"]) for found in own if found]) and due[0] is not None:
            shown = (None if f is None else calls_due(f["own"]) for f in own)
            cells = (DASH if c is None else with_interval(c) for c in shown)
            rows.append([f"{title}: items that need calls", f"{due[0]['n']:,}", *cells])
            title += ": all items, irrelevance among them"
        rows.append([title, evaluated(results, name), *map(_accuracy, own)])
    return Table(["benchmark", "n", *models], rows, caption="Accuracy in % with 95 % interval")


def _accuracy(found: Mapping[str, Any] | None) -> str:
    return DASH if found is None else with_interval(found["accuracy"])


def combined(results: Mapping[str, Any]) -> Table | None:
    """Scores over several benchmarks that were all evaluated whole, in percent."""
    scores = results.get("combined", {})
    keys = list(
        dict.fromkeys((n, k) for own in scores.values() for n, part in own.items() for k in part)
    )
    rows = [
        [
            COMBINED.get(name, name),
            key,
            *(percent(own.get(name, {}).get(key)) for own in scores.values()),
        ]
        for name, key in keys
    ]
    return (
        Table(["score", "part", *scores], rows, 2, caption="Combined scores in %") if rows else None
    )


def passes(results: Mapping[str, Any]) -> Table | None:
    """pass@k by benchmark and model, where items have several samples."""
    found = _by_model(results)
    ks = sorted({int(k) for *_, own in found for k in own["pass_at"]})
    if not ks:
        return None
    nothing = {"value": None}
    rows = [
        [title, model, *(with_interval(own["pass_at"].get(str(k), nothing)) for k in ks)]
        for title, model, own in found
        if own["pass_at"]
    ]
    return Table(["benchmark", "model", *(f"pass@{k}" for k in ks)], rows, 2, caption="pass@k in %")


def _by_model(results: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(title, model, measures) of every model on every benchmark, by benchmark."""
    return [
        (entry["title"], model, own[name])
        for name, entry in results["benchmarks"].items()
        for model, own in results["results"].items()
        if name in own
    ]


def differences(results: Mapping[str, Any]) -> Table | None:
    """A row per benchmark and pair of models: the paired difference and McNemar's test."""
    rows = [
        [results["benchmarks"][name]["title"], *difference_row(entry)]
        for name, pairs in results["paired"].items()
        for entry in pairs
    ]
    header = ["benchmark", "models", "n", "difference", "better", "worse", "p (McNemar)"]
    caption = "Paired differences in points on the same items; * the 95 % interval leaves out 0"
    return Table(header, rows, 2, caption=caption) if rows else None


def difference_row(entry: Mapping[str, Any]) -> list[str]:
    """The pair, n, difference, better, worse and p; why not, where it was refused."""
    one, other = entry["models"]
    pair = f"{other} less {one}"
    if "refused" in entry:
        return [pair, entry["refused"], *[DASH] * 4]
    counts = [str(entry["better"]), str(entry["worse"])]
    return [
        pair,
        f"{entry['n']:,}",
        signed(entry["difference"]),
        *counts,
        p_value(entry["mcnemar_p"]),
    ]


def efficiency(results: Mapping[str, Any]) -> Table:
    """A row per benchmark and model: validity, redundancy, calls and tokens."""
    rows = [
        [
            title,
            model,
            *(written(own["measures"][m]["value"], kind) for m, (_, kind) in MEASURES.items()),
        ]
        for title, model, own in _by_model(results)
    ]
    return Table(["benchmark", "model", *(heading for heading, _ in MEASURES.values())], rows, 2)


def timing(results: Mapping[str, Any], times: Mapping[str, Any]) -> Table:
    """A row per benchmark and model: seconds per attempt by phase, latency, tokens per second.

    Args:
        times: model → benchmark → `harness.Timing.to_json`; what is not known there is a dash.
    """
    rows = [
        [entry["title"], model, *_times(times[model][name])]
        for name, entry in results["benchmarks"].items()
        for model in results["results"]
        if times.get(model, {}).get(name, {}).get("attempts")
    ]
    header = ["benchmark", "model", "attempts", "s per attempt", "latency p50 s", "p95 s"]
    header += ["encoding s", "decoding s", "rest s", "scoring s", "written tokens/s", "encoding %"]
    caption = (
        "Seconds per attempt by phase, of the attempts that this run generated itself: encoding of "
        "prompts, decoding, the rest (environments, parsing), scoring; latency from the start of a batch "
        "to its record"
    )
    return Table(header, rows, 2, caption=caption)


def _times(own: Mapping[str, Any]) -> list[str]:
    attempts, seconds = own["attempts"], own["seconds"]
    encoding, decoding = own.get("seconds_prefill"), own.get("seconds_decode")
    known = encoding is not None and decoding is not None
    rest = max(0.0, seconds - encoding - decoding) if known else None
    phases = [seconds, encoding, decoding, rest]
    each = [_seconds(_over(phase, attempts)) for phase in phases]
    latencies = [_seconds(own.get(name)) for name in ("latency_median", "latency_p95")]
    return [
        f"{attempts:,}",
        each[0],
        *latencies,
        *each[1:],
        _seconds(_over(own.get("scoring_seconds"), attempts)),
        written(_over(own.get("decoded_tokens"), seconds), "count"),
        percent(_over(encoding, seconds)),
    ]


def _over(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _seconds(value: float | None) -> str:
    return (
        DASH if value is None else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.4f}"
    )
