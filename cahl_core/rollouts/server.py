"""`cahl serve-rollouts`: our engine behind the OpenAI API, with token ids and adapters at run time.

``/v1/completions`` (prompts as token ids or text, ``n``, ``seed``, ``stop``, ``logprobs``,
``return_token_ids``), ``/v1/chat/completions`` (text in, text out), ``/v1/models``,
``/v1/load_lora_adapter``, ``/v1/unload_lora_adapter``, ``/health`` and ``/stats``. Not offered, and
refused: streaming, ``echo``, ``tools``, and ``top_p``, ``top_k`` or penalties that change anything.
"""

from __future__ import annotations

import hmac
import json
import math
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cahl_core.errors import CahlError
from cahl_core.policy.engine import Completion
from cahl_core.rollouts.host import BACKBONE_ONLY, Host, Kind, QueueFullError, UnknownModelError

MOST_BYTES = 64 * 2**20
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False, None), "echo": (False, None), "suffix": (None,), "best_of": (None, 1),
    "top_p": (None, 1), "top_k": (None, 0, -1), "min_p": (None, 0), "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0), "repetition_penalty": (None, 1), "tools": (None, []),
}  # fmt: skip


class _BadRequestError(Exception):
    """The client asked for something that cannot be; the text is for it."""


class RolloutServer(ThreadingHTTPServer):
    """Listens on ``host:port`` (0 takes a free one) and answers with ``engine``'s samples.

    Args:
        model: the backbone's name. api_key: if given, requests must carry it.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, host: str, port: int, engine: Host, model: str, api_key: str | None = None
    ) -> None:
        self.engine, self.model, self.api_key = engine, model, api_key
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: RolloutServer
    protocol_version = "HTTP/1.1"
    timeout = 900  # seconds an idle connection is kept

    def do_GET(self) -> None:
        engine = self.server.engine
        if not self._permitted():
            return
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": _cards(self.server)})
        elif self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/stats":
            self._send(200, {**engine.counts, "adapters": engine.loaded})
        else:
            self._error(404, f"no {self.path} here")

    def do_POST(self) -> None:
        body = self._body()
        if body is None or not self._permitted():
            return
        routes = {
            "/v1/completions": _completions,
            "/v1/chat/completions": _chat,
            "/v1/load_lora_adapter": _load,
            "/v1/unload_lora_adapter": _unload,
        }
        if self.path not in routes:
            self._error(404, f"no {self.path} here")
            return
        try:
            self._send(200, routes[self.path](self.server, body))
        except QueueFullError:
            self._error(429, "too many requests wait; come back later", {"Retry-After": "0.5"})
        except UnknownModelError as error:
            self._error(404, f"the model `{error}` does not exist")
        except _BadRequestError as error:
            self._error(400, str(error))
        except CahlError as error:
            self._error(400, error.what)
        except Exception as error:
            self._error(500, f"{type(error).__name__}: {error}")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are many; errors reach the client."""

    def _permitted(self) -> bool:
        key = self.server.api_key
        given = self.headers.get("Authorization", "")
        if key is None or hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            return True
        self._error(401, "the API key is missing or wrong")
        return False

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BYTES:
            self.close_connection = True  # its bytes are not read
            self._error(413, f"a body of at most {MOST_BYTES} bytes with its length is needed")
            return None
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self._error(400, "the body is not a JSON object")
            return None
        return body

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, {"error": {"message": message, "code": status}}, headers)

    def _send(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        try:
            self.send_response(status)
            for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # whoever asked is gone
            self.close_connection = True


def _cards(server: RolloutServer) -> list[dict[str, Any]]:
    engine = server.engine
    base = {
        "id": server.model,
        "object": "model",
        "owned_by": "cahl",
        "parent": None,
        "root": server.model,
        "max_model_len": engine.settings.max_context,
        "fingerprint": engine.fingerprint,
    }
    adapters = [
        {"id": name, "object": "model", "owned_by": "cahl", "parent": server.model, "root": path}
        for name, path in list(engine.loaded.items())
    ]
    return [base, *adapters]


def _load(server: RolloutServer, body: Mapping[str, Any]) -> Any:
    name, path = body.get("lora_name"), body.get("lora_path")
    if not (isinstance(name, str) and name and isinstance(path, str) and path):
        raise _BadRequestError("both 'lora_name' and 'lora_path' must be given")
    if "." in name:
        raise _BadRequestError("the name of an adapter may not contain a dot")
    if name == server.model:
        raise _BadRequestError(f"'{name}' is the backbone's name")
    server.engine.load(name, Path(path))
    return f"Success: LoRA adapter '{name}' added successfully."


def _unload(server: RolloutServer, body: Mapping[str, Any]) -> Any:
    name = body.get("lora_name")
    if not isinstance(name, str):
        raise _BadRequestError("'lora_name' must be given")
    server.engine.unload(name)
    return f"Success: LoRA adapter '{name}' removed successfully."


def _completions(server: RolloutServer, body: Mapping[str, Any]) -> Any:
    prompts = _prompts(body.get("prompt"), server.engine.policy.tokenizer)
    kind = _kind(server, body)
    choices: list[dict[str, Any]] = []
    found: list[Completion] = []
    for number, prompt in enumerate(prompts):
        seed = _seed(body, number if len(prompts) > 1 else None)
        for completion in server.engine.complete(prompt, seed, kind):
            choices.append(_choice(server, completion, len(choices), prompt, body))
            found.append(completion)
    return _answer(server, body, "text_completion", choices, prompts, found)


def _chat(server: RolloutServer, body: Mapping[str, Any]) -> Any:
    tokenizer, messages = server.engine.policy.tokenizer, body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _BadRequestError("'messages' must be a list with at least one message")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise _BadRequestError(f"the chat template refuses these messages: {error}") from error
    prompt = list(tokenizer.encode(text, add_special_tokens=False))
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    kind = _kind(server, {**body, "max_tokens": limit})
    found = server.engine.complete(prompt, _seed(body, None), kind)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": completion.text},
            "finish_reason": "stop" if completion.finished else "length",
            **({"token_ids": completion.token_ids} if body.get("return_token_ids") else {}),
        }
        for index, completion in enumerate(found)
    ]
    return _answer(server, body, "chat.completion", choices, [prompt], found)


