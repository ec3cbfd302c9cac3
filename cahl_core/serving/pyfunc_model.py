"""The registered agent as MLflow loads it: planner and executor behind one ``predict``.

MLflow stores this file with the model and runs it at load time (models from code), so nothing is
pickled; the `cahl` package must be installed where the model is loaded. Input: requests in OpenAI's
form, ``{"messages": […], "tools": […]}``, a list of them, or a data frame with these columns.
Output: a list with one answer per request (`serving.openai_form.answer`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from cahl_core.serving.served import ServedAgent, requests_of


class CahlAgent(PythonModel):
    """Loads the weights when MLflow loads the model."""

    def load_context(self, context: PythonModelContext) -> None:
        self._agent = ServedAgent.load(Path(context.artifacts["agent"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,  # what MLflow makes of every form of input
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        return self._agent.predict(requests_of(model_input), params or {})


set_model(CahlAgent())
