"""Dagster's view of the pipeline: everything here is derived from ``dvc.yaml``."""
