"""Settings: one frozen class per stage, unknown keys are errors.

`profiles` reads the files; docs and error messages name keys as ``section.key``.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cahl_core.errors import ConfigError
from cahl_core.evaluate_config import EvaluateSettings
from cahl_core.roles import Role
from cahl_core.train_config import (
    FORMS,
    Form,
    Natural,
    Positive,
    RewardSettings,
    RoleSettings,
    Section,
    Share,
    TrainSettings,
    Weight,
)

__all__ = ["EvaluateSettings", "RewardSettings", "RoleSettings", "TrainSettings"]


class LoraSettings(Section):
    """LoRA adapters, the same shape for planner and executor."""

    rank: Positive = 32
    alpha: Positive = 64
    dropout: Share = 0.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class ModelSettings(Section):
    """The frozen backbone and how tools are written in its prompts."""

    backbone: str = Field(
        "smollm2-135m-instruct", description="a model entry of data/sources.yaml or a directory"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor has it, else float32"
    )
    tool_rendering: Literal["compact", "json"] = "compact"
    max_context: Positive = Field(2048, description="tokens of prompt plus completion")
    cuda_graphs: bool = Field(True, description="on CUDA, decoding steps are recorded and replayed")
    lora: LoraSettings = LoraSettings()
    form: Form = Field(
        "hierarchical",
        description="what one model writes: plan and calls apart (hierarchical), the calls of the "
        "whole request (low_only), or plan and calls in one completion (single_level)",
    )
    weights: Literal["two_adapters", "shared_adapter", "two_models"] = Field(
        "two_adapters",
        description="what planner and executor share: the backbone, the adapter too, or nothing",
    )
    check_adapters: bool = Field(
        True,
        description="an adapter that says it was trained on another backbone is refused; false "
        "where the same weights go by another name",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="training computes each layer twice and keeps only its input: less memory",
    )


class FetchSettings(Section):
    """What to fetch; the backbone is fetched beside these."""

    sources: tuple[str, ...] = ("complexfuncbench", "nestful", "bfcl-v3")
    mirror: str | None = Field(
        None, description="directory looked at first; CAHL_MIRROR has precedence"
    )
    retries: Natural = 3
    use: Literal["research", "commercial"] = Field(
        "research", description="a source whose licence does not permit this use is refused"
    )


class PrepareSettings(Section):
    """From raw sources to validated tasks, split into train, dev and unseen-tool dev."""

    sources: tuple[str, ...] = ("complexfuncbench", "nestful")
    weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="share of a source in training relative to its size: 0.5 keeps half of its "
        "records, 2 takes each twice a pass; sources not named have 1",
    )
    max_records: Positive | None = Field(None, description="per source; None takes all")
    max_prompt_tokens: Positive = 1024
    max_steps: Positive = Field(8, description="records with more gold steps are set aside")
    max_tools: Positive = Field(128, description="records that offer more tools are set aside")
    max_text_chars: Positive = Field(
        200_000,
        description="a record whose JSON is longer is set aside without being parsed further",
    )
    max_result_chars: Positive = 320
    dev_tasks: Positive = 32
    unseen_tool_tasks: Natural = Field(
        16, description="dev tasks whose gold tools occur in no training task, not even as offered"
    )
    near_duplicate: Share = Field(
        0.85,
        description="estimated Jaccard similarity of requests above which one is set aside; "
        "0 turns the check off",
    )
    decontaminate: tuple[str, ...] = Field(
        ("bfcl-v3",), description="sources whose questions no training request may repeat"
    )
    single_step_share: Share = Field(
        0.5, description="requests derived from one gold call, as a share of all training tasks"
    )
    parallel_share: Share = Field(
        0.15, description="requests derived from independent calls of one record, share of all"
    )
    irrelevance_share: Share = Field(
        0.1, description="requests whose fitting tools were taken away, share of all"
    )
    missing_argument_share: Share = Field(
        0.0, description="requests that leave out a required argument (the plan asks), share of all"
    )
    rename_share: Share = Field(
        0.0, description="share of the original records that get new tool and argument names"
    )
    distractors: Natural = Field(
        0, description="at most this many tools of other records are added to an original record"
    )
    shuffle_tools: bool = Field(True, description="offer the tools of every record in random order")
    max_faulty_share: Share = Field(
        0.3, description="more records set aside for faults (not for length) fail the stage"
    )
    shard_rows: Positive = Field(
        50_000,
        description="above this many tasks a split is written as Parquet shards of this size",
    )
    workers: Natural = Field(
        0,
        description="processes that check records; 0 takes the cores, at most 8; the result is the same",
    )
    seed: int = 0


class SftSettings(Section):
    """Warm start of both adapters by supervised fine-tuning."""

    steps: Positive = 100
    tokens_per_step: Positive = Field(4096, description="packed tokens per optimizer step")
    row_tokens: Positive = Field(2048, description="packed tokens per forward")
    learning_rate: float = Field(5e-4, gt=0)
    warmup_share: Share = 0.05
    weight_decay: Weight = 0.0
    grad_clip: float = Field(1.0, gt=0)
    executor_share: Share = Field(0.4, description="share of optimizer steps given to the executor")
    checkpoint_every: Positive = 50


class RegisterSettings(Section):
    """Registration in MLflow."""

    name: str = "cahl-agent"
    alias: str = "champion"
    merged: bool = Field(
        False, description="store merged weights per role instead of adapters and a pointer"
    )


class TrackingSettings(Section):
    """MLflow; MLFLOW_TRACKING_URI has precedence."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "cahl"


