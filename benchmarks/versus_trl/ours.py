"""The worker of our arm: one process, steps on command (see driver.py).

The public pieces as training uses them: `Policy`, `Engine.generate`, `update`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from worker import Channel, Meter, count_tokens, versions
from workload import Batch, Point, batches, reward

from cahl_core.advantages import group_advantages
from cahl_core.config import ModelSettings, RoleSettings, Settings, TrainSettings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Completion, Engine
from cahl_core.training.distributed import Workers
from cahl_core.training.trainee import Trainee
from cahl_core.training.tree import Sample
from cahl_core.training.update import update


def settings_of(spec: dict[str, Any], point: Point) -> Settings:
    """Our settings for a point: as shipped but for what both arms have to agree on."""
    common: dict[str, Any] = {
        "learning_rate": spec["learning_rate"], "warmup_steps": 0, "clip_low": 0.2, "clip_high": 0.2,
        "kl_weight": 0.0,
    }  # fmt: skip
    roles = {"planner": point.tokens, "executor": point.call}
    if not point.joint:  # the one text's bound is planner + 2 · executor; dr_grpo divides by it
        roles = {"planner": point.tokens - 2, "executor": 1}
    own = {role: RoleSettings(max_tokens=tokens, **common) for role, tokens in roles.items()}
    # a row holds one task's tree: what is shared is then encoded once
    completions = point.samples * point.tokens
    if point.joint:
        each = point.sub_task + point.samples * point.call
        completions = max(point.plans * point.tokens, point.plans * point.sub_tasks * each)
    row = max(2048, max(point.prompt, point.tools * point.joint) + completions)
    return Settings(
        model=ModelSettings(
            dtype=spec["dtype"],
            max_context=max(2048, point.longest),
            form="hierarchical" if point.joint else "single_level",
        ),
        train=TrainSettings(
            arm="joint" if point.joint else "single_level",
            loss_type=spec["loss"],
            importance="none",
            row_tokens=spec.get("row_tokens") or row,
            **own,
        ),
    )


class Ours:
    """Backbone, engine and one trainee per role."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.point, self.meter = spec, Point(**spec["point"]), Meter()
        self.settings = settings_of(spec, self.point)
        self.policy = Policy.load(Path(spec["backbone"]), None, self.settings.model)
        # without end tokens every completion has the length asked for
        self.policy.causal.generation_config.eos_token_id = None
        self.policy.tokenizer.eos_token = None
        self.vocabulary = self.policy.causal.config.vocab_size
        self.trainees: dict[Any, Trainee] = {}
        for role in self.point.roles:
            self.policy.add_adapter(role, Path(spec["adapter"]), trainable=True)
        for role in self.point.roles:
            self.trainees[role] = Trainee(
                self.policy, role, spec["learning_rate"], spec.get("grad_clip", 1.0)
            )
        self.workers = Workers()
        self.engine = Engine(self.policy)
        count_tokens(type(self.policy.decoder), self.meter)

    def step(self, index: int) -> dict[str, Any]:
        """One training step of all roles of the point."""
        meter = self.meter
        meter.clear()
        samples: dict[Any, list[Sample]] = {}
        decoded = 0
        for role, batch in batches(self.point, self.vocabulary, index).items():
            before = self.engine.prefilled_tokens + self.engine.decoded_tokens
            fed = meter.tokens["generation"]
            with meter.phase("generation"):
                groups = self._generate(role, batch, index)
            # a decoder that bypasses the backbone's forward is still counted by its engine;
            # the last token of a sample is never fed
            counted = self.engine.prefilled_tokens + self.engine.decoded_tokens - before
            meter.tokens["generation"] = fed + max(
                meter.tokens["generation"] - fed, counted - batch.rows
            )
            with meter.phase("rewards"):
                samples[role] = self._rewarded(batch, groups)
            decoded += sum(len(s.completion.token_ids) for s in samples[role])
        with meter.phase("update"):
            reports = update(samples, self.trainees, self.settings, 0, self.workers, 10**6)
            self.engine.weights_changed()
        return {
            **meter.report(),
            "sampled": decoded,
            "trained": int(sum(r.tokens for r in reports.values())),
            "norms": {role: r.grad_norm for role, r in reports.items()},
        }

    def _generate(self, role: str, batch: Batch, index: int) -> list[list[Completion]]:
        return self.engine.generate(
            batch.prompts,
            role,
            samples=batch.samples,
            max_tokens=batch.tokens,
            temperature=1.0,
            seeds=[f"{index}/{role}/{i}" for i in range(len(batch.prompts))],
        )

    def _rewarded(self, batch: Batch, groups: list[list[Completion]]) -> list[Sample]:
        out = []
        for prompt, group in zip(batch.prompts, groups, strict=True):
            rewards = [reward(c.token_ids) for c in group]
            for completion, value in zip(group, group_advantages(rewards), strict=True):
                out.append(Sample(prompt, completion, advantage=float(value)))
        return out

    def gradients(self, command: dict[str, Any]) -> dict[str, Any]:
        """The gradient of one update on the completions and advantages given, saved to ``file``."""
        (role, batch), *_ = batches(self.point, self.vocabulary, command["index"]).items()
        samples = []
        for i, ids in enumerate(command["completions"]):
            completion = Completion(ids, [0.0] * len(ids), "", False)
            prompt = batch.prompts[i // batch.samples]
            samples.append(Sample(prompt, completion, advantage=command["advantages"][i]))
        trainee = self.trainees[role]
        found: dict[str, torch.Tensor] = {}

        def keep(*_: Any) -> None:
            names = [n for n, _ in self.policy.model.named_parameters() if f".{role}." in n]
            for name, parameter in zip(names, trainee.parameters, strict=True):
                found[name.replace(f".{role}.", ".")] = parameter.grad.float().clone()

        trainee.optimizer.register_step_pre_hook(keep)
        report = update({role: samples}, self.trainees, self.settings, 0, self.workers, 10**6)
        save_file(found, command["file"])
        return {"norm": report[role].grad_norm, "loss": report[role].loss}


def make_adapter(spec: dict[str, Any]) -> None:
    """Writes an adapter that both arms start from; B is not zero, so that A has gradients too."""
    policy = Policy.load(Path(spec["backbone"]), None, ModelSettings(dtype="float32"))
    policy.new_adapter("executor", 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.01, generator=generator)
    policy.save_adapter("executor", Path(spec["adapter"]))


def main() -> None:
    """Serves commands until the driver ends."""
    channel = Channel()
    spec = json.loads(sys.argv[1])
    if spec.get("make_adapter"):
        make_adapter(spec)
        return
    arm = Ours(spec)
    channel.send(
        {
            "ready": True,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "dtype": str(arm.policy.dtype),
            "settings": {"row_tokens": arm.settings.train.row_tokens},
        }
    )
    while (command := channel.receive())["do"] != "quit":
        if command["do"] == "gradients":
            channel.send(arm.gradients(command))
        else:
            channel.send(arm.step(command["index"]))


if __name__ == "__main__":
    main()
