"""Later turns encode only what is new, and say what they would have said anyway."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Completion, Engine
from tests.parity.architectures import ARCHITECTURES, make_architecture

SETTINGS = ModelSettings(dtype="float32", max_context=512, lora=LoraSettings(rank=4, alpha=8))


def _policy(folder: Path, name: str) -> Policy:
    make_architecture(folder, name)
    policy = Policy.load(folder, None, SETTINGS)
    for seed, adapter in enumerate(("planner", "executor")):
        policy.new_adapter(adapter, seed)
        torch.manual_seed(seed)
        for parameter in policy.parameters(adapter):
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return _policy(tmp_path_factory.mktemp("llama"), "llama")


def _draw(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 259) for _ in range(count)]


def _turns() -> list[list[list[int]]]:
    """Three turns of three conversations over two tool lists; each repeats what came before."""
    tools = [_draw(0, 40), _draw(1, 25)]
    turns = [[tools[0] + _draw(2, 5), tools[0] + _draw(3, 9), tools[1] + _draw(4, 3)]]
    for turn in (1, 2):
        turns.append([p[:-2] + _draw(10 * turn + i, 6 + i) for i, p in enumerate(turns[-1])])
    return turns


def _say(engine: Engine, prompts: list[list[int]], role: str, keep: bool) -> list[Completion]:
    done = engine.generate(
        prompts, role, samples=2, max_tokens=8, temperature=1.0, seeds=list("abc"), keep=keep
    )
    return [c for completions in done for c in completions]


def _nodes(prompts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_turns_say_the_same_with_and_without_what_was_kept(
    tmp_path: Path, architecture: str
) -> None:
    policy = _policy(tmp_path, architecture)
    keeping = Engine(policy, row_tokens=90)
    for prompts in _turns():
        kept = _say(keeping, prompts, "planner", keep=True)
        anew = _say(Engine(policy), prompts, "planner", keep=False)
        assert [c.token_ids for c in kept] == [c.token_ids for c in anew]
        for one, other in zip(kept, anew, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def test_a_turn_encodes_only_what_no_earlier_one_did(llama: Policy) -> None:
    engine, seen = Engine(llama), set[tuple[int, ...]]()
    for prompts in _turns():
        before = engine.prefilled_tokens
        _say(engine, prompts, "planner", keep=True)
        assert engine.prefilled_tokens - before == len(_nodes(prompts) - seen)
        seen |= _nodes(prompts)


def test_asking_again_encodes_the_last_token_only(llama: Policy) -> None:
    engine, prompts = Engine(llama), _turns()[0]
    first = _say(engine, prompts, "planner", keep=True)
    before = engine.prefilled_tokens
    again = _say(engine, prompts, "planner", keep=True)
    assert engine.prefilled_tokens - before == len(prompts)
    assert [c.token_ids for c in again] == [c.token_ids for c in first]


def test_what_is_kept_belongs_to_one_adapter_and_its_present_weights(tmp_path: Path) -> None:
    policy, prompts = _policy(tmp_path, "llama"), _turns()[0]
    engine = Engine(policy)
    _say(engine, prompts, "planner", keep=True)
    other = _say(engine, prompts, "executor", keep=True)
    expected = _say(Engine(policy), prompts, "executor", keep=False)
    assert [c.token_ids for c in other] == [c.token_ids for c in expected]
    for parameter in policy.parameters("planner"):
        torch.nn.init.normal_(parameter, std=0.3)
    engine.weights_changed()
    changed = _say(engine, prompts, "planner", keep=True)
    expected = _say(Engine(policy), prompts, "planner", keep=False)
    assert [c.token_ids for c in changed] == [c.token_ids for c in expected]


def test_the_oldest_rows_are_given_up_first(llama: Policy) -> None:
    engine = Engine(llama, keep_tokens=60)
    for seed in (0, 1, 2):
        engine.generate([_draw(seed, 50)], "planner", max_tokens=1, keep=True)
    before = engine.prefilled_tokens
    engine.generate([[*_draw(2, 50), 7]], "planner", max_tokens=1, keep=True)
    assert engine.prefilled_tokens - before == 1
    engine.generate([[*_draw(0, 50), 7]], "planner", max_tokens=1, keep=True)
    assert engine.prefilled_tokens - before == 1 + 51
