"""Stage ``register``: the trained agent as an MLflow model with its evaluation; the alias moves.

The model is code (`pyfunc_model.py`) plus either the adapters of its form's roles and a pointer to the
backbone, or whole weights per role (``register.merged``, and always where ``model.weights`` is
``two_models``). ``reports/registration.json`` says what was registered; version and run ids are in the
stage's metadata, since they differ between equal runs.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.errors import StageInputError
from cahl_core.evaluation.metrics_file import flat
from cahl_core.files import read_json, tree_digest, write_json
from cahl_core.roles import roles_of
from cahl_core.serving.backbone_pointer import backbone_below, weights_digest
from cahl_core.serving.openai_form import parse_request
from cahl_core.serving.served import CARD, ServedAgent, card
from cahl_core.stage import StageRun
from cahl_core.tracking import Tracker, registry_errors, tracking_uri

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MODEL_FILE = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS = ("cahl", "mlflow", "torch", "transformers", "peft", "safetensors")
EXAMPLE = {
    "messages": [{"role": "user", "content": "What is the weather in Lisbon?"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Current weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "description": "Name of the city."}},
                    "required": ["city"],
                },
            },
        }
    ],
}
EXAMPLE_PARAMS = {"temperature": 0.0, "max_tokens": 16}  # enough to see that it answers


def run(stage: StageRun) -> None:
    """Registers ``models/cahl`` under ``register.name`` and sets ``register.alias``.

    Raises:
        StageInputError: adapters or evaluation are missing.
        RegistryError: MLflow cannot be reached or refuses.
    """
    root, settings = stage.root, stage.settings
    metrics = _evaluation(root)
    uri = tracking_uri(root, settings)
    with (
        tempfile.TemporaryDirectory(prefix="cahl-register-") as scratch,
        backbone_below(root),
    ):
        folder = Path(scratch) / "agent"
        with stage.phase("collect"):
            written = collect(stage, folder)
        with stage.phase("try"):
            ServedAgent.load(folder).predict([parse_request(EXAMPLE)], EXAMPLE_PARAMS)
        with stage.phase("log"), registry_errors(uri), _active_run(stage):
            version, model_id = _log(stage, folder, metrics, written)
    report = {
        "name": settings.register_.name,
        "alias": settings.register_.alias,
        "merged": written["merged"],
        "form": settings.model.form,
        "adapters": {
            role: tree_digest(root / "models/cahl" / role) for role in roles_of(settings.model.form)
        },
        "backbone": written["backbone"],
        "evaluation": metrics,
    }
    write_json(root / "reports/registration.json", report)
    address = f"models:/{settings.register_.name}@{settings.register_.alias}"
    stage.log(f"{address} is version {version}")
    stage.metadata(model=address, version=int(version), model_id=model_id, **metrics)


def collect(stage: StageRun, folder: Path) -> dict[str, Any]:
    """Writes what the model consists of into ``folder``; returns its card."""
    root, settings = stage.root, stage.settings
    trained, backbone = root / "models/cahl", root / "data/backbone"
    roles = roles_of(settings.model.form)
    whole = all((trained / role / "config.json").exists() for role in roles)
    for role in roles:
        if not whole and not (trained / role / "adapter_config.json").exists():
            raise StageInputError(f"{trained / role} holds no adapter", "run: cahl train")
        if settings.register_.merged and not whole:
            merge(backbone, trained / role, settings.model, folder / role)
        else:
            shutil.copytree(trained / role, folder / role)
    written = card(
        settings.model,
        weights_digest(backbone),
        merged=settings.register_.merged or whole,
        plan_tokens=settings.evaluate.plan_tokens,
        call_tokens=settings.evaluate.call_tokens,
    )
    write_json(folder / CARD, written)
    return written


def merge(backbone: Path, adapter: Path, settings: Any, target: Path) -> None:
    """Writes backbone plus adapter as one whole model with its tokenizer.

    The sums are made in float32 and stored in the backbone's type, so logits differ from those of
    the unmerged model by its rounding.
    """
    from cahl_core.policy.backbone import Policy

    whole = settings.model_copy(update={"dtype": "float32"})
    policy = Policy.load(backbone, None, whole)
    stored = policy.model.config.dtype
    policy.add_adapter("merged", adapter)
    model = policy.model.merge_and_unload()
    kept = read_json(backbone / "config.json")
    name = kept.get("dtype") or kept.get("torch_dtype") or str(stored).removeprefix("torch.")
    import torch

    model.to(getattr(torch, name)).save_pretrained(str(target))
    policy.tokenizer.save_pretrained(str(target))


def _evaluation(root: Path) -> dict[str, float]:
    path = root / "metrics/evaluate.json"
    if not path.exists():
        raise StageInputError(f"{path} does not exist", "run: cahl evaluate")
    return flat(read_json(path).get("cahl") or {})


@contextmanager
def _active_run(stage: StageRun) -> Iterator[None]:
    """The stage's MLflow run, or one of our own where the stage was started without tracking."""
    if stage.mlflow_run_id is not None:
        yield
        return
    tracker = Tracker(stage.root, stage.settings)
    tracker.start(stage.name, None, {}, {})
    try:
        yield
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end("FINISHED")


def _log(
    stage: StageRun, folder: Path, metrics: dict[str, float], written: dict[str, Any]
) -> tuple[str, str]:
    """Logs, registers, attaches the metrics, and moves the alias last."""
    import mlflow

    settings = stage.settings.register_
    for name in ("mlflow.models.model", "mlflow.utils.requirements_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    info = mlflow.pyfunc.log_model(
        name=settings.name,
        python_model=str(MODEL_FILE),
        artifacts={"agent": str(folder)},
        registered_model_name=settings.name,
        signature=signature(),
        input_example=(EXAMPLE, EXAMPLE_PARAMS),
        pip_requirements=requirements(),
        metadata={
            "backbone": written["backbone"],
            "merged": written["merged"],
            "form": written["model"]["form"],
        },
    )
    client = mlflow.MlflowClient()
    mlflow.log_metrics(metrics, model_id=info.model_id)
    version = str(info.registered_model_version)
    client.set_model_version_tag(settings.name, version, "backbone", written["backbone"]["name"])
    client.set_registered_model_alias(settings.name, settings.alias, version)
    return version, str(info.model_id)


def signature() -> ModelSignature:
    """Messages and tools are free-form JSON to MLflow; `openai_form` checks their form."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    anything = AnyType()
    inputs = Schema(
        [
            # an array, so that MLflow takes a lone request for one row and not for a table
            ColSpec(Array(anything), "messages"),
            ColSpec(anything, "tools", required=False),
        ]
    )
    outputs = Schema([ColSpec(anything, key) for key in ("plan", "tool_calls", "content")])
    params = ParamSchema(
        [ParamSpec("temperature", "double", 0.0), ParamSpec("max_tokens", "integer", 0)]
    )
    return ModelSignature(inputs=inputs, outputs=outputs, params=params)


def requirements() -> list[str]:
    """What must be installed to load the model, at the versions it was made with."""
    versions = {name: importlib.metadata.version(name) for name in REQUIREMENTS}
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
