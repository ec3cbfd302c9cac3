"""Models whose weights are loaded here: the project's, Hugging Face's, registered ones."""

from __future__ import annotations

import gc
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.errors import ModelError
from cahl_core.evaluation.model_keys import LOCAL, arithmetic, code_digest, versions
from cahl_core.evaluation.models_spec import ModelSpec
from cahl_core.evaluation.weights import Weights, find_weights
from cahl_core.files import digest
from cahl_core.protocol.forms import openings, stops
from cahl_core.protocol.prompts import EXECUTOR_SYSTEM, REQUEST_SYSTEM
from cahl_core.roles import roles_of
from cahl_core.train_config import Form

if TYPE_CHECKING:
    from cahl_core.evaluation.solvers import LocalSolver
    from cahl_core.policy.team import Team

SERVED = "or put it behind a server (`vllm serve`, `transformers serve`) and name its URL instead"
COUNTERS = ("seconds_prefill", "seconds_decode", "prefilled_tokens", "decoded_tokens")


def prompt_facts(form: Form) -> dict[str, str]:
    """The instruction that opens each role's system text; the tools follow it."""
    found: dict[str, str] = {roles_of(form)[0]: REQUEST_SYSTEM[form]}
    return found | ({"executor": EXECUTOR_SYSTEM} if form == "hierarchical" else {})


class LocalModel:
    """A model in this process's memory, from its first solver on until `close`.

    All are asked with the bounds and the temperature of ``settings.evaluate``, registered ones too:
    what is compared has the same room.
    """

    def __init__(self, spec: ModelSpec, settings: Settings, root: Path) -> None:
        self.label = spec.label
        self.spec = spec
        self._settings = settings
        self._root = root
        self._team: Team | None = None
        self._solver: LocalSolver | None = None
        self._spent: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)

    @cached_property
    def weights(self) -> Weights:
        """Where they are; downloads happen here.

        Raises:
            CahlError: they cannot be had.
        """
        return find_weights(self.spec, self._settings, self._root)

    @property
    def form(self) -> Form:
        return self.weights.settings.form

    @property
    def completes(self) -> bool:
        return self.weights.bare or self.form != "hierarchical"

    def key(self) -> str:
        """Digest of everything the texts depend on, apart from the requests."""
        evaluate, weights = self._settings.evaluate, self.weights
        return digest(
            {
                "weights": weights.digest,
                "model": weights.settings.model_dump(mode="json"),
                "tokens": [evaluate.plan_tokens, evaluate.call_tokens, evaluate.batch_size],
                "temperature": evaluate.temperature,
                "code": code_digest(LOCAL),
                "versions": versions(),
                "numbers": arithmetic(weights.settings),
            }
        )

    def facts(self) -> dict[str, Any]:
        """What a report says of the model, as JSON."""
        evaluate, model = self._settings.evaluate, self.weights.settings
        return {
            "kind": self.spec.kind,
            "form": model.form,
            **self.weights.facts,
            **arithmetic(model),
            "max_context": model.max_context,
            "tool_rendering": model.tool_rendering,
            "prompts": prompt_facts(model.form),
            "decoding": {
                "temperature": evaluate.temperature,
                "plan_tokens": evaluate.plan_tokens,
                "call_tokens": evaluate.call_tokens,
                "stop": {r: list(stops(model.form, r)) for r in roles_of(model.form)},
                "ended_unless_it_begins_with": {
                    r: list(openings(model.form, r)) for r in roles_of(model.form)
                },
            },
        }

    def solver(self) -> LocalSolver:
        """Loads the weights, at the first call.

        Raises:
            ModelError: they do not load, or an adapter is of another backbone.
        """
        from cahl_core.evaluation.solvers import LocalSolver

        if self._solver is None:
            evaluate = self._settings.evaluate
            self._team = self._loaded()
            self._solver = LocalSolver(
                self._team,
                self.weights.settings,
                bare=self.weights.bare,
                plan_tokens=evaluate.plan_tokens,
                call_tokens=evaluate.call_tokens,
                temperature=evaluate.temperature,
            )
        return self._solver

    def _loaded(self) -> Team:
        try:
            return self.weights.load()
        except ModelError as error:
            if self.spec.kind != "huggingface":
                raise
            raise ModelError(error.what, f"{error.hint}; {SERVED}") from error

    def usage(self) -> dict[str, float | None]:
        """Seconds and tokens so far, by phase."""
        return {k: n + float(getattr(self._team, k, 0)) for k, n in self._spent.items()}

    def close(self) -> None:
        """Frees the weights: the next model needs the memory."""
        self._spent = {k: n + float(getattr(self._team, k, 0)) for k, n in self._spent.items()}
        if self._team is None:
            return
        from cahl_core.memory import release_memory

        device = self._team.policy.device
        self._team = self._solver = None
        gc.collect()
        release_memory(device)
