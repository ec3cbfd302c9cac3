"""The worker's side of `worker_process`: JSON requests in, JSON replies out, and an end with its parent.

Loaded by workers in processes that see the standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

Operation = Callable[[dict[str, Any]], dict[str, Any]]


def serve(operations: dict[str, Operation], replies: Any) -> None:
    """Answers requests until standard input ends; any failure ends the process with a traceback.

    Args:
        operations: by the request's ``op``.
        replies: the stream that nothing else writes to.
    """
    _watch(os.getppid())
    for line in sys.stdin:
        request = json.loads(line)
        reply = operations[request["op"]](request)
        replies.write(json.dumps({**reply, "request": request.get("request")}) + "\n")
        replies.flush()


def _watch(parent: int) -> None:
    """Ends the process when its parent is gone, also while it is busy: a closed input is noticed only
    between requests, and a thread does not run during a long multiplication."""

    def look(*_: Any) -> None:
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
