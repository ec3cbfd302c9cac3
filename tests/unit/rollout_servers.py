"""Rollout servers as real processes, for tests: started, killed and started again on the same port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
import yaml

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120


class ServerProcess:
    """`cahl serve-rollouts` in a process of its own.

    Args:
        model: settings of the ``model`` section. options: further command-line options.
    """

    def __init__(self, backbone: Path, work: Path, model: dict[str, Any], *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = work / f"server-{self.port}.log"
        (work / "configs").mkdir(parents=True, exist_ok=True)
        (work / "params.yaml").write_text(yaml.safe_dump({"profile": "served", "model": model}))
        (work / "configs/served.yaml").write_text("{}")
        self._command = [
            sys.executable, "-m", "cahl_core.cli", "serve-rollouts", "--root", str(work),
            "--backbone", str(backbone), "--adapters-dir", "/", "--port", str(self.port), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, wait: bool = True) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out, env=environment)
        if wait:
            wait_for(self.url, self._process, self.log)

    def kill(self) -> None:
        """As ``kill -9`` does it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=20)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{self.url}/stats", timeout=10).json()
        return found

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when something answers at ``url``."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
        try:
            requests.get(f"{url}/v1/models", timeout=5).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.1)
    raise AssertionError(f"no answer from {url} in {SECONDS} s: {log.read_text()[-2000:]}")


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(backbone: Path, model: dict[str, Any], **options: Any) -> Iterator[Any]:
    """The same server in a thread of this process: `RolloutServer`, with ``url``."""
    from cahl_core.config import ModelSettings
    from cahl_core.rollouts.host import Host
    from cahl_core.rollouts.server import RolloutServer

    own = {k: options.pop(k) for k in ("port", "api_key") if k in options}
    host = Host(backbone, ModelSettings.model_validate(model), adapters=Path("/"), **options)
    server = RolloutServer("127.0.0.1", own.get("port", 0), host, "tiny", own.get("api_key"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        host.close()
