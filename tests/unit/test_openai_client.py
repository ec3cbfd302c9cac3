"""The client and the pool where the network and servers misbehave, and what is read from answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rollout_servers import free_port, serving
from small_project import SMALL, Tokens

from cahl_core.config import ModelSettings
from cahl_core.errors import RolloutServerError
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Engine
from cahl_core.rollouts.client import OpenAIClient, RefusedError, UnavailableError, with_retries
from cahl_core.rollouts.pool import ServerPool, StoppedError, run_all
from cahl_core.rollouts.wire import Ask, Reader, read_completions, request_body, seed_number

GOOD = {"choices": [{"index": 0, "text": "x"}]}


class Faulty(ThreadingHTTPServer):
    """Answers with what ``script(n)`` does at request n: status, headers and body; ``None`` hangs up."""

    daemon_threads = True

    def __init__(self, script: Callable[[int], Any]) -> None:
        self.script = script
        self.times: list[float] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Faulty
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        with server.lock:
            server.times.append(time.monotonic())
            number = len(server.times) - 1
            server.now += 1
            server.most = max(server.most, server.now)
        answer = server.script(number)
        with server.lock:
            server.now -= 1
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def faulty(script: Callable[[int], Any]) -> Iterator[Faulty]:
    server = Faulty(script)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def good(status: int = 200, value: Any = GOOD, **headers: str) -> Any:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


def pool_of(*urls: str, capacity: int = 4, patience: float = 20, timeout: float = 5) -> ServerPool:
    clients = [OpenAIClient(url, timeout=timeout, connect_timeout=1) for url in urls]
    return ServerPool(clients, capacity=capacity, give_up_after=patience)


def ask_all(pool: ServerPool, count: int, threads: int | None = None) -> list[str]:
    def job(number: int) -> Any:
        return lambda stop: pool.run(
            lambda s: str(s.client.completions({"prompt": str(number)})["choices"][0]["text"]), stop
        )

    return run_all([job(n) for n in range(count)], threads or pool.capacity)


# --- failures -------------------------------------------------------------------------------------


def test_a_refused_request_is_asked_once_and_carries_the_servers_words() -> None:
    with faulty(lambda n: good(400, {"error": {"message": "too many tokens"}})) as server:
        with pytest.raises(RefusedError, match="400: too many tokens") as caught:
            ask_all(pool_of(server.url), 1)
        assert len(server.times) == 1 and server.url in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        None,
        (200, {"Content-Type": "application/json"}, b'{"choices": [tru'),
        (200, {"Content-Type": "application/json", "Content-Length": "4000"}, b'{"choices"'),
        (502, {}, b"bad gateway"),
        (200, {"Content-Type": "application/json"}, b'{"object": "error"}'),
    ],
)
def test_every_way_to_answer_badly_is_asked_again(fault: Any) -> None:
    def script(number: int) -> Any:
        if number % 3 == 1:
            if fault and "Content-Length" in fault[1]:
                # cut off in the middle: the connection ends before the length is reached
                return (200, {**fault[1], "Connection": "close"}, fault[2])
            return fault
        return good()

    with faulty(script) as server:
        pool = pool_of(server.url, capacity=1, timeout=1)
        assert ask_all(pool, 6) == ["x"] * 6
        assert pool.counts.requests == 6 and pool.counts.retries >= 2


def test_a_busy_server_is_left_alone_for_as_long_as_it_asked() -> None:
    busy = {"Retry-After": "0.7"}
    with faulty(lambda n: good(429, {}, **busy) if n == 0 else good()) as server:
        pool = pool_of(server.url)
        assert ask_all(pool, 1) == ["x"]
        assert server.times[1] - server.times[0] >= 0.7
        assert pool.counts.outages == 0


def test_what_takes_too_long_goes_to_another_server() -> None:
    def slow(number: int) -> Any:
        time.sleep(1.0)
        return good(value={"choices": [{"index": 0, "text": "late"}]})

    with faulty(slow) as first, faulty(lambda n: good()) as second:
        pool = pool_of(first.url, second.url, capacity=1, timeout=0.2)
        assert ask_all(pool, 8) == ["x"] * 8
        assert pool.counts.outages >= 1


def test_no_more_requests_are_under_way_than_allowed() -> None:
    def takes_time(number: int) -> Any:
        time.sleep(0.02)
        return good()

    with faulty(takes_time) as server:
        assert ask_all(pool_of(server.url, capacity=3), 30, threads=9) == ["x"] * 30
        assert server.most == 3


def test_nobody_there_is_an_error_that_names_everyone_asked() -> None:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(RolloutServerError, match="connection refused") as caught:
        ask_all(pool_of(*urls, patience=0.5), 1)
    assert all(url in str(caught.value) for url in urls)
    with pytest.raises(RolloutServerError, match=r"no answer after \d+ attempts"):
        with_retries(OpenAIClient(urls[0]).models, give_up_after=0.3)


def test_work_that_nobody_wants_any_more_ends_at_once() -> None:
    stop = threading.Event()
    pool = pool_of(f"http://127.0.0.1:{free_port()}", patience=60)
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    job = lambda ended: pool.run(lambda s: s.client.models(), ended)  # noqa: E731
    with pytest.raises(StoppedError):
        run_all([job, job], 2, stop)
    assert time.monotonic() - started < 5


# --- our own server -------------------------------------------------------------------------------


def test_our_server_answers_with_the_engines_samples(tiny_backbone: Path) -> None:
    model = ModelSettings.model_validate(SMALL["model"])
    policy = Policy.load(tiny_backbone, None, model)
    prompts = [policy.tokenizer.encode(t) for t in ("hello there", "a much longer text than that")]
    options: dict[str, Any] = {"samples": 3, "max_tokens": 12, "temperature": 0.9, "stop": ["e"]}
    expected = Engine(policy).generate(prompts, "any", seeds=["s/0", "s/1"], **options)
    reader = Reader(policy.tokenizer, {2}, version=7)
    with serving(tiny_backbone, SMALL["model"]) as server:
        client = OpenAIClient(server.url)
        for number, prompt in enumerate(prompts):
            ask = Ask(prompt, 3, 12, 0.9, f"s/{number}", ("e",))
            answer = client.completions(request_body(ask, "tiny", {2}, ours=True))
            found = read_completions(answer, ask, reader, server.url)
            for ours, theirs in zip(expected[number], found, strict=True):
                assert (ours.token_ids, ours.text, ours.finished) == (
                    theirs.token_ids,
                    theirs.text,
                    theirs.finished,
                )
                assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-5)
                assert theirs.version == 7 and not theirs.void


def test_a_full_server_turns_away_and_nothing_is_lost(tiny_backbone: Path) -> None:
    with serving(tiny_backbone, SMALL["model"], most_waiting=2) as server:
        pool = pool_of(server.url, capacity=6, timeout=30)

        def job(number: int) -> Any:
            body = {"prompt": f"text {number}", "max_tokens": 3, "seed": number}
            return lambda stop: pool.run(lambda s: s.client.completions(body), stop)

        answers = run_all([job(n) for n in range(24)], pool.capacity)
        assert len(answers) == 24
        assert server.engine.counts["prompts"] == 24
        assert server.engine.counts["most_waiting"] == 2
        assert server.engine.counts["turned_away"] >= 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": [1], "model": "nobody"}, 404, "does not exist"),
        ({"prompt": [999]}, 400, "no token id"),
        ({"prompt": [1], "top_p": 0.5}, 400, "'top_p' is not supported"),
        ({"prompt": [1], "stream": True}, 400, "'stream' is not supported"),
        ({"prompt": [1], "n": 0}, 400, "'n' must be a number"),
        ({"prompt": [1] * 1499, "max_tokens": 9}, 400, "exceeds model.max_context=1500"),
        ({"prompt": []}, 400, "'prompt' must be"),
    ],
)
def test_our_server_says_what_is_wrong(
    one: OpenAIClient, body: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        one.completions(body)
    assert caught.value.status == status


@pytest.fixture(scope="module")
def one(tiny_backbone: Path) -> Iterator[OpenAIClient]:
    with serving(tiny_backbone, SMALL["model"], api_key="secret") as server:
        yield OpenAIClient(server.url, api_key="secret")


def test_our_server_chats_and_keeps_strangers_out(one: OpenAIClient) -> None:
    answer = one.chat("tiny", [{"role": "user", "content": "hi"}], max_tokens=4, n=2, seed=1)
    assert [c["message"]["role"] for c in answer["choices"]] == ["assistant"] * 2
    with pytest.raises(RefusedError, match="401") as caught:
        OpenAIClient(one.url, api_key="guessed").models()
    assert "api_key_variable" in str(caught.value)


# --- reading answers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: Path) -> Any:
    return Tokens(tiny_backbone).tokenizer


def read(tokenizer: Any, choice: dict[str, Any], **options: Any) -> Any:
    ask = Ask([5, 6], 1, 8, 1.0, "s", ())
    reader = Reader(tokenizer, {2}, **options)
    whole = {"index": 0, "text": "hi", "finish_reason": "stop", **choice}
    return read_completions({"choices": [whole]}, ask, reader, "http://there")[0]


def test_token_ids_are_the_truth_whatever_the_text_says(tokenizer: Any) -> None:
    ids = [*tokenizer.encode("hi"), 2]
    logprobs = {"token_logprobs": [-1.0, -2.0, -0.5], "tokens": ["h", "i", ""]}
    found = read(tokenizer, {"token_ids": ids, "text": "other", "logprobs": logprobs})
    assert (found.token_ids, found.text, found.finished) == (ids, "hi", True)
    named = {**logprobs, "tokens": [f"token_id:{i}" for i in ids]}
    assert read(tokenizer, {"text": "other", "logprobs": named}).token_ids == ids


def test_text_alone_is_refused_unless_it_may_be_tokenised_back(tokenizer: Any) -> None:
    choice = {"logprobs": {"token_logprobs": [-1.0, -2.0, -0.5]}}
    with pytest.raises(RolloutServerError, match="returns no token ids"):
        read(tokenizer, choice)
    found = read(tokenizer, choice, retokenise=True)
    assert found.token_ids == [*tokenizer.encode("hi"), 2] and not found.void


@pytest.mark.parametrize(
    "choice",
    [
        {"logprobs": {"token_logprobs": [-1.0]}},  # "hi" as one token: not ours
        {"logprobs": {"token_logprobs": [-1.0, -2.0], "tokens": ["", "hi"]}, "finish_reason": "length"},
        {"text": "\ufffd", "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"},
    ],
)  # fmt: skip
def test_what_does_not_tokenise_back_exactly_is_void(tokenizer: Any, choice: Any) -> None:
    found = read(tokenizer, choice, retokenise=True)
    assert found.void and found.token_ids == []


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        ({"token_ids": [5]}, RolloutServerError, "no log-probabilities"),
        ({"token_ids": [5], "logprobs": {"token_logprobs": [None]}}, RolloutServerError, "no log-"),
        ({"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}}, RolloutServerError, "1 log-"),
        ({"token_ids": [999], "logprobs": {"token_logprobs": [-1.0]}}, RolloutServerError, "token 999"),
        ({"prompt_token_ids": [1, 5, 6]}, RolloutServerError, "changed a prompt"),
        ({"finish_reason": "abort"}, UnavailableError, "finish_reason 'abort'"),
        ({"index": 3}, UnavailableError, "asked for 1 samples"),
    ],
)  # fmt: skip
def test_an_answer_that_training_cannot_use_is_an_error(
    tokenizer: Any, choice: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        read(tokenizer, choice, vocabulary=259)


def test_a_request_leaves_nothing_to_a_servers_defaults() -> None:
    body = request_body(Ask([1, 2], 4, 8, 0.7, "s/1", ("</plan>",)), "m", {2}, ours=False)
    assert body["prompt"] == [1, 2] and body["n"] == 4 and body["stop_token_ids"] == [2]
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 0, 0, 1)
    assert body["include_stop_str_in_output"] and body["return_token_ids"]
    assert 0 <= body["seed"] == seed_number("s/1") < 2**62
    assert "seed_text" not in body
