"""The loop: every arm, every kind of weights, and a run that was stopped goes on as if it was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_project import (
    file_sums,
    make_project,
    pay_for_even_tokens,
    random_start,
    small_settings,
)

from cahl_core.config import Settings
from cahl_core.errors import ConfigError, TrainingError
from cahl_core.signals import held_signals
from cahl_core.stage import StageRun
from cahl_core.training import joint
from cahl_core.training.places import Places
from cahl_core.training.trainer import Trainer


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path) -> Path:
    make_project(tmp_path, tiny_backbone)
    random_start(tmp_path, small_settings())
    return tmp_path


STATEFUL: dict[str, Any] = {
    "steps": 4,
    "curriculum": {"kind": "capability", "max_wait": 1},
    "max_refills": 1,
    "planner": {"max_tokens": 24, "dynamic_sampling": True, "schedule": "cosine"},
    "evaluate_every": 2,
}


def _train(root: Path, settings: Settings, **options: Any) -> dict[str, Any]:
    rows = joint.train(StageRun("train", root, settings), Places.of_project(root), **options)
    written = {
        name: (root / name).read_text() for name in ("plots/train.csv", "metrics/train.json")
    }
    return {"rows": rows, "sums": file_sums(root / "models/cahl"), **written}


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(first[k] == second[k] for k in first if k != "rows")


def _adapter(folder: Path, role: str) -> dict[str, torch.Tensor]:
    return load_file(folder / role / "adapter_model.safetensors")


def _changed(root: Path, role: str) -> bool:
    before, after = (_adapter(root / m, role) for m in ("models/sft", "models/cahl"))
    return any(not torch.equal(before[k], after[k]) for k in before)


# --- arms and weights ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "changed"),
    [
        ("joint", {"planner", "executor"}),
        ("broadcast", {"planner", "executor"}),
        ("shuffled_credit", {"planner", "executor"}),
        ("freeze_low", {"planner"}),
        ("freeze_high", {"executor"}),
        ("alternate_k", {"planner", "executor"}),
    ],
)
def test_a_frozen_roles_adapter_is_bit_identical_after_training(
    root: Path, arm: str, changed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    _train(root, small_settings(arm=arm, alternate_every=1))
    assert {role for role in ("planner", "executor") if _changed(root, role)} == changed


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_a_flat_form_trains_its_one_adapter(
    root: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    settings = small_settings(model={"form": form}, arm=form, executor={"max_tokens": 16})
    result = _train(root, settings)
    assert _changed(root, "executor")
    assert not (root / "models/cahl/planner").exists()
    assert all(row["executor_tokens"] > 0 and row["plan_tokens"] == 0 for row in result["rows"])


def test_a_shared_adapter_learns_both_roles_and_is_saved_for_both(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    shutil.rmtree(root / "models/sft/executor")
    shutil.copytree(root / "models/sft/planner", root / "models/sft/executor")
    _train(root, small_settings(model={"weights": "shared_adapter"}))
    assert _changed(root, "planner")
    sums = file_sums(root / "models/cahl/planner")
    assert sums == file_sums(root / "models/cahl/executor")


def test_two_models_train_and_are_saved_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_even_tokens(monkeypatch)
    _train(root, small_settings(model={"weights": "two_models"}, steps=2))
    for role in ("planner", "executor"):
        assert (root / "models/cahl" / role / "config.json").exists()
        assert (root / "models/cahl" / role / "model.safetensors").exists()


# --- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "error"), [(0, RuntimeError), (2, KeyboardInterrupt), (3, RuntimeError)]
)
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException]
) -> None:
    settings = small_settings(**STATEFUL)
    pay_for_even_tokens(monkeypatch)
    straight = _train(root, settings)
    shutil.rmtree(root / "models/cahl")
    real = Trainer._collect

    def dies(self: Trainer, number: int) -> Any:
        found = real(self, number)
        if number == step:
            raise error
        return found

    monkeypatch.setattr(Trainer, "_collect", dies)
    with pytest.raises(error):
        _train(root, settings)
    assert not (root / "models/cahl").exists()
    monkeypatch.setattr(Trainer, "_collect", real)
    again = _train(root, settings)
    assert _same(again, straight)
    assert [r["sampler/epoch"] for r in again["rows"]] == [
        r["sampler/epoch"] for r in straight["rows"]
    ]


def test_the_repetition_is_exact_and_another_seed_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    first, second = (_train(root, small_settings()) for _ in range(2))
    assert _same(first, second)
    other = small_settings().model_copy(update={"seed": 1})
    assert _train(root, other)["sums"] != first["sums"]


def test_sigterm_during_a_rollout_saves_the_last_finished_step(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    settings = small_settings(**{**STATEFUL, "checkpoint_every": 100})
    straight = _train(root, settings)
    real = Trainer._collect

    def terminated(self: Trainer, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number)

    monkeypatch.setattr(Trainer, "_collect", terminated)
    before = signal.signal(signal.SIGTERM, _exits)
    try:
        with pytest.raises(SystemExit):
            _train(root, settings)
    finally:
        signal.signal(signal.SIGTERM, before)
    found = list((root / ".cahl/train").rglob("step-*/manifest.json"))
    assert [json.loads(p.read_text())["step"] for p in found] == [2]
    monkeypatch.setattr(Trainer, "_collect", real)
    assert _same(_train(root, settings), straight)


def _exits(number: int, frame: Any) -> None:
    raise SystemExit(143)


def test_a_signal_waits_for_the_end_of_an_update() -> None:
    arrived: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append("handled"))
    try:
        with held_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            arrived.append("body")
        assert arrived == ["body", "handled"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_never_resume_starts_over_and_other_words_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings()
    real = Trainer._collect
    monkeypatch.setattr(
        Trainer, "_collect", lambda self, n: real(self, n) if n < 2 else _interrupt()
    )
    with pytest.raises(KeyboardInterrupt):
        _train(root, settings)
    monkeypatch.setattr(Trainer, "_collect", real)
    _train(root, settings, resume="never")
    assert "resumed" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="allowed: auto, never"):
        _train(root, settings, resume="yes")


def _interrupt() -> Any:
    raise KeyboardInterrupt


def test_checkpoints_belong_to_settings_and_inputs(root: Path) -> None:
    places = Places.of_project(root)
    key = joint.run_key(small_settings(), places)
    assert joint.run_key(small_settings(checkpoint_every=7, trace={"every": 0}), places) == key
    assert joint.run_key(small_settings(steps=9), places) != key
    adapter = root / "models/sft/planner/adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes() + b" ")
    assert joint.run_key(small_settings(), places) != key


def test_what_a_killed_process_left_half_written_is_swept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    leftovers = [
        root / "models/.cahl.x1/planner/adapter_model.safetensors",
        root / ".cahl/snapshots/train/.step-000002.x2/planner/model.safetensors",
        root / ".cahl/traces/train/.step-000001.jsonl.x3",
        root / "metrics/.train.json.x4",
    ]
    bystander = root / "models/.other.x5"
    for path in (*leftovers, bystander):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    _train(root, small_settings())
    assert not any(path.exists() for path in leftovers)
    assert bystander.exists()


def test_snapshots_of_another_run_are_not_taken_for_this_ones(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    snapshots = root / ".cahl/snapshots/train"
    _train(root, small_settings(snapshot_every=1))
    other = small_settings(snapshot_every=2, steps=2).model_copy(update={"seed": 1})
    sums = _train(root, other)["sums"]
    assert sorted(p.name for p in snapshots.iterdir()) == ["step-000000", "step-000002"]
    assert file_sums(snapshots / "step-000002") == sums


# --- budgets, guards, what is written ------------------------------------------------------------


def test_training_ends_with_the_step_that_reaches_the_token_budget(root: Path) -> None:
    whole = _train(root, small_settings())["rows"]
    budget = int(whole[0]["sampled_tokens"]) + 1
    rows = _train(root, small_settings(max_sampled_tokens=budget))["rows"]
    assert len(rows) == 2


def test_tasks_are_drawn_pass_by_pass_also_when_a_role_asks_for_more(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random backbone never gives signal, so every step draws its refill too."""
    drawn: list[str] = []
    real = Trainer._collect

    def noted(self: Trainer, number: int) -> Any:
        trees, refills = real(self, number)
        drawn.extend(t.task.id for t in trees)
        return trees, refills

    monkeypatch.setattr(Trainer, "_collect", noted)
    rows = _train(
        root, small_settings(planner={"max_tokens": 24, "dynamic_sampling": True}, max_refills=2)
    )["rows"]
    assert [row["refills"] for row in rows] == [2.0] * 3
    assert Counter(drawn) == Counter({f"t{n}": 3 for n in range(6)})


