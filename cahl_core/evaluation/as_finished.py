"""Work that waits for others, many at a time, handed over as it is finished."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def as_finished(jobs: Sequence[Callable[[], T]], workers: int) -> Iterator[tuple[int, T]]:
    """``(number, result)`` of every job as soon as it is done, in the caller's thread.

    After a job has failed no other is begun; those under way are waited for and handed over, since
    they were paid for, and then the first failure is raised. The threads are daemons: what ends the
    program need not wait for them.

    Args:
        workers: jobs at a time.
    """
    done: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()
    waiting, lock, failure = iter(enumerate(jobs)), threading.Lock(), None
    ended = threading.Event()

    def work() -> None:
        while True:
            with lock:
                number, job = (-1, None) if ended.is_set() else next(waiting, (-1, None))
            if job is None:
                done.put((-1, None, None))
                return
            try:
                done.put((number, job(), None))
            except BaseException as error:
                ended.set()
                done.put((number, None, error))

    live = min(workers, len(jobs))
    for _ in range(live):
        threading.Thread(target=work, daemon=True, name="as_finished").start()
    try:
        while live:
            number, result, error = done.get()
            if number < 0:
                live -= 1
            elif error is None:
                yield number, result  # type: ignore[misc]  # a job may return None
            else:
                failure = failure or error
    finally:
        ended.set()
    if failure is not None:
        raise failure
