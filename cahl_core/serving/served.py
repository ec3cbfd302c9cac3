"""An agent read back from the files that registration stored: ``agent/agent.json`` and weights.

``agent.json`` holds the model's settings, its form among them: a loaded agent answers in the form it
was trained in. With adapters it points to the backbone; merged, each role's directory is a whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import ModelSettings
from cahl_core.errors import DataError, ModelError, PromptTooLongError
from cahl_core.files import digest, read_json
from cahl_core.roles import roles_of
from cahl_core.serving.agent import Agent
from cahl_core.serving.backbone_pointer import find_backbone
from cahl_core.serving.openai_form import answer, parse_request
from cahl_core.serving.results import Request

if TYPE_CHECKING:
    from cahl_core.policy.team import Team

CARD = "agent.json"
PARAMS = ("temperature", "max_tokens")


class ServedAgent:
    """A loaded agent that answers requests in OpenAI's form."""

    def __init__(self, build: Callable[[float, int | None], Agent]) -> None:
        self._build = build

    @classmethod
    def load(cls, folder: Path) -> ServedAgent:
        """Loads what `register` stored.

        Raises:
            ModelError: a file is missing, or the backbone is missing or another one.
        """
        card = read_json(folder / CARD)
        settings = ModelSettings.model_validate(card["model"])
        team = stored_team(folder, card, settings)
        flat = settings.form != "hierarchical"

        def build(temperature: float, max_tokens: int | None) -> Agent:
            return Agent(
                team.generate,
                team.policy.tokenizer,
                settings,
                plan_tokens=max_tokens or card["plan_tokens"],
                # the one text of a flat form is bounded by the sum of both
                call_tokens=0 if flat and max_tokens else max_tokens or card["call_tokens"],
                temperature=temperature,
            )

        return cls(build)

    def predict(
        self, requests: Sequence[Request], params: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """One answer per request.

        Args:
            params: ``temperature`` (0: greedy) and ``max_tokens`` (per generated text; 0: default).

        Raises:
            DataError: a parameter is out of range; PromptTooLongError: a request is too long.
        """
        agent = self._build(*_checked(params))
        results = agent.run(requests)
        for number, result in enumerate(results):
            if result.too_long is not None:
                raise PromptTooLongError(
                    f"request {number}: {result.too_long}",
                    "send fewer or shorter tools and messages",
                )
        return [answer(r, q.seed) for r, q in zip(results, requests, strict=True)]


def requests_of(model_input: Any) -> list[Request]:
    """Requests from what MLflow hands over: a mapping, a list of mappings, or a data frame.

    Raises:
        DataError: names the request and what is wrong with it.
    """
    if hasattr(model_input, "to_dict") and hasattr(model_input, "columns"):
        model_input = model_input.to_dict(orient="records")
    if isinstance(model_input, Mapping):
        return [parse_request(_plain(model_input))]
    if not isinstance(model_input, Sequence) or isinstance(model_input, str):
        raise DataError(
            f"input is {type(model_input).__name__}, must be a request or a list of them"
        )
    return [parse_request(_plain(r), f"request {i}") for i, r in enumerate(model_input)]


def _plain(value: Any) -> Any:
    """JSON values out of what data frames make of them: arrays, missing values."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _checked(params: Mapping[str, Any]) -> tuple[float, int | None]:
    if unknown := sorted(set(params) - set(PARAMS)):
        raise DataError(f"unknown parameter '{unknown[0]}'", f"allowed: {', '.join(PARAMS)}")
    temperature = params.get("temperature") or 0.0
    tokens = params.get("max_tokens") or 0
    if not 0 <= temperature <= 2 or tokens < 0:
        raise DataError(
            f"temperature {temperature}, max_tokens {tokens}", "0 ≤ temperature ≤ 2, max_tokens ≥ 0"
        )
    return float(temperature), int(tokens) or None


def stored_team(folder: Path, card: Mapping[str, Any], settings: ModelSettings) -> Team:
    """The roles of the model's form, with their adapters or whole.

    Raises:
        ModelError: weights are missing, or the backbone is another one.
    """
    from cahl_core.policy.team import load_team

    roles = roles_of(settings.form)
    if not card["merged"]:
        pointer = card["backbone"]
        backbone = find_backbone(pointer["name"], pointer["sha256"], near=folder)
        return load_team(backbone, folder, settings)
    missing = [role for role in roles if not (folder / role / "config.json").exists()]
    if missing:
        raise ModelError(f"no whole weights of {', '.join(missing)} in {folder}", "register again")
    return load_team(folder, folder, settings)


def card(
    settings: ModelSettings,
    backbone_sha256: str,
    *,
    merged: bool,
    plan_tokens: int,
    call_tokens: int,
) -> dict[str, Any]:
    """What ``agent.json`` holds."""
    return {
        "model": settings.model_dump(mode="json"),
        "backbone": {"name": settings.backbone, "sha256": backbone_sha256},
        "merged": merged,
        "plan_tokens": plan_tokens,
        "call_tokens": call_tokens,
        "settings_digest": digest(settings.model_dump(mode="json")),
    }
