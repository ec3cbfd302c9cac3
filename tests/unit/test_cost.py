"""Predictions of a run against the run: tokens exact, memory's formulas exact, warnings in time."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_project import make_project, random_start, small_settings
from typer.testing import CliRunner

from cahl_core.config import Settings
from cahl_core.cost import forecast, report
from cahl_core.cost.allocations import Allocations
from cahl_core.cost.calibration import Shape, Speed, calibrate
from cahl_core.cost.peaks import Memory, cache_bytes, decoding_copy, shortage
from cahl_core.cost.prediction import Prediction, predict, predict_seconds
from cahl_core.cost.skeleton import read_config, sizes, trace_passes
from cahl_core.policy.attention import PACKED
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Engine
from cahl_core.policy.linear import packs
from cahl_core.policy.logprobs import packed_rows, row_logprobs
from cahl_core.policy.prefix_state import PrefixState
from cahl_core.stage import StageRun
from cahl_core.training import joint, rollout
from cahl_core.training.data import load_split
from cahl_core.training.places import Places

FLOAT, CPU = torch.float32, torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path) -> Path:
    make_project(tmp_path, tiny_backbone)
    random_start(tmp_path, small_settings())
    return tmp_path


def _predict(root: Path, settings: Settings, **options: Any) -> Prediction:
    from transformers import AutoTokenizer

    backbone = root / "data/backbone"
    tokenizer = AutoTokenizer.from_pretrained(str(backbone))
    tasks = load_split(root / "data/prepared", "train")
    return predict(backbone, settings, tasks, tokenizer, **options)


# --- tokens ---------------------------------------------------------------------------------------


def _gold_plans_of_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written counts as the gold plan, runs to its bound, and has a signal."""
    real = rollout.Roller._sub_tasks

    def sub_tasks(self: Any, task: Any, plan: Any) -> Any:
        return real(self, task, task.plan)

    monkeypatch.setattr(rollout.Roller, "_sub_tasks", sub_tasks)
    init = Engine.__init__

    @wraps(init)
    def endless(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self._ends = set()

    monkeypatch.setattr(Engine, "__init__", endless)
    monkeypatch.setattr(rollout, "stops", lambda form, role: ())

    def everyone(trees: Any, role: str, settings: Settings, limit: int) -> list[Any]:
        if role == "planner":
            return [node.sample for tree in trees for node in tree.plans]
        return [s for t in trees for n in t.plans for sub in n.nodes for s in sub.samples]

    monkeypatch.setattr("cahl_core.training.trainer.training_samples", everyone)


@pytest.mark.parametrize(("row_tokens", "rows", "batch"), [(900, 2048, 32768), (1400, 300, 5000)])
def test_tokens_are_those_that_a_run_encodes_samples_and_trains(
    root: Path, monkeypatch: pytest.MonkeyPatch, row_tokens: int, rows: int, batch: int
) -> None:
    budgets = {**Engine.__init__.__kwdefaults__, "row_tokens": rows, "batch_tokens": batch}
    monkeypatch.setattr(Engine.__init__, "__kwdefaults__", budgets)
    _gold_plans_of_full_length(monkeypatch)
    settings = small_settings(row_tokens=row_tokens)
    done = joint.train(StageRun("train", root, settings), Places.of_project(root))
    found = _predict(root, settings, alike=True)
    for row, load in zip(done, found.steps, strict=True):
        roles = load.roles
        assert row["encoded_prompt_tokens"] == sum(own.encoded for own in roles.values())
        assert row["sampled_tokens"] == sum(own.sampled_bound for own in roles.values())
        for role, own in roles.items():
            assert row[f"{role}/trained_tokens"] == own.sampled_bound
            # two samples may begin alike, which packs them closer than predicted
            assert 0.85 * own.packed_bound < row[f"{role}/packed_tokens"] <= own.packed_bound
            assert own.longest_row <= max(row_tokens, own.longest + settings.max_tokens(role))


def test_plans_in_words_of_their_own_cost_more_prompts_and_never_less(root: Path) -> None:
    settings = small_settings()
    alike, various = (_predict(root, settings, alike=a).by_role["executor"] for a in (True, False))
    assert various["encoded"] > alike["encoded"]
    assert various["samples"] == alike["samples"]


def test_a_prompt_without_room_is_counted_and_warned_about(root: Path) -> None:
    found = _predict(root, small_settings(model={"max_context": 420}))
    assert found.too_long > 0
    assert any("leave no room" in w for w in report.warnings(found, None))


# --- memory ---------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_loaded_model(root: Path) -> None:
    settings = small_settings().model
    found = sizes(read_config(root / "data/backbone"), settings)
    policy = Policy.load(root / "data/backbone", None, settings)
    assert found.total == sum(p.numel() for p in policy.model.parameters())
    saved = load_file(root / "models/sft/planner/adapter_model.safetensors")
    assert found.adapter == sum(t.numel() for t in saved.values())
    engine = Engine(policy)
    policy.new_adapter("planner", 0)
    with Allocations() as memory:
        engine.generate([[5, 6]], "planner", max_tokens=1)
    assert found.adapted == found.decoder  # adapters on all seven matrices
    copied = found.decoder + found.head * packs(torch.empty(1, 1))
    assert decoding_copy(found, FLOAT, CPU, merged=True) == 4 * copied
    assert 4 * copied <= memory.alive < 5 * copied
    plain = Engine(Policy.load(root / "data/backbone", None, settings))
    with Allocations() as memory:  # nothing to merge, as where each role has a model of its own
        plain.generate([[5, 6]], "planner", max_tokens=1)
    rearranged = decoding_copy(found, FLOAT, CPU, merged=False)
    assert rearranged <= memory.alive < 1.25 * rearranged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_those_of_the_real_tensors(root: Path, dtype: torch.dtype) -> None:
    found = sizes(read_config(root / "data/backbone"), small_settings().model)
    lengths, samples, room = [70, 33, 129], 4, 24
    state = PrefixState.empty(lengths, samples, room, CPU, dtype)
    for layer in range(found.layers):
        for prompt, length in enumerate(lengths):
            keys = torch.zeros(2, length, 8, dtype=dtype)
            state.write(layer, prompt, keys, keys)
    tensors = (state.keys, state.values, state.suffix_keys, state.suffix_values)
    real = sum(t.numel() * t.element_size() for group in tensors for t in group)
    assert cache_bytes(lengths, samples, room, found, dtype) == real


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_traced_peak_is_that_of_the_real_pass(root: Path, checkpointed: bool) -> None:
    prompts = [list(range(10, 150))] * 4
    completions = [[160 + i, *range(170, 190)] for i in range(4)]
    [row] = packed_rows(prompts, completions, 4000)
    model = {"gradient_checkpointing": checkpointed}
    settings = small_settings(model=model).model
    config = read_config(root / "data/backbone")
    passes = trace_passes(config, settings, FLOAT, row, [140] * 4)
    policy = Policy.load(root / "data/backbone", None, settings)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    with Allocations() as memory:
        row_logprobs(policy, row, [140] * 4).values.sum().backward()
    predicted = passes.trained_checkpointed if checkpointed else passes.trained
    assert predicted == pytest.approx(memory.peak, rel=0.05)
    assert passes.scored < passes.trained_checkpointed < passes.trained


def test_the_peak_of_a_deeper_model_follows_from_two_short_ones(root: Path) -> None:
    from transformers import AutoModelForCausalLM

    config, settings = read_config(root / "data/backbone"), small_settings().model
    config.num_hidden_layers = 7
    [row] = packed_rows([list(range(10, 150))], [list(range(150, 180))], 4000)
    model = AutoModelForCausalLM.from_config(config, dtype=FLOAT)
    model.config._attn_implementation = PACKED
    policy = Policy(model.requires_grad_(False).eval(), None, settings)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    with Allocations() as memory:
        row_logprobs(policy, row, [140]).values.sum().backward()
    predicted = trace_passes(config, settings, FLOAT, row, [140]).trained
    assert predicted == pytest.approx(memory.peak, rel=0.05)


def test_a_warning_comes_when_memory_is_short_and_names_what_helps(root: Path) -> None:
    settings = small_settings()
    found = _predict(root, settings)
    phase, peak = found.memory.highest
    assert shortage(found.memory, settings, found.passes, 2 * peak) == []
    first, *changes = shortage(found.memory, settings, found.passes, peak // 2)
    assert first.startswith(f"the {phase} phase is predicted to need")
    if phase == "update":
        assert any("model.gradient_checkpointing=true" in c for c in changes)
    assert any("warning" in line for line in report.lines(found, peak // 2))


def test_training_says_so_before_it_starts(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings(steps=1)
    joint.train(StageRun("train", root, settings), Places.of_project(root))
    assert "may run out of memory" not in capsys.readouterr().err
    monkeypatch.setattr(forecast, "free_memory", lambda device: 10_000)
    monkeypatch.setattr(forecast, "resident_now", lambda: 0)
    joint.train(StageRun("train", root, settings), Places.of_project(root), "never")
    said = capsys.readouterr().err
    assert "predicted to need" in said and "may run out of memory" in said
    assert said.index("may run out of memory") < said.index("CAHL training")


def test_the_quick_bound_is_above_what_is_traced(root: Path) -> None:
    settings = small_settings()
    found = _predict(root, settings)
    config = read_config(root / "data/backbone")
    longest = max(own.longest_row for load in found.steps for own in load.roles.values())
    bound = forecast.generous(sizes(config, settings.model), config, longest)
    assert bound.trained >= found.passes.trained
    assert bound.scored >= found.passes.scored


# --- time and comparison --------------------------------------------------------------------------


def test_seconds_add_up_from_the_measured_speeds(root: Path) -> None:
    settings = small_settings()
    found = _predict(root, settings)
    speed = Speed(encode=1.0, step=0.0, row=0.0, score=0.0, train=0.0, merge=0.0)
    seconds = predict_seconds(found.steps, settings, speed)
    assert seconds["rollout"] == seconds["step"] == found.tokens["encoded"]
    speed = replace(speed, encode=0.0, score=2.0, train=3.0)
    seconds = predict_seconds(found.steps, settings, speed)
    assert seconds["update"] == pytest.approx(5 * found.tokens["packed"])
    assert seconds["reference"] == pytest.approx(2 * found.tokens["packed"])


def test_groups_without_signal_cost_no_update(root: Path) -> None:
    settings = small_settings()
    speed = Speed(encode=1.0, step=1.0, row=1.0, score=2.0, train=3.0, merge=1.0)
    whole, half = (_predict(root, settings, speed=speed, signal=s) for s in (1.0, 0.5))
    assert half.tokens["packed"] == whole.tokens["packed"] / 2
    assert half.tokens["reference"] == whole.tokens["reference"] / 2
    assert half.seconds["update"] == pytest.approx(whole.seconds["update"] / 2)
    assert half.seconds["rollout"] == whole.seconds["rollout"]
    assert half.memory == whole.memory


def test_on_a_cpu_later_phases_need_no_less_than_earlier_ones() -> None:
    adds = {"rollout": {"caches": 5}, "reference": {"activations": 1}, "update": {"activations": 7}}
    stays = {"backbone": 10}
    assert [Memory(stays, adds, True).peak(p) for p in adds] == [15, 15, 17]
    assert [Memory(stays, adds, False).peak(p) for p in adds] == [15, 11, 17]


def test_speed_is_measured_once(root: Path) -> None:
    settings, shape = small_settings(), Shape(64, 6, 3, 128)
    speed = calibrate(root, settings, shape)
    assert min(speed.encode, speed.score, speed.train, speed.step + speed.row) > 0
    assert calibrate(root, settings, shape) == speed
    assert calibrate(root, settings, replace(shape, rows=4)) != speed


def _command(root: Path, *options: str) -> Any:
    from cahl_core.cli import app

    return CliRunner().invoke(app, ["plan-run", "--root", str(root), *options])


@pytest.fixture
def command_root(project: Path, tiny_backbone: Path) -> Path:
    (project / "params.yaml").write_text("")
    (project / "configs/quickstart.yaml").write_text(json.dumps(_as_settings()))
    return make_project(project, tiny_backbone)


def _as_settings() -> dict[str, Any]:
    from small_project import SMALL

    return {k: v for k, v in SMALL.items() if k != "sft"}


def test_the_command_says_it_for_people_and_for_machines(command_root: Path) -> None:
    said = _command(command_root)
    assert said.exit_code == 0, said.output
    for expected in ("prompts encoded", "update, peak", "whole run:", "assumed"):
        assert expected in said.stdout
    made = json.loads(_command(command_root, "--json", "--no-calibrate").stdout)
    assert made["seconds_per_step"] == {}
    assert made["tokens_per_step"]["sampled_bound"] == 2 * 3 * 24 + 2 * 3 * 2 * 2 * 16


def test_a_finished_run_is_set_beside_its_prediction(command_root: Path) -> None:
    settings = small_settings()
    random_start(command_root, settings)
    rows = joint.train(StageRun("train", command_root, settings), Places.of_project(command_root))
    steps = command_root / ".cahl/reports/train_steps.jsonl"
    said = _command(command_root, "--json", "--against", str(steps))
    found = json.loads(said.stdout)["against"]
    measured = sum(row["encoded_prompt_tokens"] for row in rows) / len(rows)
    assert found["encoded_prompt_tokens"]["measured"] == pytest.approx(measured)
    assert found["seconds/step"]["ratio"] > 0


@pytest.mark.parametrize(
    ("missing", "said"),
    [("data/prepared/train.jsonl", "cahl prepare"), ("data/backbone/config.json", "cahl fetch")],
)
def test_what_is_missing_is_named(command_root: Path, missing: str, said: str) -> None:
    (command_root / missing).unlink()
    done = _command(command_root, "--no-calibrate")
    assert done.exit_code in (5, 6) and said in done.output
