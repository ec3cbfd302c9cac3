"""A project small enough to train in a test: two tools, a few tasks, a tiny random backbone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cahl_core.config import Settings, validate
from cahl_core.files import dump_json, sha256
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Completion
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask
from cahl_core.roles import ROLES

SMALL: dict[str, Any] = {
    "model": {"backbone": "tiny", "dtype": "float32", "max_context": 1500, "lora": {"rank": 4, "alpha": 8}},
    "sft": {"steps": 6, "tokens_per_step": 900, "row_tokens": 900, "checkpoint_every": 2},
    "train": {
        "steps": 3,
        "tasks_per_step": 2,
        "plans_per_task": 3,
        "executions_per_plan": 2,
        "row_tokens": 900,
        "checkpoint_every": 1,
        "evaluate_tasks": 2,
        "planner": {"max_tokens": 24},
        "executor": {"max_tokens": 16},
    },
}  # fmt: skip
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ID = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
FIND, BOOK = ToolSpec("find", "Finds a hotel.", CITY), ToolSpec("book", "Books it.", ID)


def small_task(number: int) -> ToolTask:
    """Find a hotel, then book it: the second call's id is in the first one's result."""
    city = ["Rome", "Oslo", "Lima"][number % 3]
    calls = (ToolCall("find", {"city": city}), ToolCall("book", {"id": "$var1.id$"}))
    plan = Plan(tuple(SubTask(c.name, c.name, c.arguments) for c in calls))
    meta = {"results": [{"id": number}, None], "resolved": [{"city": city}, {"id": number}]}
    message = Message("user", f"Book a hotel in {city}, number {number}.")
    steps = tuple((c,) for c in calls)
    return ToolTask(f"t{number}", "toy", (message,), (FIND, BOOK), steps, plan, meta)


def small_settings(model: dict[str, Any] | None = None, **train: Any) -> Settings:
    """`SMALL` with other values of ``train`` and ``model``."""
    return validate(
        {
            **SMALL,
            "model": {**SMALL["model"], **(model or {})},
            "train": {**SMALL["train"], **train},
        }
    )


def make_project(root: Path, backbone: Path) -> Path:
    """Backbone and prepared tasks where the stages expect them."""
    shutil.copytree(backbone, root / "data/backbone")
    (root / "data/prepared").mkdir()
    for name, numbers in (("train", range(6)), ("dev", range(6, 8))):
        lines = (dump_json(small_task(n).to_json()) + "\n" for n in numbers)
        (root / f"data/prepared/{name}.jsonl").write_text("".join(lines))
    return root


def random_start(root: Path, settings: Settings, scale: float = 0.1) -> Path:
    """Adapters that write varied texts, as if SFT had left them."""
    policy = Policy.load(root / "data/backbone", None, settings.model)
    for seed, role in enumerate(ROLES):
        policy.new_adapter(role, seed)
        torch.manual_seed(seed)
        for parameter in policy.parameters(role):
            torch.nn.init.normal_(parameter, std=scale)
        policy.save_adapter(role, root / "models/sft" / role)
    return root / "models/sft"


def file_sums(folder: Path) -> dict[str, str]:
    """sha256 of every file, by relative name."""
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*.*"))}


class Scripted:
    """Samples from a script, to check what is asked and what is made of it."""

    def __init__(self, policy: Any, plans: list[str], executions: list[str]) -> None:
        self.policy, self.plans, self.executions = policy, plans, executions
        self.prompts: dict[str, list[str]] = {"planner": [], "executor": []}
        self.options: dict[str, Any] = {}
        self.asked = 0

    def generate(
        self, prompts: Any, role: str, *, samples: int, **options: Any
    ) -> list[list[Completion]]:
        self.prompts[role] += [self.policy.tokenizer.decode(p) for p in prompts]
        self.options[role] = options
        texts = self.plans if role == "planner" else self.executions
        out = []
        for _ in prompts:
            if samples == 1 and role == "executor":  # free-running: one text after the other
                chosen, self.asked = [texts[self.asked % len(texts)]], self.asked + 1
            else:
                chosen = [texts[i % len(texts)] for i in range(samples)]
            out.append([Completion([5], [-1.0], text, True) for text in chosen])
        return out


class Tokens:
    """The policy of a `Scripted` source: a tokenizer is all that is read of it."""

    def __init__(self, backbone: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(backbone))


def pay_for_even_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random backbone never writes a plan: pays for even token ids, so that groups have signal."""
    from cahl_core.protocol.parsing import Execution
    from cahl_core.records import Plan, SubTask, ToolCall
    from cahl_core.rewards import ExecutorReward, PlannerReward
    from cahl_core.training import rollout

    plan = Plan((SubTask("find", "find", {"city": "Oslo"}),))
    call = Execution((ToolCall("find", {"city": "Oslo"}),))
    monkeypatch.setattr(rollout, "parse_plan", lambda text: plan)
    monkeypatch.setattr(rollout, "parse_execution", lambda text: call)
    monkeypatch.setattr(rollout, "parse_flat", lambda form, text: call)

    def score(tree: Any, settings: Any, executions: int) -> None:
        for node in tree.plans:
            if node.sample is not None:
                node.sample.reward = _evenness(node.sample.completion.token_ids)
                value = node.sample.reward
                node.reward = PlannerReward(1.0, 0.0, value, 0.0, value)
            for sub in node.nodes:
                sub.gold = ()
                sub.rewards = []
                for sample in sub.samples:
                    sample.reward = _evenness(sample.completion.token_ids)
                    sub.rewards.append(ExecutorReward(1.0, 0.0, sample.reward, 0.0, sample.reward))

    monkeypatch.setattr(rollout, "score", score)
    monkeypatch.setattr(
        "cahl_core.training.arms.planner_total", lambda form, p, execution, s, w: execution
    )


def _evenness(ids: list[int]) -> float:
    return sum(i % 2 == 0 for i in ids) / max(len(ids), 1)
