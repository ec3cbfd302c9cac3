"""Writes the tables and plots of docs/performance.md from the raw results.

    .venv/bin/python benchmarks/performance_tables.py [--docs docs/performance.md]

Each table stands between two comments that name it; everything else in the page is left alone. A table
whose result file is missing says which command makes it. Results of other machines lie in folders of
their own within the results; their tables have the folder's name behind theirs (``steps-amx``). Plots:
performance_plots.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pages import fill
from performance_plots import plot_scaling, plot_steps

from cahl_core.files import read_json

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "ours": "CAHL",
    "trl_generate": "TRL `generate`",
    "trl_continuous": "TRL continuous batching",
}
SOURCES = {  # file, and what makes it
    "versus": ("versus_trl.json", "versus_trl/driver.py"),
    "scaling": ("scaling.json", "versus_trl/scaling.py"),
    "profile": ("profile_step.json", "profile_step.py"),
}
Json = dict[str, Any]


def main() -> None:
    """Fills every table that the page has markers for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/performance.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    options = parser.parse_args()
    text = options.docs.read_text(encoding="utf-8")
    for folder in [options.results, *sorted(p for p in options.results.iterdir() if p.is_dir())]:
        suffix = "" if folder == options.results else f"-{folder.name}"
        for name, (table, source) in TABLES.items():
            result = _load(folder / SOURCES[source][0])
            text = fill(text, name + suffix, table(result) if result else [_missing(source)])
    options.docs.write_text(text, encoding="utf-8")
    images = options.docs.parent / "images"
    versus, scaling = (_load(options.results / SOURCES[k][0]) for k in ("versus", "scaling"))
    if versus.get("points"):
        plot_steps(versus, images / "versus-trl.png")
    if scaling.get("points"):
        plot_scaling(scaling, images / "scaling.png")


def _load(path: Path) -> Json:
    return read_json(path) if path.exists() else {}


def _missing(source: str) -> str:
    return f"*Not measured yet: `.venv/bin/python benchmarks/{SOURCES[source][1]}`.*"


def summary(arm: Json) -> Json | None:
    """Medians over the steps of all repeats, and the smallest and largest repeat's median."""
    repeats = [r for r in arm["repeats"] if r]
    if not repeats:
        return None
    steps = [s for r in repeats for s in r]
    middle = [statistics.median(s["total"] for s in r) for r in repeats]
    phases = sorted({p for s in steps for p in s["seconds"]})
    total = statistics.median(s["total"] for s in steps)
    generation = statistics.median(s["seconds"]["generation"] for s in steps)
    update = statistics.median(s["seconds"]["update"] for s in steps)
    return {
        "total": total,
        "range": (min(middle), max(middle)),
        "steps": len(steps),
        "repeats": len(repeats),
        "seconds": {p: statistics.median(s["seconds"].get(p, 0.0) for s in steps) for p in phases},
        "sampled": steps[0]["sampled"] / generation,
        "trained": steps[0]["trained"] / update,
        "fed": {p: statistics.median(s["fed"].get(p, 0) for s in steps) for p in phases},
        "peak": max(max(s["peak"].values()) for s in steps),
        "peaks": {p: max(s["peak"].get(p, 0) for s in steps) for p in phases},
    }


