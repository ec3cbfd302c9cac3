"""``python -m pipelines.ui``: the Dagster UI and the MLflow server together, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cahl_core.errors import CahlError, ConfigError
from cahl_core.profiles import load_settings
from cahl_core.tracking import tracking_uri
from pipelines.home import dagster_home
from pipelines.resources import project_root, stage_environment

HOST = "127.0.0.1"
STOP_SECONDS = 15


def main() -> int:
    """Starts both servers; ends both when one ends or on SIGINT or SIGTERM."""
    root = project_root()
    # A script's background job starts with SIGINT ignored, and the servers would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        return serve(root)
    except CahlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def serve(root: Path) -> int:
    """Checks both ports before anything starts.

    Raises:
        ConfigError: a port is in use or not a port.
    """
    dagster_port, mlflow_port = port("DAGSTER_PORT", 3000), port("MLFLOW_PORT", 5000)
    dagster_home(root)
    environment = os.environ | stage_environment()
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    commands = [_dagster(dagster_port), _mlflow(root, mlflow_port)]
    servers = [
        subprocess.Popen(command, cwd=root, env=environment, start_new_session=True)
        for command in commands
    ]
    print(f"Dagster: http://{HOST}:{dagster_port}   MLflow: http://{HOST}:{mlflow_port}   (Ctrl-C)")
    try:
        return _wait(servers)
    except KeyboardInterrupt:
        return 0
    finally:
        _end(servers)


def port(variable: str, default: int) -> int:
    """The port named by the variable, known to be free.

    Raises:
        ConfigError: names the port and the variable to change.
    """
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"{variable}={text} is not a port", "use a number from 1 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            raise ConfigError(
                f"port {text} cannot be used: {error.strerror}",
                f"stop what listens there, or choose another: make ui {variable}={int(text) + 1}",
            ) from None
    return int(text)


def _dagster(number: int) -> list[str]:
    module = ["-m", "pipelines.definitions"]
    command = [sys.executable, "-m", "dagster", "dev", *module]
    return [*command, "--host", HOST, "--port", str(number)]


def _mlflow(root: Path, number: int) -> list[str]:
    uri = tracking_uri(root, load_settings(root))
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(number)]
    artifacts = ["--artifacts-destination", (root / "mlartifacts").as_uri()]
    return [*command, "--backend-store-uri", uri, *artifacts, "--workers", "1"]


def _wait(servers: list[subprocess.Popen[bytes]]) -> int:
    while True:
        for server in servers:
            if server.poll() is not None:
                name = " ".join(str(part) for part in list(server.args)[2:4])  # type: ignore[arg-type]
                print(f"error: {name} ended with code {server.returncode}", file=sys.stderr)
                return 1
        time.sleep(0.5)


def _end(servers: list[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    for server in servers:
        try:
            server.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
