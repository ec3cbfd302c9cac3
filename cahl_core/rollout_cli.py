"""``cahl serve-rollouts``: samples for training on other machines or cards.

Mounted by `cahl_core.cli`; imports nothing heavy at module level.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command("serve-rollouts")
def serve_rollouts(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    backbone: Annotated[
        Path | None, typer.Option(help="Model directory. [default: data/backbone]")
    ] = None,
    adapters_dir: Annotated[
        Path | None,
        typer.Option(help="Adapters are loaded from below here only. [default: the project]"),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests taken at a time; more are answered with 429.")
    ] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Prompts sampled together at most.")] = 32,
    api_key_variable: Annotated[
        str, typer.Option(help="Environment variable with the key that requests must carry.")
    ] = "CAHL_ROLLOUT_API_KEY",
    profile: Annotated[str | None, typer.Option(help="Overlay in configs/.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting."),
    ] = None,
    root: Annotated[Path, typer.Option(help="Project directory.")] = Path(),
) -> None:
    """Serve rollouts over the OpenAI API, one process per card (train.rollouts.servers)."""
    from cahl_core import cli

    root = root.absolute()
    with cli._failures("serve-rollouts", root):
        settings = cli._prepare("serve-rollouts", root, profile, overrides)
        from cahl_core.errors import ConfigError
        from cahl_core.rollouts.host import Host
        from cahl_core.rollouts.server import RolloutServer

        engine = Host(
            backbone or root / "data/backbone",
            settings.model,
            adapters=adapters_dir or root,
            most_waiting=max_waiting,
            batch=batch,
        )
        key = os.environ.get(api_key_variable)
        try:
            server = RolloutServer(host, port, engine, settings.model.backbone, key)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}", "choose another --port"
            ) from error
        address = f"http://{host}:{server.server_port}"
        print(f"rollouts of {settings.model.backbone} on {address}", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()
            engine.close()
