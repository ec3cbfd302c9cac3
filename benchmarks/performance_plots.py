"""The plots of docs/performance.md; performance_tables.py calls them."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

Json = dict[str, Any]
COLOURS = {"ours": "#0b6e4f", "trl_generate": "#c05746", "trl_continuous": "#e0a458"}
LABELS = {
    "ours": "CAHL",
    "trl_generate": "TRL generate",
    "trl_continuous": "TRL continuous batching",
}
AXES = {
    "prompt": "tokens of the prompt",
    "samples": "samples per prompt",
    "tasks": "tasks per step",
}


def plot_steps(result: Json, path: Path) -> None:
    """Seconds per step of every point and arm, generation and update stacked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = result["points"]
    figure, axes = pyplot.subplots(
        1, len(points), figsize=(max(6.0, 2.4 * len(points) + 0.6), 3.4), squeeze=False
    )
    for axis, (name, point) in zip(axes[0], points.items(), strict=True):
        for place, (arm, entry) in enumerate(point["arms"].items()):
            steps = [s for r in entry["repeats"] for s in r]
            if not steps:
                continue
            generation = statistics.median(s["seconds"]["generation"] for s in steps)
            total = statistics.median(s["total"] for s in steps)
            axis.bar(place, generation, color=COLOURS[arm], width=0.7)
            axis.bar(
                place,
                total - generation,
                bottom=generation,
                color=COLOURS[arm],
                alpha=0.5,
                width=0.7,
            )
            axis.text(place, total, f"{total:.1f}", ha="center", va="bottom", fontsize=8)
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds per step\n(solid: generation, light: the rest)")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()]
    figure.legend(handles, LABELS.values(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    _save(figure, path)


def plot_scaling(result: Json, path: Path) -> None:
    """Seconds per step against each series' value, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, point in result["points"].items():
        kind, _, value = name.partition("=")
        for arm, entry in point["arms"].items():
            steps = [s["total"] for r in entry["repeats"] for s in r]
            if steps and kind in AXES:
                middle = statistics.median(steps)
                series.setdefault(kind, {}).setdefault(arm, []).append((int(value), middle))
    figure, axes = pyplot.subplots(
        1, len(series), figsize=(max(6.0, 3.4 * len(series)), 3.6), squeeze=False, sharey=True
    )
    for axis, (kind, arms) in zip(axes[0], series.items(), strict=True):
        for arm, values in arms.items():
            x, y = zip(*sorted(values), strict=True)
            axis.plot(x, y, "o-", color=COLOURS[arm], label=LABELS[arm], markersize=4)
            axis.set_xticks(x, [str(v) for v in x])
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sorted({v for a in arms.values() for v, _ in a}))
        axis.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axis.get_yaxis().set_minor_formatter(matplotlib.ticker.ScalarFormatter())
        axis.set_xlabel(AXES[kind])
        axis.grid(alpha=0.3, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds per step")
    axes[0][0].get_yaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
    handles = [pyplot.Line2D([], [], color=c, marker="o") for c in COLOURS.values()]
    figure.legend(handles, LABELS.values(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    # without the writer's version a plot of the same numbers has the same bytes
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)
