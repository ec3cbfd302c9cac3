"""The client and the pool against `transformers serve`, a server that is not ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rollout_servers import free_port, wait_for
from served_runs import root, train
from small_project import SMALL

from cahl_core.config import ModelSettings
from cahl_core.errors import RolloutServerError
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Engine
from cahl_core.rollouts.client import OpenAIClient, RefusedError
from cahl_core.rollouts.pool import Server, ServerPool, run_all

__all__ = ["root"]
NEEDED = ("openai==3.54.0", "jiter==0.19.0", "sniffio==1.3.1")  # what serving needs beyond ours
TEXTS = [f"number {n}: the quick brown fox" for n in range(24)]


@pytest.fixture(scope="module")
def extras(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory with what `transformers serve` imports and our environment does not hold."""
    from transformers.utils.import_utils import is_serve_available

    if is_serve_available():
        return ""
    folder = tmp_path_factory.mktemp("serving")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run([*command, str(folder), *NEEDED], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{', '.join(NEEDED)} cannot be had: {done.stderr.strip()[-200:]}")
    return str(folder)


class Theirs:
    """`transformers serve` as a process."""

    def __init__(self, backbone: Path, extras: str, work: Path) -> None:
        self.model, self.port, self.log = str(backbone), free_port(), work / "serve.log"
        self.url = f"http://127.0.0.1:{self.port}"
        (work / "hub").mkdir()
        self._environment = {**os.environ, "PYTHONPATH": extras, "HF_HUB_CACHE": str(work / "hub")}
        self.start()

    def start(self, wait: bool = True) -> None:
        script = Path(sys.executable).with_name("transformers")
        command = [str(script), "serve", self.model, "--host", "127.0.0.1", "--device", "cpu"]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port)], stdout=out, stderr=out, env=self._environment
            )
        if wait:
            wait_for(self.url, self._process, self.log)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def theirs(
    extras: str, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Theirs]:
    server = Theirs(tiny_backbone, extras, tmp_path_factory.mktemp("theirs"))
    yield server
    server.kill()


def complete(client: OpenAIClient, model: str, text: str) -> str:
    body = {"model": model, "prompt": text, "max_tokens": 8, "temperature": 0}
    return str(client.completions(body)["choices"][0]["text"])


def test_greedy_texts_are_those_of_our_engine(theirs: Theirs, tiny_backbone: Path) -> None:
    policy = Policy.load(tiny_backbone, None, ModelSettings.model_validate(SMALL["model"]))
    prompts = [policy.tokenizer.encode(text) for text in TEXTS[:6]]
    ours = Engine(policy).generate(prompts, "planner", max_tokens=8)
    client = OpenAIClient(theirs.url)
    found = [complete(client, theirs.model, text) for text in TEXTS[:6]]
    assert found == [samples[0].text for samples in ours]


def test_chat_works_with_the_same_client(theirs: Theirs) -> None:
    client = OpenAIClient(theirs.url + "/v1")
    messages = [{"role": "user", "content": "Hello"}]
    answer = client.chat(theirs.model, messages, max_tokens=5, temperature=0)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 5


def test_what_it_refuses_is_said_in_its_own_words_and_not_repeated(theirs: Theirs) -> None:
    body = {"model": theirs.model, "prompt": [5, 6], "max_tokens": 2}
    with pytest.raises(RefusedError, match="prompt must be a string") as caught:
        OpenAIClient(theirs.url).completions(body)
    assert caught.value.status == 400 and theirs.url in str(caught.value)


def test_killed_in_the_middle_and_started_again_it_loses_no_request(theirs: Theirs) -> None:
    client = OpenAIClient(theirs.url)
    straight = [complete(client, theirs.model, text) for text in TEXTS]
    pool = ServerPool([client], capacity=4, give_up_after=120)
    lock, asked, answered = threading.Lock(), [0], []

    def job(text: str) -> Any:
        def attempt(server: Server) -> str:
            with lock:
                asked[0] += 1
                if asked[0] == 10:
                    theirs.kill()
                    theirs.start(wait=False)
            found = complete(server.client, theirs.model, text)
            with lock:
                answered.append(text)
            return found

        return lambda stop: pool.run(attempt, stop)

    again = run_all([job(text) for text in TEXTS], pool.capacity)
    assert again == straight
    assert sorted(answered) == sorted(TEXTS)  # each exactly once
    assert pool.counts.outages >= 1 and asked[0] > len(TEXTS)


def test_it_cannot_sample_for_training_and_the_error_says_why(root: Path, theirs: Theirs) -> None:
    rollouts = {"servers": [theirs.url], "start_timeout": 5, "model": theirs.model}
    with pytest.raises(RolloutServerError, match="does not load the adapter") as caught:
        train(root, rollouts=rollouts)
    assert theirs.url in str(caught.value) and "--enable-lora" in str(caught.value)
