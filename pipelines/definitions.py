"""Entry point of the code location."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from pipelines.assets import stage_assets
from pipelines.checks import prepared_data_checks
from pipelines.resources import project_root, resources
from pipelines.schedules import pipeline, retraining


def build_definitions(root: Path) -> dg.Definitions:
    """Everything Dagster shows of the project in ``root``."""
    return dg.Definitions(
        assets=stage_assets(root),
        asset_checks=[prepared_data_checks(root)],
        jobs=[pipeline],
        schedules=[retraining],
        resources=resources(root),
    )


defs = build_definitions(project_root())
