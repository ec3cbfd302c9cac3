"""SFT, rollouts, updates and resume on a tiny random backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cahl_core.config import Settings, validate
from cahl_core.errors import DataError, StageInputError
from cahl_core.files import dump_json, sha256
from cahl_core.policy.backbone import ROLES, Policy
from cahl_core.policy.engine import Completion, Engine
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.protocol.prompts import execution_text, plan_text
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask
from cahl_core.stage import StageRun
from cahl_core.training import checkpoints, joint, sft
from cahl_core.training.data import Sampler, load_tasks
from cahl_core.training.distributed import Workers
from cahl_core.training.rollout import Roller, score, set_advantages
from cahl_core.training.trainee import Trainee
from cahl_core.training.tree import PlanNode, Sample, Tree
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


# --- rollouts ------------------------------------------------------------------------------------


class Scripted:
    """An engine that answers from a script, to check what is asked and what is made of it."""

    def __init__(self, policy: Policy, plans: list[str], executions: list[str]) -> None:
        self.policy, self.plans, self.executions = policy, plans, executions
        self.prompts: dict[str, list[str]] = {}

    def generate(
        self, prompts: Any, role: str, *, samples: int, **_: Any
    ) -> list[list[Completion]]:
        self.prompts[role] = [self.policy.tokenizer.decode(p) for p in prompts]
        texts = self.plans if role == "planner" else self.executions
        return [
            [Completion([5], [-1.0], texts[i % len(texts)], True) for i in range(samples)]
            for _ in prompts
        ]


def _scripted(
    root: Path, plans: list[str], executions: list[str]
) -> tuple[Tree, Scripted, Settings]:
    settings = _settings()
    engine = Scripted(_policy(root, settings), plans, executions)
    roller = Roller(engine, settings)  # type: ignore[arg-type]
    [tree] = roller.rollout([_task(1)], "s", plans=len(plans), executions=len(executions))
    return tree, engine, settings


def test_gold_plan_and_gold_calls_earn_the_maximum(root: Path) -> None:
    task = _task(1)
    assert task.plan is not None
    gold = [execution_text([ToolCall("find", {"city": "Oslo"})])] * 2
    tree, engine, settings = _scripted(root, [plan_text(task.plan), "nonsense"], gold)
    good, bad = tree.plans
    assert isinstance(bad.plan, ParseFailure)
    assert bad.sample.reward == 0.0
    assert bad.nodes == []
    # the second sub-task was also answered with the first one's call: half of R_exe
    weights = settings.train.rewards
    assert good.sample.reward == pytest.approx(weights.w_param + weights.w_exe / 2)
    assert [s.reward for s in good.nodes[0].samples] == [2.5, 2.5]
    assert 'Result 1 (find): {"id": 1}' in engine.prompts["executor"][1]


def test_an_unresolved_reference_is_judged_by_its_recorded_value(root: Path) -> None:
    task = _task(1)
    assert task.plan is not None
    calls = [execution_text([ToolCall("book", {"id": "$var1.id$"})])] * 2
    tree, _, _ = _scripted(root, [plan_text(task.plan)] * 2, calls)
    assert [s.reward for s in tree.plans[0].nodes[1].samples] == [2.5, 2.5]


def test_a_sub_task_without_gold_trains_no_executor_and_costs_the_planner(root: Path) -> None:
    task = _task(1)
    assert task.plan is not None
    longer = Plan((*task.plan.sub_tasks, SubTask("again", "find", {"city": "Oslo"})))
    call = [execution_text([ToolCall("find", {"city": "Oslo"})])] * 2
    tree, _, _ = _scripted(root, [plan_text(task.plan), plan_text(longer)], call)
    exact, extra = tree.plans
    assert extra.nodes[2].gold is None
    assert len(tree.groups("executor")) == 4
    assert extra.sample.reward < exact.sample.reward


def test_advantages_compare_within_a_task_and_within_a_sub_task(root: Path) -> None:
    task = _task(1)
    assert task.plan is not None
    texts = [execution_text([ToolCall("find", {"city": c})]) for c in ("Oslo", "Rome")]
    tree, _, settings = _scripted(root, [plan_text(task.plan), "nonsense"], texts)
    counts = set_advantages([tree], settings)
    assert [p.sample.advantage for p in tree.plans] == pytest.approx([1, -1], abs=1e-4)
    right, wrong = tree.plans[0].nodes[0].samples
    assert (right.advantage, wrong.advantage) == pytest.approx((1, -1), abs=1e-4)
    assert counts["executor/zero_variance_groups"] == 1.0  # both are equally wrong for `book`
    assert not any(s.in_signal_group for s in tree.plans[0].nodes[1].samples)


def test_a_task_without_gold_calls_rewards_declining(root: Path) -> None:
    settings = _settings()
    task = ToolTask("n", "toy", (Message("user", "Sing."),), (FIND,), (), Plan(()))
    nodes = [PlanNode(Sample([1], Completion([5], [-1.0], "", True)), Plan(())) for _ in range(2)]
    tree = Tree(task, nodes)
    score(tree, settings, 2)
    weights = settings.train.rewards
    assert nodes[0].sample.reward == weights.w_param + weights.w_exe


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


# --- the loop ------------------------------------------------------------------------------------


def _train(root: Path, settings: Settings) -> dict[str, str]:
    joint.run(StageRun("train", root, settings))
    return _sums(root / "models/cahl") | {"csv": (root / "plots/train.csv").read_text()}


def test_joint_training_is_repeatable_and_resumes_to_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings()
    sft.run(StageRun("sft", root, settings))
    straight = _train(root, settings)
    shutil.rmtree(root / "models/cahl")
    real = joint.Trainer.step

    def dies(self: joint.Trainer, tasks: Any, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return real(self, tasks, step)

    monkeypatch.setattr(joint.Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        joint.run(StageRun("train", root, settings))
    assert not (root / "models/cahl").exists()
    monkeypatch.setattr(joint.Trainer, "step", real)
    assert _train(root, settings) == straight


def test_a_damaged_checkpoint_is_skipped_with_a_sentence(root: Path, tmp_path: Path) -> None:
    policy = _policy(root, _settings())
    trainee = Trainee(policy, "planner", 0.1, 1.0)
    folder = tmp_path / "ck"
    checkpoints.save(folder, 1, [trainee], {"x": 1})
    kept = folder / "kept"
    shutil.copytree(folder / "step-000001", kept)
    checkpoints.save(folder, 2, [trainee], {"x": 2})
    shutil.move(kept, folder / "step-000001")
    with (folder / "step-000002/state.safetensors").open("r+b") as stream:
        stream.seek(200)
        stream.write(b"\xff\xff")
    step, extra, warnings = checkpoints.load_latest(folder, [trainee])
    assert (step, extra) == (1, {"x": 1})
    assert "step-000002 is not whole" in warnings[0]


def test_every_epoch_visits_every_task_once() -> None:
    tasks = [_task(n) for n in range(6)]
    seen = [t.id for step in range(3) for t in Sampler(tasks, 0).draw(step, 2)]
    assert sorted(seen) == sorted(t.id for t in tasks)


def test_missing_empty_and_malformed_task_files_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(StageInputError, match="cahl prepare"):
        load_tasks(path)
    path.write_text("")
    with pytest.raises(StageInputError, match=r"quarantine\.jsonl"):
        load_tasks(path)
    path.write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1 \(id 'a'\).*'answers' is missing"):
        load_tasks(path)
