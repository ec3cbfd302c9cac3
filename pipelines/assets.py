"""Assets derived from ``dvc.yaml``: one per stage, which runs ``dvc repro --single-item STAGE``.

A stage that DVC finds up to date is not run again and still materializes, with the same data
version: the md5 sums of ``dvc.lock``.
"""

# Dagster reads the annotations of the asset function, so they stay objects here.
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from cahl_core.files import digest, tree_digest
from cahl_core.lineage import DvcStage, read_stages, upstream
from cahl_core.stage_record import last_record, sidecar
from pipelines.reporting import as_metadata, data_version, stage_metadata
from pipelines.resources import StageClient, StageFailedError, dvc


def stage_assets(root: Path) -> list[dg.AssetsDefinition]:
    """One asset per stage of ``root/dvc.yaml``."""
    stages = read_stages(root)
    return [_asset(stage, stages, root) for stage in stages.values()]


def code_version(stage: DvcStage, root: Path) -> str:
    """Digest of what decides a stage's result besides its data: command, code, settings."""
    code = {path: tree_digest(root / path) for path in stage.code if (root / path).exists()}
    settings = {
        f"{file}:{key}": _value(root / file, key)
        for file, keys in stage.params.items()
        for key in keys
    }
    return digest({"cmd": stage.cmd, "code": code, "settings": settings})


def _asset(stage: DvcStage, stages: Mapping[str, DvcStage], root: Path) -> dg.AssetsDefinition:
    @dg.asset(
        name=stage.name,
        deps=upstream(stage, stages),
        description=stage.description,
        group_name=stage.meta.get("group"),
        kinds=set(stage.meta.get("kinds", ())),
        pool=stage.meta.get("pool"),
        code_version=code_version(stage, root),
        metadata={"cmd": stage.cmd, "outs": dg.MetadataValue.json(list(stage.products))},
    )
    def run_stage(
        context: dg.AssetExecutionContext, stage_client: dg.ResourceParam[StageClient]
    ) -> dg.MaterializeResult[Any]:
        return _materialize(stage, root, context, stage_client)

    return run_stage


def _materialize(
    stage: DvcStage, root: Path, context: dg.AssetExecutionContext, client: StageClient
) -> dg.MaterializeResult[Any]:
    started = time.time()
    command = dvc("repro", "--quiet", "--single-item", stage.name)
    try:
        invocation = client.run_stage(command, context)
    except StageFailedError as error:
        raise _failure(stage, root, started, error) from error
    reran = _touched_since(sidecar(root, stage.name), started)
    if not reran:
        print(f"[{stage.name}] nothing changed, the earlier result stands", file=sys.stderr)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(data_version(stage, root)),
        metadata=stage_metadata(stage, root) | _reported(invocation) | {"ran": reran},
    )


def _failure(stage: DvcStage, root: Path, started: float, error: Exception) -> dg.Failure:
    """The stage's own sentence where it left one; else DVC failed, and said why on the terminal."""
    record = last_record(root, stage.name)
    if _touched_since(sidecar(root, stage.name), started) and "error" in record:
        metadata = {}
        if "mlflow" in record:
            metadata["mlflow_run"] = dg.MetadataValue.url(record["mlflow"]["url"])
        return dg.Failure(f"{stage.name}: {record['error']}", metadata, allow_retries=False)
    return dg.Failure(
        f"{stage.name}: dvc repro --single-item {stage.name} failed before the stage began "
        f"({error}); its message is in the step's output",
        allow_retries=False,
    )


def _reported(invocation: dg.PipesClientCompletedInvocation) -> dict[str, Any]:
    """Metadata the stage sent through Pipes; none where DVC skipped it."""
    shown: dict[str, Any] = {}
    for result in invocation.get_results(implicit_materializations=False):
        if isinstance(result, dg.MaterializeResult):
            shown |= result.metadata or {}
    return {key: as_metadata(getattr(value, "value", value)) for key, value in shown.items()}


def _touched_since(path: Path, moment: float) -> bool:
    return path.exists() and path.stat().st_mtime >= moment


def _value(path: Path, key: str) -> Any:
    found: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
