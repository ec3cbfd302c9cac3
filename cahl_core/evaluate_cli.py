"""``cahl evaluate``: the stage; and on demand any model on any benchmark or file, and comparisons.

Mounted by `cahl_core.cli`; imports nothing heavy at module level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Profile = Annotated[
    str | None,
    typer.Option(help="Overlay in configs/; default: the profile named in params.yaml."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."),
]
Root = Annotated[Path, typer.Option(help="Project directory, with params.yaml and configs/.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="base, sft, cahl, hf:FOLDER-OR-ID, models:/NAME@ALIAS, or http://HOST/v1?model=NAME; "
        "repeatable. Default: evaluate.models.",
    ),
]
Out = Annotated[Path | None, typer.Option(help="Directory of the report.")]
Limit = Annotated[int, typer.Option(min=0, help="So many items of each benchmark; 0: all.")]
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="Samples per item, for pass@k. Default: evaluate.samples."),
]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="0 is greedy. Default: evaluate.temperature.")
]

app = typer.Typer(
    name="evaluate",
    help="Score models on benchmarks or your own tasks; without a sub-command, the stage.",
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def stage(
    context: typer.Context,
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
    full: Annotated[bool, typer.Option("--full", help="Every item, not the sample.")] = False,
) -> None:
    """Score base, SFT and CAHL models on the profile's benchmarks (the stage of dvc.yaml)."""
    if context.invoked_subcommand is not None:
        if profile or overrides or full or root != Path():
            raise typer.BadParameter(
                f"options stand after the sub-command: cahl evaluate {context.invoked_subcommand} …"
            )
        return
    from cahl_core import cli

    cli._run_stage(
        "evaluate", root, profile, [*(overrides or []), *(["evaluate.full=true"] * full)]
    )


@app.command()
def run(
    benchmarks: Annotated[
        list[str],
        typer.Argument(metavar="BENCHMARK…", help="See `cahl evaluate list`."),
    ],
    models: Models = None,
    limit: Limit = 0,
    samples: Samples = None,
    temperature: Temperature = None,
    out: Out = None,
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
) -> None:
    """Score any models on the named benchmarks and write a report."""
    from cahl_core import cli

    root = root.absolute()
    with cli._failures("evaluate run", root):
        asked = _overrides(models, samples, temperature, overrides)
        asked.append(f"evaluate.benchmarks=[{','.join(benchmarks)}]")
        asked.append("evaluate.full=true")
        settings = cli._prepare("evaluate", root, profile, asked)
        from cahl_core.evaluation.on_demand import on_demand
        from cahl_core.evaluation.registry import benchmarks_of

        on_demand(root, settings, benchmarks_of(root, settings), out, limit=limit)


@app.command()
def tasks(
    file: Annotated[Path, typer.Option("--file", help="Your tasks; formats: docs/data.md.")],
    models: Models = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A record that cannot be scored is an error.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help="Of the file; default: told from its first record.")
    ] = None,
    forced: Annotated[
        bool,
        typer.Option(
            "--teacher-forced/--no-teacher-forced",
            help="Also score each step on the gold history; one more text per gold call.",
        ),
    ] = True,
    limit: Limit = 0,
    samples: Samples = None,
    temperature: Temperature = None,
    out: Out = None,
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
) -> None:
    """Score models on a file of tasks with gold calls: plans, steps, whole tasks."""
    from cahl_core import cli

    file, root = file.absolute(), root.absolute()
    with cli._failures("evaluate tasks", root):
        asked = _overrides(models, samples, temperature, overrides)
        settings = cli._prepare("evaluate", root, profile, asked)
        from cahl_core.evaluation.on_demand import on_demand
        from cahl_core.evaluation.registry import task_benchmark

        own = task_benchmark(root, settings, file, strict=strict, format=format, forced=forced)
        on_demand(root, settings, [own], out, limit=limit)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A report's directory, or its results.json.")],
    second: Annotated[Path, typer.Argument(help="The other one.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Of the first, then of the second; default: models of the same name."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write compare.md and compare.html.")
    ] = None,
) -> None:
    """Differences of two evaluations: paired intervals, and items that changed sides."""
    from cahl_core import cli

    with cli._failures("evaluate compare", Path().absolute()):
        from cahl_core.evaluation.comparison import compare_reports

        print(compare_reports(first, second, tuple(model or ()), out))


@app.command("list")
def list_benchmarks(root: Root = Path()) -> None:
    """The benchmarks, and whether their data are here."""
    from cahl_core import cli

    root = root.absolute()
    with cli._failures("evaluate list", root):
        settings = cli._prepare("evaluate", root, None, [])
        from cahl_core.evaluation.registry import overview
        from cahl_core.tables import show_table

        show_table(("benchmark", "items", "what it asks for", "data"), overview(root, settings))


def _overrides(
    models: list[str] | None,
    samples: int | None,
    temperature: float | None,
    overrides: list[str] | None,
) -> list[str]:
    """Those options that were given, as settings; ``--set`` comes last and wins."""
    given = {"samples": samples, "temperature": temperature}
    asked = [f"evaluate.{key}={value}" for key, value in given.items() if value is not None]
    if models:
        import json

        asked.append(f"evaluate.models={json.dumps(models)}")
    return [*asked, *(overrides or [])]