def test_non_finite_updates_are_skipped_and_end_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    monkeypatch.setattr(
        "cahl_core.training.credit.group_advantages",
        lambda rewards, *_: [float("nan")] * len(rewards),
    )
    with pytest.raises(TrainingError, match="2 steps in a row had a non-finite"):
        _train(root, small_settings(max_bad_steps=2))
    checkpoint = max((root / ".cahl/train").rglob("step-*/state.safetensors"))
    tensors = load_file(checkpoint)
    assert all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())


def test_a_run_leaves_alignment_traces_report_and_snapshots(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_even_tokens(monkeypatch)
    _train(root, small_settings(evaluate_every=2, snapshot_every=2))
    lines = (root / "plots/alignment.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "2", "3"]
    metrics = json.loads((root / "metrics/train.json").read_text())
    assert {"alignment/plan_validity_last", "dev/planner_reward_first"} <= set(metrics)
    assert metrics["steps"] == 3
    assert not any("seconds" in key for key in metrics)
    traces = sorted(p.name for p in (root / ".cahl/traces/train").glob("*.jsonl"))
    assert traces == [f"step-{n:06d}.jsonl" for n in range(3)]
    names = sorted(p.name for p in (root / ".cahl/snapshots/train").iterdir())
    assert names == ["step-000000", "step-000002", "step-000003"]
    start = _adapter(root / "models/sft", "planner")
    first = _adapter(root / ".cahl/snapshots/train/step-000000", "planner")
    assert all(torch.equal(start[k], first[k]) for k in start)
    assert json.loads((root / ".cahl/reports/reward_hacks.json").read_text())["patterns"]
