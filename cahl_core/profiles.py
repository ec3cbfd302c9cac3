"""Settings from files: ``params.yaml``, a profile, and overrides of the command line.

Later layers win: defaults (`config`) < ``params.yaml`` < ``configs/<profile>.yaml`` < ``--set key=value``.
The shipped files never set the same key in two layers, so a DVC ``-S`` override always takes effect.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cahl_core.config import Settings, validate
from cahl_core.errors import ConfigError


def load_settings(
    root: Path, profile: str | None = None, overrides: tuple[str, ...] = ()
) -> Settings:
    """Merges the layers and validates them.

    Args:
        root: project directory with ``params.yaml`` and ``configs/``.
        profile: overlay name; ``None`` takes the one named in ``params.yaml``.
        overrides: ``section.key=value`` strings, values in YAML.

    Raises:
        ConfigError: unknown key (with the nearest valid ones), bad value, missing profile.
    """
    merged = _read_layer(root / "params.yaml")
    name = profile or str(merged.get("profile", "quickstart"))
    overlay = root / "configs" / f"{name}.yaml"
    if not overlay.exists():
        known = sorted(p.stem for p in (root / "configs").glob("*.yaml"))
        raise ConfigError(
            f"profile '{name}' has no file {overlay}", f"profiles here: {', '.join(known)}"
        )
    _merge(merged, _read_layer(overlay))
    merged["profile"] = name
    for override in overrides:
        _merge(merged, _parse_override(override))
    return validate(merged)


def _read_layer(path: Path) -> dict[str, Any]:
    try:
        layer = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist", "run from the project's directory, or give --root"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if layer is None:
        return {}
    if not isinstance(layer, dict):
        raise ConfigError(f"{path}: top level is {type(layer).__name__}, must be a mapping")
    return layer


def _merge(base: dict[str, Any], layer: dict[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key != "sample":
            _merge(base[key], value)
        else:
            base[key] = value


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text!r} is not section.key=value", "example: --set train.steps=5"
        )
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML: {error}") from error
    if isinstance(tree, str):  # YAML 1.1 reads 1e-4 as text
        with suppress(ValueError):
            tree = float(tree)
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    result: dict[str, Any] = tree
    return result
