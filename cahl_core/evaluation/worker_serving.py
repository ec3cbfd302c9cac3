"""The worker's side of `worker_process`: JSON requests in, JSON replies out, and an end with its parent.

Loaded by workers in processes that see the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Operation = Callable[[dict[str, Any]], dict[str, Any]]


def serve(operations: dict[str, Operation], replies: Any) -> None:
    """Answers requests until standard input ends; any failure ends the process with a traceback.

    Args:
        operations: by the request's ``op``.
        replies: the stream that nothing else writes to.
    """
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        request = json.loads(line)
        reply = operations[request["op"]](request)
        replies.write(json.dumps({**reply, "request": request.get("request")}) + "\n")
        replies.flush()


def _end_with_parent(parent: int) -> None:
    """A killed parent closes our input, but only an idle worker would notice."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
