"""Several servers as one: who gets the next request, who is down, and when to give up.

Each server takes at most ``capacity`` requests at a time. One that does not answer rests for a while,
longer each time, and what it was doing goes to whoever is free; a job is done exactly once however
often it was tried. A server that comes back gets one job first, which looks at it anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cahl_core.errors import RolloutServerError
from cahl_core.rollouts.backoff import Backoff
from cahl_core.rollouts.client import OpenAIClient, UnavailableError

T = TypeVar("T")
MOST_BROKEN = 5
TICK = 0.5  # seconds between looks at whether to stop

START = (
    "start one with `cahl serve-rollouts` or `vllm serve` (docs/rollout-servers.md), or correct "
    "train.rollouts.servers"
)


class StoppedError(Exception):
    """Whoever asked for this work does not want it any more."""


@dataclass(eq=False)
class Server:
    """One endpoint and what is known of it.

    Attributes:
        failures: since it last answered anything. troubles: since it last did a job.
        checked: somebody has looked at it since it last failed.
        loaded: adapters known to be there.
        identity: of its backbone, as it first said.
    """

    client: OpenAIClient
    capacity: int
    busy: int = 0
    failures: int = 0
    troubles: int = 0
    rests_until: float = 0.0
    last_error: str = ""
    checked: bool = False
    loaded: set[str] = field(default_factory=set)
    identity: tuple[str, ...] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return self.client.url


@dataclass
class Counts:
    """What happened so far: requests answered, tries that were not, times a server went away."""

    requests: int = 0
    retries: int = 0
    outages: int = 0


class ServerPool:
    """Runs jobs on whichever server is free; blocks where none is.

    Args:
        give_up_after: seconds without any answer from any server after which a job fails.
    """

    def __init__(
        self,
        clients: Sequence[OpenAIClient],
        *,
        capacity: int,
        give_up_after: float,
        backoff: Backoff | None = None,
    ) -> None:
        self.servers = [Server(client, capacity) for client in clients]
        self.capacity = capacity * len(self.servers)
        self.counts = Counts()
        self._give_up_after = give_up_after
        self._backoff = backoff or Backoff()
        self._free = threading.Condition()
        self._last_done = time.monotonic()

    def run(self, job: Callable[[Server], T], stop: threading.Event | None = None) -> T:
        """What ``job`` returns; it is tried again, anywhere, while it is `UnavailableError`.

        Raises:
            RolloutServerError: no server has done a job for ``give_up_after`` seconds, or this one
                failed `MOST_BROKEN` times by an error inside a server.
            StoppedError: ``stop`` was set. Anything else that ``job`` raises, at once.
        """
        since, broken = time.monotonic(), 0
        while True:
            server = self._acquire(stop, since)
            try:
                result = job(server)
            except UnavailableError as error:
                self._failed(server, error)
                broken += error.status == 500
                if broken >= MOST_BROKEN:
                    raise RolloutServerError(
                        f"the same request failed {broken} times: {error}", "see the server's log"
                    ) from error
                self._check_patience(since)
            except BaseException:
                self._release(server)
                raise
            else:
                self._answered(server)
                return result

    def _acquire(self, stop: threading.Event | None, since: float) -> Server:
        with self._free:
            while True:
                if stop is not None and stop.is_set():
                    raise StoppedError
                now = time.monotonic()
                awake = [s for s in self.servers if s.rests_until <= now]
                free = [s for s in awake if s.busy < (1 if s.failures else s.capacity)]
                if free:
                    chosen = min(free, key=lambda s: (s.failures, s.busy))
                    chosen.busy += 1
                    return chosen
                self._check_patience(since)
                rests = [s.rests_until - now for s in self.servers if s.rests_until > now]
                self._free.wait(max(0.01, min([TICK, *rests])))

    def _check_patience(self, since: float) -> None:
        if any(not s.troubles for s in self.servers):
            return  # somebody is at work
        silent = time.monotonic() - max(since, self._last_done)
        if silent > self._give_up_after:
            raise RolloutServerError(
                f"no rollout server has answered for {silent:.0f} s "
                f"(train.rollouts.give_up_after={self._give_up_after:g}):\n" + self.report(),
                START,
            )

    def _failed(self, server: Server, error: UnavailableError) -> None:
        """A server that is only busy rests; one that is gone is looked at anew when it is back."""
        with self._free:
            server.busy -= 1
            server.last_error = str(error)
            self.counts.retries += 1
            if not error.busy:
                self.counts.outages += server.failures == 0
                server.failures = max(server.failures, 1)
                server.checked = False
            now = time.monotonic()
            if server.rests_until <= now:  # all its requests fail at once: that is one failure
                pause = self._backoff.delay(server.troubles, error.retry_after)
                server.rests_until = now + pause
                server.troubles += 1
            self._free.notify_all()

    def alive(self, server: Server) -> None:
        """To be called when a server has answered anything: it may have its full share again."""
        with self._free:
            server.failures = 0
            self._free.notify_all()

    def _answered(self, server: Server) -> None:
        with self._free:
            server.busy -= 1
            server.failures = server.troubles = 0
            self.counts.requests += 1
            self._last_done = time.monotonic()
            self._free.notify_all()

    def _release(self, server: Server) -> None:
        with self._free:
            server.busy -= 1
            self._free.notify_all()

    def report(self) -> str:
        """A line per server with what it said last."""
        return "\n".join(f"  {s.url}: {s.last_error or 'no trouble so far'}" for s in self.servers)


def run_all(
    jobs: Sequence[Callable[[threading.Event], T]],
    workers: int,
    stop: threading.Event | None = None,
) -> list[T]:
    """The results of ``jobs`` in their order, from at most ``workers`` threads at a time.

    The first exception ends the others and is raised here. The threads are daemons: a signal that
    ends the program need not wait for an answer under way.

    Args:
        stop: set by somebody else to end the work; `StoppedError` follows.
    """
    ended = _Linked(stop)
    results: dict[int, T] = {}
    failures: list[BaseException] = []
    waiting, lock, done = list(enumerate(jobs))[::-1], threading.Lock(), threading.Condition()

    def work() -> None:
        while not ended.is_set():
            with lock:
                if not waiting:
                    return
                number, job = waiting.pop()
            try:
                result = job(ended)
            except BaseException as error:
                failures.append(error)
                ended.set()
            else:
                results[number] = result
            with done:
                done.notify_all()

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=work, daemon=True, name="rollout").start()
    try:
        with done:
            while len(results) < len(jobs) and not ended.is_set():
                done.wait(TICK)
    finally:
        ended.set()
    if failures:
        raise next((f for f in failures if not isinstance(f, StoppedError)), failures[0])
    if len(results) < len(jobs):
        raise StoppedError
    return [results[i] for i in range(len(jobs))]


class _Linked(threading.Event):
    """Set when it is set itself or another event is."""

    def __init__(self, other: threading.Event | None) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or (self._other is not None and self._other.is_set())