def _kind(server: RolloutServer, body: Mapping[str, Any]) -> Kind:
    for name, allowed in NEUTRAL.items():
        if body.get(name) not in allowed:
            raise _BadRequestError(f"'{name}' is not supported here (but for {allowed[-1]!r})")
    model = body.get("model") or server.model
    adapter = BACKBONE_ONLY if model == server.model else str(model)
    if adapter != BACKBONE_ONLY and adapter not in server.engine.loaded:
        raise UnknownModelError(adapter)
    stop = body.get("stop") or []
    return Kind(
        adapter,
        int(_number(body, "n", 1, 1, 4096)),
        int(_number(body, "max_tokens", 16, 1, server.engine.settings.max_context)),
        _number(body, "temperature", 1.0, 0, 100),
        tuple([stop] if isinstance(stop, str) else stop),
    )


def _number(body: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = default if body.get(key) is None else body[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise _BadRequestError(f"'{key}' must be a number from {low} to {high}, got {value!r}")
    return float(value)


def _prompts(prompt: Any, tokenizer: Any) -> list[list[int]]:
    if isinstance(prompt, str):
        prompt = list(tokenizer.encode(prompt))
    if isinstance(prompt, list) and prompt and all(isinstance(p, str | list) for p in prompt):
        return [found for p in prompt for found in _prompts(p, tokenizer)]
    size = len(tokenizer)
    if not isinstance(prompt, list) or not prompt:
        raise _BadRequestError("'prompt' must be text, token ids, or a list of either")
    if not all(isinstance(i, int) and 0 <= i < size for i in prompt):
        raise _BadRequestError(f"'prompt' holds what is no token id from 0 to {size - 1}")
    return [prompt]


def _seed(body: Mapping[str, Any], number: int | None) -> str:
    """``seed_text`` is our own field: the seed as `Engine.generate` takes it."""
    text = body.get("seed_text")
    if text is None:
        text = time.time_ns() if body.get("seed") is None else body["seed"]
    return f"{text}" if number is None else f"{text}/{number}"


def _choice(
    server: RolloutServer,
    completion: Completion,
    index: int,
    prompt: Sequence[int],
    body: Mapping[str, Any],
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": completion.text,
        "logprobs": None,
        "finish_reason": "stop" if completion.finished else "length",
    }
    if body.get("logprobs") is not None and body.get("logprobs") is not False:
        tokenizer = server.engine.policy.tokenizer
        named = bool(body.get("return_tokens_as_token_ids"))
        tokens = [f"token_id:{i}" if named else tokenizer.decode([i]) for i in completion.token_ids]
        values = [x if math.isfinite(x) else -9999.0 for x in completion.logprobs]
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": values}
    if body.get("return_token_ids"):
        choice |= {"token_ids": completion.token_ids, "prompt_token_ids": list(prompt)}
    return choice


def _answer(
    server: RolloutServer,
    body: Mapping[str, Any],
    kind: str,
    choices: list[dict[str, Any]],
    prompts: Sequence[Sequence[int]],
    found: Sequence[Completion],
) -> dict[str, Any]:
    asked, written = sum(len(p) for p in prompts), sum(len(c.token_ids) for c in found)
    usage = {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
    return {
        "id": f"cahl-{time.time_ns():x}",
        "object": kind,
        "created": int(time.time()),
        "model": body.get("model") or server.model,
        "choices": choices,
        "usage": usage,
    }
