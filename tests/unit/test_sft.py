"""Supervised warm start in every form, and with one adapter for both roles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_project import SMALL, file_sums, make_project, small_settings, small_task

from cahl_core.config import Settings, validate
from cahl_core.datasets.targets import flat_target
from cahl_core.errors import ModelError, TrainingError
from cahl_core.policy.backbone import Policy
from cahl_core.protocol.parsing import parse_execution, parse_plan, parse_single
from cahl_core.protocol.texts import execution_text
from cahl_core.records import Plan, SubTask, ToolCall
from cahl_core.roles import ROLES
from cahl_core.stage import StageRun
from cahl_core.training import sft
from cahl_core.training.distributed import Workers
from cahl_core.training.examples import Drawn, examples, rows_of, target_ids
from cahl_core.training.trainee import Trainee


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path) -> Path:
    return make_project(tmp_path, tiny_backbone)


def _settings(form: str = "hierarchical", weights: str = "two_adapters", **own: Any) -> Settings:
    arm = "joint" if form == "hierarchical" else form
    model = {**SMALL["model"], "form": form, "weights": weights}
    train = {**SMALL["train"], "arm": arm}
    return validate({**SMALL, "model": model, "train": train, "sft": {**SMALL["sft"], **own}})


def _policy(root: Path, settings: Settings) -> Policy:
    policy = Policy.load(root / "data/backbone", None, settings.model)
    policy.new_adapter("executor", 0)
    return policy


def _run(root: Path, settings: Settings) -> dict[str, float]:
    sft.run(StageRun("sft", root, settings))
    metrics: dict[str, float] = json.loads((root / "metrics/sft.json").read_text())
    return metrics


def test_sft_learns_both_roles_and_is_repeatable(root: Path) -> None:
    settings = _settings(steps=30, learning_rate=0.01)
    metrics = _run(root, settings)
    first = file_sums(root / "models/sft"), (root / "metrics/sft.json").read_bytes()
    for role in ROLES:
        assert metrics[f"{role}_last_loss"] < 0.8 * metrics[f"{role}_first_loss"]
    _run(root, settings)
    assert (file_sums(root / "models/sft"), (root / "metrics/sft.json").read_bytes()) == first


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_a_flat_form_trains_one_adapter_and_says_nothing_of_a_planner(
    root: Path, form: str
) -> None:
    metrics = _run(root, _settings(form, steps=20, learning_rate=0.01))
    assert [p.name for p in (root / "models/sft").iterdir()] == ["executor"]
    assert metrics["executor_steps"] == 20
    assert metrics["executor_last_loss"] < 0.8 * metrics["executor_first_loss"]
    assert not any(key.startswith("planner") for key in metrics)
    header, first, *_ = (root / "plots/sft_loss.csv").read_text().splitlines()
    assert header == "step,planner_loss,executor_loss"
    assert first.startswith("0,,")


def test_a_shared_adapter_learns_both_roles_and_is_saved_for_each(root: Path) -> None:
    settings = _settings(weights="shared_adapter", steps=24, learning_rate=0.01)
    metrics = _run(root, settings)
    sums = file_sums(root / "models/sft")
    planner = {k.partition("/")[2]: v for k, v in sums.items() if k.startswith("planner/")}
    executor = {k.partition("/")[2]: v for k, v in sums.items() if k.startswith("executor/")}
    assert planner == executor
    assert "adapter_model.safetensors" in planner
    for role in ROLES:
        assert metrics[f"{role}_last_loss"] < 0.8 * metrics[f"{role}_first_loss"]
    assert metrics["planner_steps"] + metrics["executor_steps"] == 24


@pytest.mark.parametrize("weights", ["two_adapters", "shared_adapter"])
def test_interrupted_sft_resumes_to_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    settings = _settings(weights=weights)
    straight_metrics = _run(root, settings)
    straight = file_sums(root / "models/sft")
    shutil.rmtree(root / "models")
    real, calls = Trainee.step, []

    def dies(self: Trainee, scale: float) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, scale)

    monkeypatch.setattr(Trainee, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        _run(root, settings)
    assert not (root / "models/sft").exists()
    monkeypatch.setattr(Trainee, "step", real)
    assert _run(root, settings) == straight_metrics
    assert file_sums(root / "models/sft") == straight


def test_steps_are_shared_out_and_evenly_mixed() -> None:
    settings = _settings(steps=50, weights="shared_adapter").sft
    steps = sft.role_steps(settings)
    turns = sft.interleaved(steps)
    assert {role: turns.count(role) for role in ROLES} == steps == {"planner": 30, "executor": 20}
    for k in range(len(turns)):  # no role is ever more than a step from its share
        assert abs(turns[:k].count("planner") - 0.6 * k) <= 1
    assert sft.role_steps(settings, ("executor",)) == {"executor": 50}


def test_executor_examples_hold_earlier_results_and_the_resolved_call(root: Path) -> None:
    settings = _settings()
    tokenizer = _policy(root, settings).tokenizer
    first, second = examples(tokenizer, small_task(4), "executor", settings)
    assert "Result 1" not in tokenizer.decode(first.prompt)
    assert 'Result 1 (find): {"id": 4}' in tokenizer.decode(second.prompt)
    target = execution_text([ToolCall("book", {"id": 4})])
    assert tokenizer.decode(second.target[:-1]) == target
    assert second.target[-1] == tokenizer.eos_token_id


def test_flat_examples_hold_the_request_and_all_calls_with_their_references(root: Path) -> None:
    task = small_task(4)
    assert task.plan is not None
    for form in ("low_only", "single_level"):
        settings = _settings(form)
        tokenizer = _policy(root, settings).tokenizer
        (example,) = examples(tokenizer, task, "executor", settings)
        assert task.messages[0].content in tokenizer.decode(example.prompt)
        text = tokenizer.decode(example.target[:-1])
        if form == "low_only":
            execution = parse_execution(text)
        else:
            single = parse_single(text)
            assert single.plan == task.plan  # type: ignore[union-attr]
            execution = single.execution  # type: ignore[union-attr]
        assert execution.calls == task.calls  # type: ignore[union-attr]
        assert execution.calls[1].arguments == {"id": "$var1.id$"}  # type: ignore[union-attr]


def test_flat_targets_are_the_gold_calls_where_the_plan_says_less() -> None:
    task = small_task(1)
    vague = Plan(tuple(SubTask(c.name, c.name, {}) for c in task.calls))
    assert flat_target(replace(task, plan=vague)) == (task.calls, None)


def test_flat_targets_without_calls_are_words() -> None:
    task = replace(small_task(1), steps=(), plan=Plan((SubTask("Say it", None),)))
    answered = replace(task, meta={"answer": " 42 "})
    assert flat_target(answered) == ((), "42")
    calls, words = flat_target(replace(task, plan=Plan(()), meta={}))
    assert calls == ()
    assert words


def test_special_tokens_in_gold_values_are_not_special_in_targets(root: Path) -> None:
    settings = _settings()
    tokenizer = _policy(root, settings).tokenizer
    evil = {"city": "a<|im_end|>b</plan>"}
    plan = Plan((SubTask("x<|im_start|>", "find", evil),))
    task = replace(small_task(1), plan=plan, steps=((ToolCall("find", evil),),), meta={})
    (planned,) = examples(tokenizer, task, "planner", settings)
    (made,) = examples(tokenizer, task, "executor", settings)
    for example in (planned, made):
        assert [i for i in example.target if i in (0, 1, 2)] == [tokenizer.eos_token_id]
    assert parse_plan(tokenizer.decode(planned.target[:-1])) == plan
    assert parse_execution(tokenizer.decode(made.target[:-1])).calls == task.calls  # type: ignore[union-attr]


def test_a_batch_has_the_same_gradient_however_it_is_packed(root: Path) -> None:
    gradients = []
    for row_tokens in (300, 5000):
        settings = _settings(row_tokens=row_tokens)
        policy = _policy(root, settings)
        torch.manual_seed(0)
        for parameter in policy.parameters("executor"):
            torch.nn.init.normal_(parameter, std=0.1)
        policy.activate("executor")
        groups = (examples(policy.tokenizer, small_task(n), "executor", settings) for n in range(4))
        rows = list(rows_of(groups, row_tokens, 1500))
        sft._step(policy, rows, Workers())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters("executor")]))  # type: ignore[union-attr]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["hierarchical", "low_only", "single_level"])
def test_what_does_not_fit_is_counted_and_said(
    root: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "data/prepared/train.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[2]["messages"][0]["content"] = "x" * 3000
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    role = "planner" if form == "hierarchical" else "executor"
    metrics = _run(root, _settings(form, steps=12))
    left_out = metrics[f"{role}_left_out"]
    assert left_out >= 1
    shown = capsys.readouterr()
    said = f"SFT {role}: {left_out:.0f} of"
    assert said in shown.out + shown.err


def test_counting_and_leaving_out_agree(root: Path) -> None:
    settings = _settings("low_only")
    tokenizer = _policy(root, settings).tokenizer
    groups = [examples(tokenizer, small_task(n), "executor", settings) for n in range(4)]
    sizes = [len(e.prompt) + len(e.target) for g in groups for e in g]
    drawn = Drawn()
    rows = list(rows_of(iter(groups), 900, min(sizes), drawn))
    assert (drawn.examples, drawn.left_out) == (4, sum(s > min(sizes) for s in sizes))
    assert sum(len(row.indices) for row, _ in rows) == drawn.examples - drawn.left_out


def test_where_nothing_fits_training_stops_and_says_so(root: Path) -> None:
    settings = validate({**SMALL, "model": {**SMALL["model"], "max_context": 100}})
    with pytest.raises(TrainingError, match=r"no example of 6 tasks fits model\.max_context=100"):
        _run(root, settings)


def test_a_tokenizer_without_an_end_of_turn_is_an_error(root: Path) -> None:
    tokenizer = _policy(root, small_settings()).tokenizer
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        target_ids(tokenizer, "x")
