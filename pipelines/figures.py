"""Small inline pictures of the plots that ``dvc.yaml`` declares."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.lineage import DvcStage, Plot, read_plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, str]]


def figures(stage: DvcStage, root: Path) -> Iterator[tuple[str, str]]:
    """Title and markdown (an inline PNG) of every declared plot of a file the stage writes."""
    for plot in read_plots(root):
        path = root / plot.file
        if plot.file in stage.products and path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            if rows:
                yield plot.name, _markdown(plot, rows)


def _markdown(plot: Plot, rows: Rows) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    draw = _bars if plot.bars else _lines
    draw(axes, plot, rows)
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return f"![{plot.title}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def _lines(axes: Axes, plot: Plot, rows: Rows) -> None:
    for column in plot.columns:
        points = [(row[plot.x], row[column]) for row in rows if row.get(column)]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot([float(x) for x in xs], [float(y) for y in ys], label=column, marker=".")


def _bars(axes: Axes, plot: Plot, rows: Rows) -> None:
    label = plot.columns[0]
    models = list(dict.fromkeys(row.get("model", "") for row in rows))
    names = list(dict.fromkeys(row[label] for row in rows))
    height = 0.8 / len(models)
    for index, model in enumerate(models):
        mine: list[Any] = [row for row in rows if row.get("model", "") == model]
        places = [names.index(row[label]) + index * height for row in mine]
        axes.barh(places, [float(row[plot.x]) for row in mine], height, label=model)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names, fontsize="small")
    axes.invert_yaxis()
