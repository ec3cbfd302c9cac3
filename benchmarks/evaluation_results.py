"""Writes what models scored, and what it took, into docs/evaluation.md from the directory of an evaluation.

    .venv/bin/cahl evaluate run bfcl_v3 api_bank bamboogle --model base --model sft --model cahl --out DIR
    .venv/bin/python benchmarks/evaluation_results.py DIR

Keeps `results.json` without prompts (they hold benchmark texts) and `timing.json` in
benchmarks/results/evaluation.json; without DIR the tables are made from that file. Each table stands
between two comments that name it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/versus_trl"))

from pages import fill  # noqa: E402
from record import processor  # noqa: E402

from cahl_core.evaluation.report.numbers import (  # noqa: E402
    evaluated,
    p_value,
    signed,
    with_interval,
)
from cahl_core.files import read_json, write_json  # noqa: E402

KEPT = ROOT / "benchmarks/results/evaluation.json"
MEASURES = {
    "plan_validity": "plan validity %",
    "decode_failure_rate": "unreadable %",
    "invalid_call_rate": "invalid calls %",
    "redundant_call_rate": "redundant calls %",
}
Json = Mapping[str, Any]


def main() -> None:
    """Fills the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", help="of an evaluation on demand")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/evaluation.md")
    options = parser.parse_args()
    if options.directory:
        results = read_json(options.directory / "results.json")
        results.pop("prompts")
        results["timing"] = read_json(options.directory / "timing.json")
        results["processor"] = f"{os.cpu_count()} × {processor()}"
        write_json(KEPT, results)
    kept = read_json(KEPT)
    text = options.docs.read_text(encoding="utf-8")
    for name, lines in (("scores", scores(kept)), ("paired", paired(kept)), ("time", time(kept))):
        text = fill(text, name, lines)
    options.docs.write_text(text, encoding="utf-8")


def scores(results: Json) -> Iterator[str]:
    """Accuracy by benchmark and category, and how the texts were."""
    models = list(results["results"])
    yield from _head(["", "n", *models])
    for name, described in results["benchmarks"].items():
        own = {m: results["results"][m][name] for m in models}
        first = own[models[0]]
        cells = [with_interval(own[m]["accuracy"]) for m in models]
        title = f"**{described['title']}**"
        yield _row([title, evaluated(results, name), *(f"**{c}**" for c in cells)])
        for category, found in first["by_category"].items():
            if len(first["by_category"]) > 1:
                shown = [with_interval(own[m]["by_category"][category]["accuracy"]) for m in models]
                yield _row([category, str(found["n"]), *shown])
        for key, heading in MEASURES.items():
            shown = [with_interval(own[m]["measures"][key]) for m in models]
            if any(own[m]["measures"][key]["value"] is not None for m in models):
                yield _row([f"*{heading}*", "", *shown])
    yield ""
    yield f"Commit {results['git'][:7]}, {results['processor']}, {_versions(results)}."


def paired(results: Json) -> Iterator[str]:
    """Differences between models on the same items."""
    yield from _head(["benchmark", "pair", "difference in points", "items better, worse", "p"])
    for name, pairs in results["paired"].items():
        for pair in pairs:
            yield _row(
                [
                    results["benchmarks"][name]["title"],
                    " → ".join(pair["models"]),
                    signed(pair["difference"]),
                    f"{pair['better']}, {pair['worse']}",
                    p_value(pair["mcnemar_p"]),
                ]
            )


def time(results: Json) -> Iterator[str]:
    """Seconds per item by phase."""
    yield from _head(
        ["benchmark", "model", "items", "s per item", "encoding s", "decoding s", "rest s",
         "scoring s", "encoding %", "tokens encoded", "tokens written"]
    )  # fmt: skip
    for name, described in results["benchmarks"].items():
        for model, own in results["timing"].items():
            found = own.get(name, {})
            if not found.get("attempts"):
                continue
            n = found["attempts"]
            total, encoding = found["seconds"], found["seconds_prefill"]
            rest = total - encoding - found["seconds_decode"]
            yield _row(
                [described["title"], model, str(n), f"{total / n:.2f}"]
                + [f"{s / n:.2f}" for s in (encoding, found["seconds_decode"], rest)]
                + [f"{found['scoring_seconds'] / n:.4f}", f"{100 * encoding / total:.0f}"]
                + [f"{found[k] / n:.0f}" for k in ("prefilled_tokens", "decoded_tokens")]
            )


def _versions(results: Json) -> str:
    return ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "transformers"))


def _head(names: list[str]) -> Iterator[str]:
    yield _row(names)
    yield _row(["---"] * len(names))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
