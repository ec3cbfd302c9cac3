"""``cahl inspect``: what training sampled, tree by tree.

Mounted by `cahl_core.cli`; imports nothing heavy at module level. Tables and trees are drawn on a
terminal, indented text goes into a pipe, ``--json`` is for machines, ``--html`` writes a page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from cahl_core.traces.select import Query, Record, Sort

SHOWN, EMBEDDED = 10, 2000  # trees by default: in the terminal, in a page
STEPS = re.compile(r"(\d+)(?:-(\d+))?")

app = typer.Typer(rich_markup_mode=None)


@app.command("inspect")
def inspect(
    path: Annotated[
        Path | None,
        typer.Argument(help="Trace file, folder or project. [default: .cahl/traces/train]"),
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="N or N-M", help="Only these training steps.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, by its id.")] = None,
    source: Annotated[str | None, typer.Option(help="Only tasks of this source.")] = None,
    role: Annotated[
        Literal["planner", "executor"] | None,
        typer.Option(help="Show its texts only; bounds and sorting are about them."),
    ] = None,
    min_reward: Annotated[float | None, typer.Option(help="Only texts that earned this.")] = None,
    max_reward: Annotated[
        float | None, typer.Option(help="Only texts that earned no more.")
    ] = None,
    only_signal: Annotated[
        bool, typer.Option("--only-signal", help="Only texts of groups with unequal rewards.")
    ] = False,
    sort: Annotated[
        Literal["step", "reward", "advantage"], typer.Option(help="Highest first; step: in order.")
    ] = "step",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"Trees shown. [default: {SHOWN}; --html {EMBEDDED}; --json all]"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Texts in full length.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines for machines.")] = False,
    root: Annotated[Path, typer.Option(help="Project directory.")] = Path(),
) -> None:
    """Rollout trees of training: plans, calls, rewards and what each was judged."""
    from cahl_core import cli

    root = root.absolute()
    with cli._failures("inspect", root):
        from cahl_core.errors import ConfigError
        from cahl_core.traces.record import DEFAULT_FOLDER, read_traces
        from cahl_core.traces.select import Query, select

        if as_json and html:
            raise ConfigError("--json and --html exclude each other", "give one of them")
        query = Query(role, min_reward, max_reward, only_signal)
        found = read_traces(
            path or root / DEFAULT_FOLDER, steps=_steps(step), task=task, source=source
        )
        first = next(found, None)
        if first is None:
            raise ConfigError(*_nothing(step, task, source))
        records = chain([first], found)
        if html:
            _write_page(records, query, sort, limit or EMBEDDED, html)
        elif as_json:
            _print_json(records, query, sort, limit)
        else:
            from cahl_core.traces.inspect import show

            if isinstance(sys.stdout, TextIOWrapper):  # a sign it cannot write must not end it
                sys.stdout.reconfigure(errors="replace")
            show(select(records, query, sort, limit or SHOWN), query, full=full)


def _write_page(records: Iterator[Record], query: Query, sort: Sort, limit: int, out: Path) -> None:
    from cahl_core.traces.select import Selection, counted, select
    from cahl_core.traces.viewer import write_html

    if sort == "step":  # one record in memory at a time
        said = write_html(counted(records, query, Selection([], 0, {})), out, limit=limit)
    else:
        best = select(records, query, sort, limit)
        said = write_html(best.records, out, matching=best.matching)
    print(said, file=sys.stderr)


def _print_json(records: Iterator[Record], query: Query, sort: Sort, limit: int | None) -> None:
    from cahl_core.traces.select import Selection, counted, select

    chosen: Iterable[Record]
    if sort == "step":
        chosen = islice(counted(records, query, Selection([], 0, {})), limit)
    else:
        chosen = select(records, query, sort, limit).records
    for record in chosen:
        print(json.dumps(record))  # escapes: whatever the terminal's encoding, it is JSON


def _steps(text: str | None) -> Collection[int] | None:
    """The steps of ``N`` or ``N-M``, both ends included."""
    from cahl_core.errors import ConfigError

    if text is None:
        return None
    match = STEPS.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--step {text!r} is not a step", "a number, or a range such as 10-20")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ConfigError(f"--step {text!r} ends before it begins", f"--step {last}-{first}")
    return range(first, last + 1)


def _nothing(step: str | None, task: str | None, source: str | None) -> tuple[str, str]:
    asked = {"--step": step, "--task": task, "--source": source}
    given = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    if not given:
        return "the trace files hold no tree", "train.trace.trees says how many a step keeps"
    return f"no traced tree for {given}", "`cahl inspect --limit 1` lists the steps there are"
