"""Any model behind one interface: weights of this project or of others, and servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from cahl_core.config import Settings
from cahl_core.evaluation.core import Solver
from cahl_core.evaluation.models_spec import ModelSpec, parse_model, parse_models
from cahl_core.evaluation.solvers import TextSolver
from cahl_core.train_config import Form

__all__ = ["Model", "ModelSpec", "TextSolver", "open_model", "parse_model", "parse_models"]


class Model(Protocol):
    """One model to evaluate.

    Every method may raise a `CahlError` that says what is missing and how to get it.
    """

    label: str
    spec: ModelSpec

    @property
    def form(self) -> Form:
        """What its results look like; native tool calling is ``low_only``."""

    @property
    def completes(self) -> bool:
        """Whether it answers plain conversations (`TextSolver`)."""

    def key(self) -> str:
        """Digest of everything its texts depend on, apart from the requests.

        Of a server only what it says of itself: the weights behind it are not known.
        """

    def facts(self) -> dict[str, Any]:
        """What a report says of it, as JSON."""

    def solver(self) -> Solver:
        """What benchmarks ask; weights are loaded at the first call. Where `completes`
        says so it is a `TextSolver` as well."""

    def usage(self) -> dict[str, float | None]:
        """``seconds_prefill``, ``seconds_decode``, ``prefilled_tokens``, ``decoded_tokens`` so far;
        ``None`` where unknown."""

    def close(self) -> None:
        """Frees weights and connections; a later `solver` opens them again."""


def open_model(spec: ModelSpec, settings: Settings, root: Path) -> Model:
    """The model of ``spec``; nothing is loaded, downloaded or asked yet.

    Args:
        settings: ``model`` (of the project's models, and what others do not say themselves),
            ``evaluate`` (token bounds, temperature), ``tracking`` (registry).

    Raises:
        ConfigError: the environment variable that an endpoint's key should be in is not set.
    """
    if spec.kind == "endpoint":
        from cahl_core.evaluation.endpoint_agent import EndpointModel

        return EndpointModel(spec, settings)
    from cahl_core.evaluation.local_models import LocalModel

    return LocalModel(spec, settings, root)
