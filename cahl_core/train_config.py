"""Settings of reinforcement learning: arm, groups, rewards, losses, guards (docs/method.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cahl_core.rollout_config import RolloutSettings

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

Arm = Literal[
    "joint", "freeze_low", "freeze_high", "low_only", "single_level", "alternate_k", "broadcast",
    "shuffled_credit",
]  # fmt: skip
Form = Literal["hierarchical", "low_only", "single_level"]
FORMS = ("low_only", "single_level")  # the arms that are a form of their own
AdvantageKind = Literal["group_std", "group_mean", "leave_one_out", "batch_std"]
LossType = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class Section(BaseModel):
    """Base of all sections: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RoleSettings(Section):
    """What each role has for itself in joint training (method: groups, losses)."""

    learning_rate: float = Field(5e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate after warm-up, down to min_lr_share"
    )
    warmup_steps: Natural = 2
    min_lr_share: Share = Field(0.1, description="where linear and cosine end")
    clip_low: Weight = Field(0.2, description="ratios below 1 - clip_low are cut; gspo: about 3e-4")
    clip_high: Weight = Field(
        0.28, description="ratios above 1 + clip_high are cut; gspo: about 4e-4; cispo: about 4"
    )
    kl_weight: Weight = Field(0.01, description="of the k3 estimate towards the SFT adapter")
    entropy_weight: Weight = Field(0.0, description="of the entropy bonus per token, in nats")
    grad_clip: float = Field(1.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_tokens: Positive = 192
    advantage: AdvantageKind = Field(
        "group_std",
        description="group_std divides by the group's deviation, group_mean does not, leave_one_out "
        "takes the mean of the others as baseline, batch_std divides by the batch's deviation",
    )
    dynamic_sampling: bool = Field(
        False, description="draw more tasks where groups have no variance (train.max_refills)"
    )


class ValueSettings(Section):
    """When two argument values count as equal (cahl_core/canonical.py lists the rules)."""

    dates: bool = Field(False, description="2026-11-21, 21/11/2026 … written differently are equal")
    ignore_case: bool = False


class RewardSettings(Section):
    """Weights of the reward parts, equations in docs/method.md."""

    w_form: Weight = 0.5
    w_syn: Weight = 0.5
    w_sem: Weight = 1.5
    w_task: Weight = Field(0.0, description="of the task's success in the executor's reward")
    w_param: Weight = 1.0
    w_exe: Weight = 1.5
    w_success: Weight = Field(0.0, description="of the task's success in the planner's reward")
    c_extra: Weight = Field(0.1, description="cost of each sub-task beyond the gold steps")
    param_match: Literal["strict", "substring"] = "strict"
    values: ValueSettings = ValueSettings()


class CurriculumSettings(Section):
    """Which tasks are admitted, by what the executor can do (a Beta posterior per tool)."""

    kind: Literal["none", "capability"] = "none"
    low: Share = Field(0.05, description="tasks with a lower predicted solve rate wait")
    high: Share = Field(0.95, description="tasks with a higher predicted solve rate wait")
    decay: Share = Field(0.98, description="of the posterior's counts, per training step")
    prior: float = Field(1.0, gt=0, description="successes and failures assumed of a new tool")
    max_wait: Natural = Field(3, description="a task refused this often is admitted the next time")


class AlarmSettings(Section):
    """When training says that it is collapsing; an alarm warns, it does not stop."""

    min_entropy: Weight = Field(
        0.01, description="mean nats per token below which a role collapses"
    )
    length_factor: float = Field(
        2.0, gt=1, description="mean length against that of the first steps"
    )
    zero_variance: Share = Field(0.9, description="share of groups without signal")
    window: Positive = Field(5, description="steps the means are taken over")


class TraceSettings(Section):
    """Rollout trees kept for reading (`cahl inspect`)."""

    every: Natural = Field(1, description="steps between traced steps; 0 keeps none")
    trees: Positive = Field(8, description="trees kept of a traced step, the first ones")
    mlflow: Natural = Field(1, description="trees per traced step that become MLflow traces")


class TrainSettings(Section):
    """Joint CAHL training and its ablations."""

    arm: Arm = "joint"
    alternate_every: Positive = Field(
        5, description="alternate_k: steps of a role before the other's"
    )
    steps: Positive = 20
    max_sampled_tokens: Natural = Field(
        0, description="training ends with the step that reaches this many; 0: only steps counts"
    )
    tasks_per_step: Positive = 4
    plans_per_task: Annotated[int, Field(ge=2)] = Field(8, description="G_h")
    executions_per_plan: Positive = Field(4, description="G_l; 1 leaves the executor no signal")
    max_sub_tasks: Positive = Field(8, description="sub-tasks beyond this many are not executed")
    history: Literal["teacher_forced", "free_running"] = Field(
        "teacher_forced",
        description="what an executor sees of earlier sub-tasks: gold results, or those of its own calls",
    )
    environment: str = Field(
        "replay",
        description="who answers calls in free_running: replay (recorded results) or module:function",
    )
    recombine: bool = Field(
        False,
        description="task success over all G_l^K pairings of sub-task samples (teacher_forced only)",
    )
    row_tokens: Positive = Field(4096, description="packed tokens per forward of the update")
    lambda_executor: Weight = Field(1.0, description="weight of the executor's loss")
    loss_type: LossType = "grpo"
    normalisation: Literal["auto", "sequence", "token", "constant"] = Field(
        "auto",
        description="mean over completions of token means, over all tokens, or over a constant "
        "length; auto is what loss_type's paper does",
    )
    importance: Literal["none", "token", "sequence"] = Field(
        "token", description="truncated weights for what the sampler's log-probabilities differ by"
    )
    importance_cap: float = Field(2.0, gt=0)
    inner_epochs: Positive = Field(1, description="updates on one batch of rollouts")
    max_refills: Natural = Field(
        1, description="extra batches of tasks a step may draw for roles with dynamic_sampling"
    )
    checkpoint_every: Positive = 5
    keep_checkpoints: Positive = 2
    snapshot_every: Natural = Field(
        0, description="steps between adapter snapshots kept for cross-play; 0 keeps none"
    )
    evaluate_every: Natural = Field(
        0, description="steps between alignment metrics on the dev tasks; 0 takes only the ends"
    )
    evaluate_tasks: Natural = Field(16, description="dev tasks of the alignment metrics")
    max_bad_steps: Positive = Field(5, description="non-finite steps in a row that end training")
    curriculum: CurriculumSettings = CurriculumSettings()
    alarm: AlarmSettings = AlarmSettings()
    trace: TraceSettings = TraceSettings()
    rollouts: RolloutSettings = RolloutSettings()
    planner: RoleSettings = RoleSettings()
    executor: RoleSettings = RoleSettings(max_tokens=128)
    rewards: RewardSettings = RewardSettings()

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.recombine and self.history != "teacher_forced":
            raise ValueError("train.recombine=true needs train.history=teacher_forced")
        if self.arm == "shuffled_credit" and self.tasks_per_step < 2:
            raise ValueError("train.arm=shuffled_credit needs train.tasks_per_step of at least 2")
        if self.curriculum.low >= self.curriculum.high:
            raise ValueError("train.curriculum.low must be below train.curriculum.high")
        return self
