"""Settings of rollouts that servers sample (docs/rollout-servers.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]


class RolloutSettings(BaseModel):
    """Who samples in training: this process (no ``servers``), or OpenAI-compatible servers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: tuple[str, ...] = Field(
        (), description="addresses, http://host:port; none: training samples by itself"
    )
    model: str | None = Field(
        None, description="the backbone's name on the servers; none: the one they name first"
    )
    adapters: str | None = Field(
        None,
        description="directory that the servers can read, for adapters; none: beside the checkpoints",
    )
    adapters_there: str | None = Field(
        None, description="path of that directory as the servers see it; none: the same path"
    )
    api_key_variable: str = Field(
        "CAHL_ROLLOUT_API_KEY", description="environment variable that holds the key, if one is due"
    )
    max_concurrent: Positive = Field(
        64, description="requests under way per server, from each training process"
    )
    timeout: float = Field(600.0, gt=0, description="seconds for the answer to one request")
    connect_timeout: float = Field(5.0, gt=0, description="seconds to reach a server")
    start_timeout: float = Field(
        60.0, gt=0, description="seconds that every server has to answer in when training starts"
    )
    give_up_after: float = Field(
        900.0, gt=0, description="seconds without any answer from any server that end training"
    )
    max_gap: float = Field(
        0.2,
        gt=0,
        description="mean difference, in nats per token, allowed between a server's log-probabilities "
        "and ours when training starts: bfloat16 rounds by some hundredths, other weights differ more",
    )
    retokenise: bool = Field(
        False,
        description="accept a server that returns text and log-probabilities but no token ids; what "
        "does not tokenise back exactly is void",
    )
    asynchronous: bool = Field(
        False, description="sample the next steps' rollouts while this step's update runs"
    )
    max_staleness: Annotated[int, Field(ge=0)] = Field(
        1, description="asynchronous: updates between the weights that sample and those that learn"
    )

    @property
    def ahead(self) -> int:
        """Steps whose rollouts are sampled ahead: 0 where training is synchronous."""
        return self.max_staleness if self.asynchronous else 0

    @model_validator(mode="after")
    def _consistent(self) -> RolloutSettings:
        if self.asynchronous and not self.servers:
            raise ValueError(
                "train.rollouts.asynchronous=true needs train.rollouts.servers: the engine of this "
                "process shares its weights with the update (`cahl serve-rollouts` starts a server)"
            )
        if self.adapters_there and not self.adapters:
            raise ValueError("train.rollouts.adapters_there needs train.rollouts.adapters")
        for url in self.servers:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"train.rollouts.servers: {url!r} is not http://host:port")
        return self
