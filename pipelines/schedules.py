"""The job that runs every stage, and the schedule that retrains."""

from __future__ import annotations

import dagster as dg

pipeline = dg.define_asset_job(
    "pipeline",
    selection=dg.AssetSelection.all(),
    description="Every stage in order; what DVC finds unchanged is not run again.",
)

retraining = dg.ScheduleDefinition(
    name="retraining",
    job=pipeline,
    cron_schedule="0 3 * * 0",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Sundays at 03:00; retrains where data, code or settings changed.",
)
