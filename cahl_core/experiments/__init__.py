"""``cahl experiment``: a declared grid of arms, seeds and settings (docs/experiments.md)."""
