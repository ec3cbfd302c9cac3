"""A server with OpenAI's chat completions whose answers and faults a test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
# what a request is answered with: a message, (status, body), raw bytes sent as JSON, or "drop"
Answer = Mapping[str, Any] | tuple[int, Any] | bytes | str


class ChatServer:
    """Answers each request by ``respond(body)``; remembers bodies, keys and how many came together.

    Attributes:
        pause: seconds that every answer takes.
    """

    def __init__(self, respond: Callable[[Body], Answer], port: int = 0) -> None:
        self.respond = respond
        self.bodies: list[Body] = []
        self.keys: list[str | None] = []
        self.models = ["m"]
        self.pause = 0.0
        self.most = self._now = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.send(self, 200, {"data": [{"id": name} for name in outer.models]})

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.bodies.append(body)
            self.keys.append(handler.headers.get("Authorization"))
            answer = self.respond(body)
        time.sleep(self.pause)
        with self.lock:
            self._now -= 1
        if answer == "drop":
            handler.close_connection = True
        elif isinstance(answer, bytes):
            self.send(handler, 200, answer)
        elif isinstance(answer, tuple):
            self.send(handler, *answer)
        else:
            self.send(handler, 200, completion(answer))  # type: ignore[arg-type]

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


def completion(message: Mapping[str, Any]) -> Body:
    """A whole answer around a message; keys of the choice may stand in the message as ``_key``."""
    own = {k: v for k, v in message.items() if not k.startswith("_")}
    extra = {k[1:]: v for k, v in message.items() if k.startswith("_")}
    usage = extra.pop("usage", {"prompt_tokens": 10, "completion_tokens": 3})
    choice = {"index": 0, "message": {"role": "assistant"} | own, "finish_reason": "stop"} | extra
    return {"choices": [choice], "usage": usage}


def called(*calls: tuple[str, Any]) -> Body:
    """A message with tool calls; arguments that are text are sent as they are."""
    made = [
        {
            "id": f"c{i}",
            "type": "function",
            "function": {"name": n, "arguments": a if isinstance(a, str) else json.dumps(a)},
        }
        for i, (n, a) in enumerate(calls)
    ]
    return {"content": None, "tool_calls": made, "_finish_reason": "tool_calls"}


@contextmanager
def chat_server(respond: Callable[[Body], Answer], port: int = 0) -> Iterator[ChatServer]:
    server = ChatServer(respond, port)
    try:
        yield server
    finally:
        server.close()