class Settings(Section):
    """Everything a stage may read. ``profile`` names the overlay that was applied."""

    profile: str = "quickstart"
    seed: int = 0
    model: ModelSettings = ModelSettings()
    fetch: FetchSettings = FetchSettings()
    prepare: PrepareSettings = PrepareSettings()
    sft: SftSettings = SftSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    register_: RegisterSettings = Field(RegisterSettings(), alias="register")
    tracking: TrackingSettings = TrackingSettings()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def max_tokens(self, role: Role) -> int:
        """The bound of one completion; a flat form's one text has room for a plan and two calls."""
        planner, executor = self.train.planner.max_tokens, self.train.executor.max_tokens
        if self.model.form != "hierarchical":
            return planner + 2 * executor
        return planner if role == "planner" else executor

    @model_validator(mode="after")
    def _arm_fits_form(self) -> Settings:
        expected = self.train.arm if self.train.arm in FORMS else "hierarchical"
        if self.model.form != expected:
            raise ValueError(
                f"train.arm={self.train.arm} needs model.form={expected} (SFT, evaluation and "
                f"registration read it too), and model.form is {self.model.form}"
            )
        return self


def validate(values: dict[str, Any]) -> Settings:
    """Builds `Settings`; every failure becomes one `ConfigError` that lists all of them."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "settings are not valid:\n" + "\n".join(_explain(e) for e in error.errors()),
            "defaults and meanings: cahl_core/config.py; shipped values: params.yaml, configs/",
        ) from error


def _explain(error: Any) -> str:
    if error["type"] == "value_error":  # our own sentences, about several keys at once
        return "  " + str(error["msg"]).removeprefix("Value error, ")
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"  {location}: {error['msg']}, got {error['input']!r}"
    valid = known_keys()
    near = difflib.get_close_matches(location, valid, n=3, cutoff=0.5)
    if not near:
        section = location.rpartition(".")[0]
        near = [k for k in valid if k.rpartition(".")[0] == section]
    return f"  {location}: no such key; nearest valid: {', '.join(near)}"


def known_keys(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """All dotted keys of the settings, sections included."""
    keys: list[str] = []
    for name, info in section.model_fields.items():
        key = f"{prefix}{info.alias or name}"
        keys.append(key)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{key}.")
    return keys
