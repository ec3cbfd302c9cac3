"""The same work on many items in several processes; results keep the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

CHUNK = 32
PRELOADED = ["cahl_core.datasets.judge", "transformers", "datasketch", "jsonschema", "xxhash"]


class Work(Protocol):
    """What the processes do. It is handed over once, when they start."""

    def chunk(self, items: Sequence[Any]) -> Any: ...


Run = Callable[[Iterable[Any]], Iterator[Any]]
_work: Work | None = None


def _adopt(work: Work) -> None:
    global _work
    _work = work


def _do(items: Sequence[Any]) -> Any:
    assert _work is not None
    return _work.chunk(items)


@contextmanager
def processes(work: Work, workers: int) -> Iterator[Run]:
    """Yields a function that gives ``work.chunk`` of every chunk of items, in order and lazily.

    One worker works in this process. Several come from a fork server, which has no threads: forking
    this process, whose loggers and pipes have some, can leave a child waiting for a lock for ever.
    """
    if workers <= 1:
        yield lambda items: (work.chunk(chunk) for chunk in chunks(items))
        return
    import multiprocessing

    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload(PRELOADED)
    with context.Pool(workers, _adopt, (work,)) as pool:
        yield lambda items: pool.imap(_do, chunks(items))


def warm(workers: int) -> None:
    """Starts the fork server, which takes seconds to import what the work needs, without waiting."""
    import multiprocessing

    if workers > 1 and "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of `CHUNK` items, the last one shorter."""
    pending: list[Any] = []
    for item in items:
        pending.append(item)
        if len(pending) == CHUNK:
            yield pending
            pending = []
    if pending:
        yield pending
