"""A checker's process: started when first asked, asked many times, ended reliably, trusted in nothing.

A process that crashes, hangs or answers something else is an `EvaluationError` with the end of what it
printed; it is never a score. Requests and replies are JSON, one line each; a reply repeats the number of
its request, so that no reply is taken for another's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.errors import EvaluationError

ISOLATED = ("-I", "-S", "-B", "-X", "utf8")  # no site-packages, no environment, nothing written
TAIL_LINES = 12
TAIL_BYTES = 8000


@dataclass(slots=True)
class _Running:
    """One live process and the end of what it printed (a file, so that it can never block it)."""

    process: subprocess.Popen[str]
    printed: Path
    end: Any  # weakref.finalize: kills the process and removes its directory; at exit at the latest

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            text = self.printed.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
            lines = text.strip().splitlines()[-TAIL_LINES:]
            return "; it printed:\n    " + "\n    ".join(lines) if lines else ""
        return ""


class WorkerProcess:
    """A script that answers JSON requests in an interpreter with the standard library only.

    Args:
        script: run as ``python -I -S -B -X utf8 SCRIPT *arguments``; serves until its input ends.
        timeout: seconds one request may take, the start included.
        name: what messages call it.

    The process runs in a directory of its own, which its environment names as BFCL_PROJECT_ROOT; of ours
    it sees nothing but LD_LIBRARY_PATH. It is killed by `close`, when this object is gone, when our
    process ends, and after any failure; the next request starts a fresh one.
    """

    def __init__(
        self, script: Path, arguments: Sequence[str], timeout: float, name: str = "BFCL worker"
    ) -> None:
        self.command = [sys.executable, *ISOLATED, str(script), *arguments]
        self.timeout = timeout
        self.name = name
        self._running: _Running | None = None
        self._asked = 0
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the live process, if there is one."""
        return None if self._running is None else self._running.process.pid

    def ask(self, request: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        """The reply to one request, which has all of ``keys``.

        Raises:
            EvaluationError: no reply in time, a crash, or something that is not the reply.
        """
        with self._lock:
            try:
                return self._checked(request, self._line(request), keys)
            except BaseException:
                self._end()
                raise

    def close(self) -> None:
        """Ends the process, if it runs."""
        with self._lock:
            self._end()

    def _line(self, request: Mapping[str, Any]) -> str:
        """The line that answers ``request``; written and read aside, so that neither can hang us."""
        running = self._running or self._start()
        self._asked += 1
        sent = json.dumps({**request, "request": self._asked}) + "\n"
        replies: list[str] = []
        exchange = threading.Thread(target=_exchange, args=(running, sent, replies), daemon=True)
        exchange.start()
        exchange.join(self.timeout)
        operation = request.get("op")
        if exchange.is_alive():
            raise EvaluationError(
                f"the {self.name} did not answer '{operation}' in {self.timeout:g} s"
                + running.tail(),
                "raise evaluate.checker_timeout if the machine is slow",
            )
        if not replies or not replies[0].endswith("\n"):
            code = _code(running.process)
            raise EvaluationError(
                f"the {self.name} ended with code {code} on '{operation}'" + running.tail(),
                "no score was recorded; fetch the package again if its files were changed",
            )
        return replies[0]

    def _checked(
        self, request: Mapping[str, Any], line: str, keys: Sequence[str]
    ) -> dict[str, Any]:
        operation = request.get("op")
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise EvaluationError(
                f"the {self.name} answered '{operation}' with something that is not one "
                f"JSON line ({error}): {line[:200]!r}"
            ) from error
        if not isinstance(reply, dict) or any(k not in reply for k in (*keys, "request")):
            raise EvaluationError(f"the {self.name}'s reply lacks {', '.join(keys)}")
        if reply["request"] != self._asked:
            raise EvaluationError(
                f"the {self.name} answered request {reply['request']}, not '{operation}'"
            )
        return reply

    def _start(self) -> _Running:
        scratch = tempfile.TemporaryDirectory(prefix="cahl-worker-")
        printed = Path(scratch.name) / "printed.txt"
        with printed.open("wb") as stream:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                encoding="utf-8",
                errors="replace",
                cwd=scratch.name,
                env=_environment(scratch.name),
                start_new_session=True,
            )
        self._running = _Running(process, printed, weakref.finalize(self, _end, process, scratch))
        return self._running

    def _end(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None


def _exchange(running: _Running, sent: str, replies: list[str]) -> None:
    """One request and its reply; a process that is gone leaves ``replies`` empty."""
    stdin, stdout = running.process.stdin, running.process.stdout
    assert stdin is not None and stdout is not None
    with contextlib.suppress(OSError, ValueError):
        stdin.write(sent)
        stdin.flush()
    # what it said before it went matters even if it never read the request
    with contextlib.suppress(OSError, ValueError):
        replies.append(stdout.readline())


def _code(process: subprocess.Popen[str]) -> int | None:
    """The exit code of a process whose output has ended."""
    try:
        return process.wait(5)
    except subprocess.TimeoutExpired:
        return None  # it closed its output and lives on; `_end` kills it


def _end(process: subprocess.Popen[str], scratch: tempfile.TemporaryDirectory[str]) -> None:
    """Kills the process with all it started, and removes its directory."""
    if process.poll() is None:  # else its number may already be another's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.close()
    with contextlib.suppress(OSError):
        scratch.cleanup()


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of ours but what the interpreter itself may need to start."""
    kept = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
    return {"BFCL_PROJECT_ROOT": scratch, **kept}
