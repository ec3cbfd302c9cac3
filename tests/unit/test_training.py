"""SFT, rollouts, updates and resume on a tiny random backbone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cahl_core.config import Settings, validate
from cahl_core.files import dump_json, sha256
from cahl_core.policy.backbone import ROLES, Policy
from cahl_core.policy.engine import Engine
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask
from cahl_core.training.distributed import Workers
from cahl_core.training.trainee import Trainee
from cahl_core.training.tree import Sample
from cahl_core.training.update import update_role

SMALL = {
    "model": {"backbone": "tiny", "dtype": "float32", "max_context": 1500, "lora": {"rank": 4, "alpha": 8}},
    "sft": {"steps": 6, "tokens_per_step": 900, "row_tokens": 900, "checkpoint_every": 2},
    "train": {
        "steps": 3,
        "tasks_per_step": 2,
        "plans_per_task": 3,
        "executions_per_plan": 2,
        "row_tokens": 900,
        "checkpoint_every": 1,
        "planner": {"max_tokens": 24},
        "executor": {"max_tokens": 16},
    },
}  # fmt: skip
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ID = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
FIND, BOOK = ToolSpec("find", "Finds a hotel.", CITY), ToolSpec("book", "Books it.", ID)


def _task(number: int) -> ToolTask:
    city = ["Rome", "Oslo", "Lima"][number % 3]
    calls = (ToolCall("find", {"city": city}), ToolCall("book", {"id": "$var1.id$"}))
    plan = Plan(tuple(SubTask(c.name, c.name, c.arguments) for c in calls))
    meta = {"results": [{"id": number}, None], "resolved": [{"city": city}, {"id": number}]}
    message = Message("user", f"Book a hotel in {city}, number {number}.")
    steps = tuple((c,) for c in calls)
    return ToolTask(f"t{number}", "toy", (message,), (FIND, BOOK), steps, plan, meta)


def _settings(**train: Any) -> Settings:
    return validate({**SMALL, "train": {**SMALL["train"], **train}})


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path) -> Path:
    shutil.copytree(tiny_backbone, tmp_path / "data/backbone")
    (tmp_path / "data/prepared").mkdir()
    for name, numbers in (("train", range(6)), ("dev", range(6, 8))):
        lines = (dump_json(_task(n).to_json()) + "\n" for n in numbers)
        (tmp_path / f"data/prepared/{name}.jsonl").write_text("".join(lines))
    return tmp_path


def _sums(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*.*"))}


def _policy(root: Path, settings: Settings) -> Policy:
    policy = Policy.load(root / "data/backbone", None, settings.model)
    for seed, role in enumerate(ROLES):
        policy.new_adapter(role, seed)
        policy.new_adapter(role + "_ref", seed)
        torch.manual_seed(seed)
        for mine, frozen in zip(
            policy.parameters(role), policy.parameters(role + "_ref"), strict=True
        ):
            torch.nn.init.normal_(mine, std=0.1)
            frozen.data.copy_(mine.data + 0.01)
    return policy


# --- updates -------------------------------------------------------------------------------------


def _samples(policy: Policy, count: int = 6) -> list[Sample]:
    prompts = [[*range(10, 22), 30 + i // 3] for i in range(count)]
    done = Engine(policy).generate(prompts, "planner", max_tokens=9, temperature=1.0)
    return [
        Sample(p, c, advantage=(-1.0) ** i * (i + 1), in_signal_group=True)
        for i, (p, [c]) in enumerate(zip(prompts, done, strict=True))
    ]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_one_large_batch_updates_like_many_small_ones(root: Path, loss_type: str) -> None:
    results = []
    for row_tokens in (24, 4000):
        settings = _settings(row_tokens=row_tokens, loss_type=loss_type)
        policy = _policy(root, settings)
        samples = _samples(policy)
        trainee = Trainee(policy, "planner", 0.01, 1.0)
        report = update_role("planner", samples, trainee, settings, 1.0, Workers())
        results.append((report.loss, report.grad_norm, report.kl))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_the_first_epoch_has_ratio_one_and_the_sampler_agrees(root: Path) -> None:
    settings = _settings(
        planner={"kl_weight": 0.0, "clip_low": 0.0, "clip_high": 0.0, "max_tokens": 24}
    )
    policy = _policy(root, settings)
    samples = _samples(policy)
    report = update_role(
        "planner", samples, Trainee(policy, "planner", 0.0, 1.0), settings, 1.0, Workers()
    )
    assert report.clipped == 0
    assert report.largest_gap < 1e-4
    # at ratio 1 the loss is minus the mean advantage over completions
    mean = sum(s.advantage for s in samples) / len(samples)
    assert report.loss == pytest.approx(-mean, rel=1e-5)


def test_an_update_raises_what_was_good_and_touches_nothing_else(root: Path) -> None:
    settings = _settings()
    policy = _policy(root, settings)
    samples = _samples(policy)
    frozen = {k: v.clone() for k, v in policy.model.named_parameters() if ".planner." not in k}
    trainee = Trainee(policy, "planner", 1e-3, 1.0)
    update_role("planner", samples, trainee, settings, 1.0, Workers())
    from cahl_core.policy.logprobs import sequence_logprobs

    prompts = [s.prompt for s in samples]
    tokens = [s.completion.token_ids for s in samples]
    with policy.using("planner"):
        new = sequence_logprobs(policy, prompts, tokens, budget=500)
    gained = [
        float(n.mean()) - sum(s.completion.logprobs) / len(n)
        for n, s in zip(new, samples, strict=True)
    ]
    best, worst = samples[4], samples[5]
    assert gained[samples.index(best)] > gained[samples.index(worst)]
    for key, value in policy.model.named_parameters():
        if key in frozen:
            assert torch.equal(value, frozen[key]), key


def test_a_non_finite_gradient_leaves_the_adapter_alone(root: Path) -> None:
    policy = _policy(root, _settings())
    trainee = Trainee(policy, "planner", 0.1, 1.0)
    before = trainee.parameters[0].detach().clone()
    for parameter in trainee.parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    assert trainee.step(1.0) != trainee.step(1.0)  # NaN
    assert torch.equal(trainee.parameters[0], before)
