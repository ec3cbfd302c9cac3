"""Figures of an experiment as PNG bytes: intervals, learning curves, cross-play."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cahl_core.experiments.measures import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2",
           "#bcbd22")  # fmt: skip
UNTRAINED = "#7f7f7f"
SHOWN = ("reward", "success", "sub_task_solve_rate", "invalid_call_rate")
CURVES = (
    ("training", "planner_reward", "planner reward, training"),
    ("training", "executor_reward", "executor reward, training"),
    ("dev", "alignment/sub_task_solve_rate", "sub-task solve rate, dev tasks"),
)
POINTS = 60


def figures(results: Mapping[str, Any]) -> dict[str, bytes]:
    """File name to PNG, of what there is to show."""
    found: dict[str, Figure] = {}
    colours = _palette(results["cells"])
    split = next(iter(results["tables"]), "")
    tables = results["tables"].get(split, {})
    for mode, rows in tables.items():
        if rows:
            found[f"intervals-{mode}"] = _intervals(rows, f"{split}, {mode}", colours)
    if results["curves"]:
        found["learning"] = _learning(results, colours)
    for label, crossed in results["cross_play"].items():
        found[f"crossplay-{label.replace(' / ', '-')}"] = _cross_play(label, crossed)
    return {f"{name}.png": _png(figure) for name, figure in found.items()}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _palette(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The same colour for a row in every figure."""
    trained = list(dict.fromkeys(c["row"] for c in cells if c["trains"]))
    colours = {c["row"]: UNTRAINED for c in cells}
    return colours | {row: COLOURS[i % len(COLOURS)] for i, row in enumerate(trained)}


def _figure(columns: int, height: float, width: float = 3.6) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


# --- intervals -----------------------------------------------------------------------------------


def _intervals(rows: Sequence[Mapping[str, Any]], title: str, colours: Mapping[str, str]) -> Figure:
    figure, panels = _figure(len(SHOWN), 0.9 + 0.28 * len(rows), 3.0)
    for panel, name in zip(panels, SHOWN, strict=True):
        for place, row in enumerate(rows):
            found = row["measures"][name]
            if found["value"] is None:
                panel.text(0.5, place, "–", transform=panel.get_yaxis_transform(), va="center")
                continue
            low, high = found["low"], found["high"]
            if low is not None:
                panel.plot([low, high], [place, place], color=colours[row["row"]], linewidth=2)
            panel.plot(found["value"], place, "o", color=colours[row["row"]], markersize=5)
        panel.set(title=MEASURES[name].heading, ylim=(len(rows) - 0.5, -0.5))
        panel.grid(axis="x", alpha=0.3)
        panel.set_yticks(range(len(rows)), [r["row"] for r in rows] if panel is panels[0] else [])
        panel.title.set_fontsize(10)
    figure.suptitle(f"95 % intervals: {title}", fontsize=11)
    return figure


# --- learning curves -----------------------------------------------------------------------------


def _learning(results: Mapping[str, Any], colours: Mapping[str, str]) -> Figure:
    by_row: dict[str, list[Mapping[str, Any]]] = {}
    for cell in results["cells"]:
        if cell["id"] in results["curves"]:
            by_row.setdefault(cell["row"], []).append(results["curves"][cell["id"]])
    lines = {
        title: {row: _lines(curves, part, name) for row, curves in by_row.items()}
        for part, name, title in CURVES
    }
    shown = {title: found for title, found in lines.items() if any(found.values())}
    figure, panels = _figure(max(len(shown), 1), 3.4, 4.4)
    for panel, (title, found) in zip(panels, shown.items(), strict=False):
        for row, own in found.items():
            if own:
                _band(panel, own, row, colours[row])
        panel.set(title=title, xlabel="sampled tokens")
        panel.grid(alpha=0.3)
        panel.title.set_fontsize(10)
    if panels[0].get_legend_handles_labels()[1]:
        panels[0].legend(fontsize=8)
    figure.suptitle("Mean over seeds, band from the lowest to the highest seed", fontsize=11)
    return figure


def _lines(curves: Sequence[Mapping[str, Any]], part: str, name: str) -> list[tuple[Any, Any]]:
    return [line for line in (_points(curve, part, name) for curve in curves) if len(line[0])]


def _points(curve: Mapping[str, Any], part: str, name: str) -> tuple[Any, Any]:
    """Tokens and values where there is a value.

    A role that wrote nothing has 0 throughout (its arm has no such role): that is no curve.
    """
    source = curve[part]
    tokens = curve["tokens"] if part == "training" else source.get("tokens", [])
    values = source.get(name, [])
    pairs = [(t, v) for t, v in zip(tokens, values, strict=False) if v is not None]
    if part == "training" and not any(v for _, v in pairs):
        pairs = []
    return np.array([t for t, _ in pairs]), np.array([v for _, v in pairs], dtype=float)


def _band(panel: Axes, lines: Sequence[tuple[Any, Any]], label: str, colour: str) -> None:
    """Seeds interpolated to common positions, within what all of them reached."""
    if len(lines) == 1:
        panel.plot(*lines[0], label=label, color=colour, marker=".", linewidth=1.2)
        return
    grid = np.linspace(max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines), POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in lines])
    panel.plot(grid, values.mean(axis=0), label=label, color=colour, linewidth=1.5)
    panel.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15)


# --- cross-play ----------------------------------------------------------------------------------


def _cross_play(label: str, crossed: Mapping[str, Any]) -> Figure:
    figure, panels = _figure(len(crossed), 3.4)
    for panel, (name, found) in zip(panels, crossed.items(), strict=True):
        table = np.array(found["planner_by_executor"], dtype=float)
        image = panel.imshow(table, cmap="viridis", origin="lower")
        steps = [_steps(found["steps"], place) for place in range(len(table))]
        panel.set_xticks(range(len(table)), steps)
        panel.set_yticks(range(len(table)), steps)
        panel.set(title=name, xlabel="executor after step", ylabel="planner after step")
        middle = (np.nanmin(table) + np.nanmax(table)) / 2
        for i, j in np.ndindex(table.shape):
            shade = "white" if table[i, j] <= middle else "black"
            panel.text(
                j, i, f"{table[i, j]:.2f}", ha="center", va="center", color=shade, fontsize=9
            )
        figure.colorbar(image, ax=panel, shrink=0.8)
    figure.suptitle(f"Cross-play: {label}", fontsize=11)
    return figure


def _steps(by_seed: Mapping[str, Sequence[int]], place: int) -> str:
    """The step of a snapshot, as a range where seeds ended at different ones."""
    found = sorted({steps[place] for steps in by_seed.values()})
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"