def steps_table(result: Json) -> list[str]:
    """A row per point and arm: the step, its phases, rates, memory, ratio."""
    lines = [
        "| point | arm | step | generation | scoring | update | sampled tok/s | trained tok/s "
        "| peak memory | steps | CAHL is faster by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, point in result.get("points", {}).items():
        found = {arm: summary(entry) for arm, entry in point["arms"].items()}
        ours = found.get("ours")
        for arm, data in found.items():
            if data is None:
                why = "failed" if "failed" in point["arms"][arm] else "no step yet"
                lines.append(f"| {_label(name, point)} | {NAMES[arm]} | {why} {'| ' * 9}")
                continue
            ratio = f"{data['total'] / ours['total']:.1f} ×" if ours and arm != "ours" else ""
            seconds = data["seconds"]
            scoring = seconds.get("scoring", 0.0) + seconds.get("rewards", 0.0)
            lines.append(
                f"| {_label(name, point)} | {NAMES[arm]} | {_seconds(data['total'])} "
                f"({_seconds(data['range'][0])} – {_seconds(data['range'][1])}) "
                f"| {_seconds(seconds['generation'])} | {_seconds(scoring)} "
                f"| {_seconds(seconds['update'])} | {data['sampled']:.0f} | {data['trained']:.0f} "
                f"| {data['peak'] / 1e9:.1f} GB | {data['steps']} in {data['repeats']} | {ratio} |"
            )
    return [*lines, "", *_conditions(result)]


def tokens_table(result: Json) -> list[str]:
    """Tokens fed through the backbone per task, beside the fewest possible."""
    lines = [
        "| point | arm | fed in generation | fed in the update | fewest possible | times the fewest |",
        "|---|---|---|---|---|---|",
    ]
    for name, point in result.get("points", {}).items():
        least = point["tree_minimum"]
        tasks = point["point"]["tasks"]
        for arm, entry in point["arms"].items():
            data = summary(entry)
            if data is None:
                continue
            fed = sum(data["fed"].values())
            lines.append(
                f"| {_label(name, point)} | {NAMES[arm]} | {data['fed']['generation'] / tasks:.0f} "
                f"| {data['fed']['update'] / tasks:.0f} "
                f"| {least['generation'] / tasks:.0f} + {least['update'] / tasks:.0f} "
                f"| {fed / sum(least.values()):.2f} |"
            )
    return lines


def tuning_table(result: Json) -> list[str]:
    """What was tried for TRL, and what won."""
    lines = [
        "| point | arm | settings | step | generation | update | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arms in result.get("tuning", {}).items():
        for arm, found in arms.items():
            for label, tried in found["tried"].items():
                shown = f"**{label}**" if label == found["best"] else label
                if "failed" in tried:
                    lines.append(f"| {name} | {NAMES[arm]} | {shown} | failed | | | |")
                    continue
                seconds = tried["seconds"]
                lines.append(
                    f"| {name} | {NAMES[arm]} | {shown} | {_seconds(tried['total'])} "
                    f"| {_seconds(seconds['generation'])} | {_seconds(seconds['update'])} "
                    f"| {max(tried['peak'].values()) / 1e9:.1f} GB |"
                )
    return lines if len(lines) > 2 else ["*Not measured yet: the driver with `--tune`.*"]


def check_table(result: Json) -> list[str]:
    """Gradients of both on the same completions."""
    if "check" not in result:
        return ["*Not measured yet: the driver with `--check`.*"]
    lines = [
        "| type, loss | gradient norm, TRL | gradient norm, CAHL | distance "
        "| from TRL's float32 gradient: TRL, CAHL |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["check"].items():
        rounding = ""
        if "trl_from_fp32" in row:
            rounding = f"{row['trl_from_fp32']:.3f}, {row['ours_from_fp32']:.3f}"
        lines.append(
            f"| {name} | {row['norm_trl']:.5f} | {row['norm_ours']:.5f} "
            f"| {row['relative_distance']:.1e} | {rounding} |"
        )
    if made := result.get("check_made"):
        lines += ["", f"Commit {made['commit']}, {made['machine']['processor']}."]
    return lines


def scaling_table(result: Json) -> list[str]:
    """A row per point: the step of each arm."""
    lines = ["| point | CAHL | TRL `generate` | TRL continuous batching |", "|---|---|---|---|"]
    for name, point in result.get("points", {}).items():
        cells = []
        for arm in NAMES:
            data = summary(point["arms"][arm]) if arm in point["arms"] else None
            cells.append(f"{_seconds(data['total'])}" if data else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *_conditions(result)]


def limits_table(result: Json) -> list[str]:
    """What the machine can do, and how far each part is from it."""
    before, after = result["limits"]["before"], result["limits"]["after"]
    lines = ["| what the machine does at best | before | after |", "|---|---|---|"]
    for key, label in LIMITS.items():
        if key in before:
            unit = "GB/s" if "bandwidth" in key else "GFLOP/s"
            lines.append(f"| {label} | {before[key]:.0f} {unit} | {after[key]:.0f} {unit} |")
    lines += ["", "| part of a step | measured | limit | times the limit | the limit is |"]
    lines.append("|---|---|---|---|---|")
    for name, entry in result["distance"].items():
        why = f"{entry['flops'] / 1e9:.0f} GFLOP" if "flops" in entry else "bytes read"
        if "bytes" in entry:
            why = f"{entry['bytes'] / 1e6:.0f} MB read"
        lines.append(
            f"| {name} | {entry['seconds'] * 1e3:.1f} ms | {entry['limit'] * 1e3:.1f} ms "
            f"| {entry['times_the_limit']:.1f} | {why} |"
        )
    return lines


def profile_table(result: Json) -> list[str]:
    """Shares of the profiled time by class of operation."""
    profile = result["profile"]
    classes = sorted(
        {c for part in profile.values() for c in part["seconds"]},
        key=lambda c: -profile["update"]["seconds"].get(c, 0.0),
    )
    lines = ["| class of operations | decoding, per token | update |", "|---|---|---|"]
    for label in classes:
        cells = []
        for part in ("decoding", "update"):
            seconds = profile[part]["seconds"].get(label, 0.0)
            cells.append(f"{seconds * 1e3:.1f} ms ({seconds / profile[part]['wall']:.0%})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


LIMITS = {
    "bandwidth_weights": "reading as many bytes as the weights have",
    "bandwidth_large": "reading 2 GiB",
    "matmul_low_square": "matrix product, bfloat16, 4096 × 4096",
    "matmul_low_model": "matrix products, bfloat16, the model's shapes, 1024 rows",
    "matmul_fp32_square": "matrix product, float32, 2048 × 2048",
    "matmul_fp32_model": "matrix products, float32, the model's shapes, 1024 rows",
}
TABLES: dict[str, tuple[Callable[[Json], list[str]], str]] = {
    "steps": (steps_table, "versus"),
    "tokens": (tokens_table, "versus"),
    "tuning": (tuning_table, "versus"),
    "check": (check_table, "versus"),
    "scaling": (scaling_table, "scaling"),
    "limits": (limits_table, "profile"),
    "profile": (profile_table, "profile"),
}


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def _label(name: str, point: Json) -> str:
    shape = point["point"]
    if shape["plans"]:
        return (
            f"{name}: {shape['plans']} plans × {shape['tokens']}, "
            f"{shape['sub_tasks']} sub-tasks × {shape['samples']} × {shape['call']}"
        )
    return f"{shape['prompt']} + {shape['samples']} × {shape['tokens']}"


def _conditions(result: Json) -> list[str]:
    """One sentence per different origin of the points: commit, machine, versions, numbers of steps."""
    lines: dict[str, list[str]] = {}
    loads: dict[str, list[float]] = {}
    for name, point in result.get("points", {}).items():
        machine = point["machine"]
        versions: Json = {}
        for entry in point["arms"].values():
            versions |= entry.get("versions", {})
        pins = ", ".join(f"{k} {v}" for k, v in sorted(versions.items()) if k != "python")
        where = (
            f"commit {point['commit']}{' with changes' if point['modified'] else ''}, "
            f"{machine['processor']}, {machine['threads']} threads; {pins}"
        )
        lines.setdefault(where, []).append(name)
        loads.setdefault(where, []).append(machine["load"])
    return [
        f"{', '.join(names)}: {where}; load at the start at most {max(loads[where]):.1f}."
        for where, names in lines.items()
    ]


if __name__ == "__main__":
    main()
