"""What a run says about its seconds and its memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_project import (
    make_project,
    pay_for_even_tokens,
    random_start,
    small_settings,
    small_task,
)

from cahl_core.errors import MemoryLimitError, PromptTooLongError
from cahl_core.memory import make_gauge
from cahl_core.policy.packing import Packed
from cahl_core.stage import StageRun
from cahl_core.training import joint
from cahl_core.training import update as update_module
from cahl_core.training.places import Places


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path, tiny_backbone)
    random_start(tmp_path, small_settings())
    pay_for_even_tokens(monkeypatch)
    return tmp_path


def test_every_step_has_its_seconds_and_peaks_by_phase(root: Path) -> None:
    stage = StageRun("train", root, small_settings())
    rows = joint.train(stage, Places.of_project(root))
    for row in rows:
        spent = {k.removeprefix("seconds/"): v for k, v in row.items() if k.startswith("seconds/")}
        assert set(spent) == {"rollout", "prefill", "decode", "reference", "update", "step"}
        assert 0 < spent["reference"] < spent["update"]
        assert 0 < spent["prefill"] + spent["decode"] < spent["rollout"]
        assert spent["rollout"] + spent["update"] < spent["step"]
    if make_gauge() is None:
        pytest.skip("memory cannot be measured here")
    for row in rows:
        peaks = {k: v for k, v in row.items() if k.startswith("memory/")}
        assert set(peaks) == {f"memory/{p}_peak_gib" for p in ("rollout", "reference", "update")}
        assert 0.05 < peaks["memory/reference_peak_gib"] <= peaks["memory/update_peak_gib"] < 20
    assert set(stage.memory.highest) == {
        "load", "alignment", "rollout", "update", "reference", "checkpoint",
    }  # fmt: skip
    kept = (root / ".cahl/reports/train_steps.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == rows


def test_a_run_that_runs_out_of_memory_goes_on_and_counts_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = update_module.row_logprobs

    def refuse(policy: Any, row: Packed, *args: Any) -> Any:
        if len(row.indices) > 2:
            raise MemoryError
        return real(policy, row, *args)

    monkeypatch.setattr(update_module, "row_logprobs", refuse)
    settings = small_settings(row_tokens=5000)
    rows = joint.train(StageRun("train", root, settings), Places.of_project(root))
    splits = [r["planner/oom_splits"] + r["executor/oom_splits"] for r in rows]
    assert splits[0] > 0 and len(rows) == settings.train.steps
    said = [x for x in capsys.readouterr().err.splitlines() if "ran out of memory" in x]
    assert 1 <= len(said) <= sum(splits)
    assert splits[-1] < splits[0]  # the smaller budget stays


def test_an_optimizer_that_does_not_fit_is_explained(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("cahl_core.training.trainee.Trainee.step", refuse)
    with pytest.raises(MemoryLimitError, match="optimizer state do not fit in memory: no room"):
        joint.train(StageRun("train", root, small_settings()), Places.of_project(root))


@pytest.mark.parametrize("form", ["hierarchical", "single_level"])
def test_a_task_that_leaves_no_room_is_named(root: Path, form: str) -> None:
    own = {} if form == "hierarchical" else {"arm": form}
    settings = small_settings(model={"max_context": 400, "form": form}, **own)
    with pytest.raises(PromptTooLongError, match=r"task t\d: its prompt has \d+ tokens") as error:
        joint.train(StageRun("train", root, settings), Places.of_project(root))
    assert "prepare.max_prompt_tokens=" in error.value.hint
    assert small_task(0).id == "t0"


def test_gradient_checkpointing_can_be_turned_on_for_a_run_that_was_begun_without(
    root: Path,
) -> None:
    places = Places.of_project(root)
    plain, checkpointed, other = (
        joint.run_key(small_settings(model=model), places)
        for model in ({}, {"gradient_checkpointing": True}, {"max_context": 1400})
    )
    assert plain == checkpointed != other
