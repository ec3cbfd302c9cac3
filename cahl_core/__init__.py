"""CAHL: train a planner and an executor together for tool use.

The package imports nothing heavy at module level: torch, transformers, mlflow and
great_expectations load only inside the stages that need them.
"""

__version__ = "0.1.0"
