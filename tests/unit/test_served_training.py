"""Training over rollout servers: the same run as with the engine of this process, whatever breaks."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_servers import ServerProcess, free_port, serving
from served_runs import adapters, paid, root, same_bytes, served, server, train
from small_project import SMALL, small_settings

from cahl_core.errors import ConfigError, RolloutServerError
from cahl_core.policy.logprobs import sequence_logprobs
from cahl_core.rollouts.client import OpenAIClient
from cahl_core.rollouts.fleet import Fleet
from cahl_core.rollouts.pool import ServerPool
from tests.conftest import make_model, make_tokenizer

__all__ = ["paid", "root", "server"]
SAMPLED = (
    "planner_reward", "executor_reward", "plan_tokens", "executor_tokens", "sampled_tokens",
)  # fmt: skip


@pytest.mark.parametrize("history", ["teacher_forced", "free_running"])
def test_a_run_over_a_server_is_the_run_of_this_process(
    root: Path, server: ServerProcess, paid: None, history: str
) -> None:
    local = train(root, history=history)
    before = adapters(root)
    there = train(root, history=history, rollouts=served(server))
    for name in SAMPLED:
        assert [row[name] for row in there] == [row[name] for row in local], name
    for key, tensor in adapters(root).items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-3, atol=1e-5)
    assert [row["rollouts/staleness_max"] for row in there] == [0.0] * 3
    assert max(row["planner/logprob_gap_max"] for row in there) < 1e-3
    assert server.stats()["adapters"] == {}
    assert not list((root / ".cahl/train").rglob("published.json"))


# --- what may break ------------------------------------------------------------------------------


def test_a_server_killed_and_started_again_loses_and_doubles_nothing(
    root: Path, server: ServerProcess, paid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(root, rollouts=served(server))
    before = adapters(root)
    real, lock, calls = OpenAIClient.completions, threading.Lock(), 0

    def kills(self: OpenAIClient, body: Any) -> dict[str, Any]:
        nonlocal calls
        with lock:
            calls += 1
            if calls == 20:  # others are under way
                server.kill()
                server.start(wait=False)
        return real(self, body)

    monkeypatch.setattr(OpenAIClient, "completions", kills)
    again = train(root, rollouts=served(server))
    assert calls > 20
    assert sum(row["rollouts/outages"] for row in again) >= 1
    for name in SAMPLED:
        assert [row[name] for row in again] == [row[name] for row in straight], name
    assert same_bytes(adapters(root), before)


def test_one_server_of_two_may_stay_away(
    root: Path, server: ServerProcess, paid: None, tiny_backbone: Path
) -> None:
    straight = train(root, rollouts=served(server))
    before = adapters(root)
    with serving(tiny_backbone, SMALL["model"], batch=1) as second:
        stops = [3]

        def leaves(*_: Any, **__: Any) -> Any:
            stops[0] -= 1
            if stops[0] < 0:
                raise ConnectionAbortedError("the machine is gone")
            return real(*_, **__)

        real, second.engine.complete = second.engine.complete, leaves
        both = train(root, rollouts=served(server, servers=[second.url, server.url]))
        assert second.engine.counts["prompts"] == 3
    assert [r["executor_reward"] for r in both] == [r["executor_reward"] for r in straight]
    for key, tensor in adapters(root).items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-3, atol=1e-5)


def test_a_server_that_nobody_started_is_named_with_what_to_do(root: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RolloutServerError) as caught:
        train(root, rollouts={"servers": [url], "start_timeout": 0.5})
    text = str(caught.value)
    assert url in text and "connection refused" in text and "attempts" in text
    assert "cahl serve-rollouts" in text and "vllm serve" in text
    assert caught.value.exit_code == 11


def test_training_ends_where_all_servers_stay_away(
    root: Path, tiny_backbone: Path, paid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        gone = stack.enter_context(serving(tiny_backbone, SMALL["model"]))
        real = OpenAIClient.completions

        def unplugged(self: OpenAIClient, body: Any) -> dict[str, Any]:
            if body["n"] == 3:  # plans: the comparison at the start is over
                stack.close()
                self._own = threading.local()
            return real(self, body)

        monkeypatch.setattr(OpenAIClient, "completions", unplugged)
        with pytest.raises(RolloutServerError, match="no rollout server has answered") as caught:
            train(root, evaluate_tasks=0, rollouts={"servers": [gone.url], "give_up_after": 1.0})
    assert "connection refused" in str(caught.value) and gone.url in str(caught.value)


def test_a_request_that_breaks_the_server_again_and_again_ends_the_run_with_its_words(
    root: Path, tiny_backbone: Path, paid: None
) -> None:
    with serving(tiny_backbone, SMALL["model"]) as server:
        real = server.engine.complete

        def breaks(prompt: Any, seed: str, kind: Any) -> Any:
            if kind.samples == 3:
                raise RuntimeError("CUDA out of memory")
            return real(prompt, seed, kind)

        server.engine.complete = breaks
        with pytest.raises(RolloutServerError, match=r"failed 5 times.*CUDA out of memory"):
            train(root, evaluate_tasks=0, rollouts={"servers": [server.url]})


def test_another_backbone_is_refused_before_anything_is_sampled(
    root: Path, tmp_path: Path, paid: None
) -> None:
    other = tmp_path / "other"
    make_tokenizer(other)
    make_model(other, seed=5)
    with serving(other, SMALL["model"]) as server:
        with pytest.raises(RolloutServerError, match="was trained on other weights"):
            train(root, rollouts={"servers": [server.url]})
    trusting = {**SMALL["model"], "check_adapters": False}  # as a server that is not ours
    with serving(other, trusting) as server:
        with pytest.raises(RolloutServerError, match="does not sample from our weights"):
            train(root, rollouts={"servers": [server.url]})


def test_an_adapter_of_another_shape_is_refused_with_the_servers_words(
    root: Path, tmp_path: Path, paid: None
) -> None:
    other = tmp_path / "qwen"
    make_tokenizer(other)
    make_model(other, architecture="gpt_neox")
    model = {**SMALL["model"], "lora": {"rank": 4, "alpha": 8, "targets": ["query_key_value"]}}
    with serving(other, model) as server:
        with pytest.raises(RolloutServerError, match="does not load the adapter in") as caught:
            train(root, rollouts={"servers": [server.url]})
    assert server.url in str(caught.value)


def test_raw_log_probabilities_are_noticed_however_close(
    root: Path, tiny_backbone: Path, paid: None
) -> None:
    """What a server without processed log-probabilities reports: those at temperature 1."""
    with serving(tiny_backbone, SMALL["model"]) as server:
        real, policy = server.engine.complete, server.engine.policy

        def raw(prompt: Any, seed: str, kind: Any) -> Any:
            found = real(prompt, seed, kind)
            ids = [c.token_ids for c in found]
            with policy.using(kind.adapter):
                scored = sequence_logprobs(policy, [prompt] * len(found), ids, budget=900)
            pairs = zip(found, scored, strict=True)
            return [replace(c, logprobs=values.tolist()) for c, values in pairs]

        server.engine.complete = raw
        planner = {"max_tokens": 24, "temperature": 0.9}
        rollouts = {"servers": [server.url], "max_gap": 50}
        with pytest.raises(RolloutServerError, match="unscaled logits") as caught:
            train(root, planner=planner, rollouts=rollouts)
        assert "--logprobs-mode processed_logprobs" in str(caught.value)
        server.engine.complete = real
        train(root, planner=planner, rollouts=rollouts)


def test_a_server_that_comes_back_with_another_backbone_ends_the_run(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make_tokenizer(other)
    make_model(other, seed=5)
    with serving(tiny_backbone, SMALL["model"]) as first:
        port = first.server_port
        settings = small_settings(rollouts={"servers": [first.url], "start_timeout": 2})
        pool = ServerPool([OpenAIClient(first.url)], capacity=1, give_up_after=5)
        fleet = Fleet(pool, settings)
        fleet.connect()
    with serving(other, SMALL["model"], port=port):
        pool.servers[0].client = OpenAIClient(
            first.url
        )  # the process is the same: a new connection
        with pytest.raises(RolloutServerError, match="came back with another backbone"):
            fleet.connect()


def test_two_whole_models_cannot_be_served(root: Path, server: ServerProcess) -> None:
    with pytest.raises(ConfigError, match="two_models has none"):
        train(root, model={"weights": "two_models"}, rollouts=served(server))


def test_the_engine_of_this_process_cannot_sample_ahead() -> None:
    with pytest.raises(ConfigError, match=r"asynchronous=true needs train\.rollouts\.servers"):
        small_settings(rollouts={"asynchronous": True})
