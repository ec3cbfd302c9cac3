"""The ``cahl`` command: one sub-command per stage, and ``chat``.

Nothing but typer is imported here at module level: ``cahl --help`` must answer at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cahl_core import cost_cli, data_cli, evaluate_cli, experiment_cli, rollout_cli, train_cli

if TYPE_CHECKING:
    from cahl_core.config import Settings

MODULES = {
    "fetch": "cahl_core.datasets.fetch",
    "prepare": "cahl_core.datasets.prepare",
    "sft": "cahl_core.training.sft",
    "train": "cahl_core.training.joint",
    "evaluate": "cahl_core.evaluation.evaluate",
    "register": "cahl_core.serving.register",
}
UNEXPECTED = 70
INTERRUPTED = 130
CLOSED_PIPE = 141
TERMINATED = 143

# Nothing here phones home; the user's own values stand.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
}

Profile = Annotated[
    str | None,
    typer.Option(help="Overlay in configs/; default: the profile named in params.yaml."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."),
]
Root = Annotated[Path, typer.Option(help="Project directory, with params.yaml and configs/.")]

# Plain help: rendering it with rich would triple the time it takes.
app = typer.Typer(
    name="cahl",
    help="Train a planner and an executor together for tool use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_cli.app)
app.add_typer(train_cli.app)
app.add_typer(evaluate_cli.app)
app.add_typer(cost_cli.app)
app.add_typer(rollout_cli.app)
app.add_typer(experiment_cli.app)


@app.command()
def fetch(profile: Profile = None, overrides: Overrides = None, root: Root = Path()) -> None:
    """Download the sources and the backbone, check their sums, unpack them."""
    _run_stage("fetch", root, profile, overrides)


@app.command()
def prepare(profile: Profile = None, overrides: Overrides = None, root: Root = Path()) -> None:
    """Turn raw sources into validated tasks, split into train and dev."""
    _run_stage("prepare", root, profile, overrides)


@app.command()
def sft(profile: Profile = None, overrides: Overrides = None, root: Root = Path()) -> None:
    """Warm-start both adapters by supervised fine-tuning."""
    _run_stage("sft", root, profile, overrides)


@app.command()
def train(
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
    resume: Annotated[
        str, typer.Option(help="auto: from the checkpoint of the same settings and inputs; never.")
    ] = "auto",
) -> None:
    """Train planner and executor together by reinforcement learning."""
    _run_stage("train", root, profile, overrides, resume=resume)


@app.command()
def register(profile: Profile = None, overrides: Overrides = None, root: Root = Path()) -> None:
    """Register the trained agent in MLflow and move its alias."""
    _run_stage("register", root, profile, overrides)


@app.command()
def chat(
    model: Annotated[str, typer.Option(help="MLflow model address.")] = (
        "models:/cahl-agent@champion"
    ),
    tools: Annotated[Path | None, typer.Option(help="JSON file of OpenAI function tools.")] = None,
    once: Annotated[str | None, typer.Option(help="Answer this message and leave.")] = None,
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
) -> None:
    """Talk to a registered agent: it shows its plan and the calls it would make."""
    root = root.absolute()
    with _failures("chat", root):
        settings = _prepare("chat", root, profile, overrides)
        from cahl_core.serving.chat import chat as converse

        converse(root, settings, model, tools=tools, once=once)


def main() -> None:
    """Entry point: expected failures are a message and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


class Terminated(SystemExit):
    """SIGTERM arrived; unwinds like any exception so that nothing is left half-written."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(TERMINATED)


def _run_stage(
    name: str, root: Path, profile: str | None, overrides: list[str] | None, **options: str
) -> None:
    root = root.absolute()
    with _failures(name, root, record=True):
        settings = _prepare(name, root, profile, overrides)
        from importlib import import_module

        from cahl_core.lineage import require_inputs
        from cahl_core.stage import open_stage

        require_inputs(name, root)
        with open_stage(name, root, settings) as stage:
            import_module(MODULES[name]).run(stage, **options)


def _prepare(name: str, root: Path, profile: str | None, overrides: list[str] | None) -> Settings:
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if name != "fetch":
        # Only downloads are worth a bar of the hub's own.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries', not ours
    from cahl_core.profiles import load_settings

    settings = load_settings(root, profile, tuple(overrides or ()))
    from_hub = name == "evaluate" and any("hf:" in model for model in settings.evaluate.models)
    if name != "fetch" and not from_hub and (root / "data/backbone/config.json").exists():
        # With the backbone on disk a look-up on the hub can only hang.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return settings


@contextmanager
def _failures(name: str, root: Path, *, record: bool = False) -> Iterator[None]:
    """Ends the process with a message and the exit code that belongs to what went wrong."""
    from cahl_core.errors import CahlError, StorageError

    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        _fail(f"{name}: interrupted; finished files are kept, run it again to go on", INTERRUPTED)
    except Terminated:
        _fail(f"{name}: stopped by SIGTERM; finished files are kept", TERMINATED)
    except CahlError as error:
        _record(name, root, error, record)
        _fail(f"{name}: {error}", error.exit_code)
    except BrokenPipeError:
        # whoever read our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(CLOSED_PIPE) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _unexpected(name, root, error, record)
        full = StorageError(f"the disk is full: {error}", "free space and run the stage again")
        _record(name, root, full, record)
        _fail(f"{name}: {full}", full.exit_code)
    except Exception as error:
        _unexpected(name, root, error, record)


def _record(name: str, root: Path, error: Exception, wanted: bool) -> None:
    if wanted and (root / "params.yaml").exists() and os.environ.get("RANK", "0") == "0":
        from contextlib import suppress

        from cahl_core.stage_record import note_failure

        with suppress(Exception):  # the failure itself matters more than its record
            note_failure(root, name, error)


def _unexpected(name: str, root: Path, error: Exception, record: bool) -> NoReturn:
    _record(name, root, error, record)
    place = _save_traceback(name, root, error)
    _fail(f"{name}: unexpected {type(error).__name__}: {error}\n  → {place}", UNEXPECTED)


def _save_traceback(name: str, root: Path, error: Exception) -> str:
    import traceback
    from datetime import datetime

    text = "".join(traceback.format_exception(error))
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = root / ".cahl" / "errors" / f"{name}-{stamp}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        return f"the traceback could not be saved either:\n{text}"
    return f"the traceback is in {path}"


def _fail(message: str, code: int) -> NoReturn:
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text("error: ", style="bold red") + Text(message))
    else:
        print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
