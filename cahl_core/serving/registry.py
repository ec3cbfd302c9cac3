"""Loading a registered model, with errors that say what the registry does hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import RegistryError
from cahl_core.serving.backbone_pointer import backbone_below
from cahl_core.tracking import registry_errors, tracking_uri

ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>.+)|/(?P<version>.+))")


def load_agent(root: Path, settings: Settings, address: str) -> Any:
    """The pyfunc model at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        RegistryError: no such model, alias or version; the message lists those that exist.
        ModelError: its backbone is missing or another one.
    """
    import mlflow

    uri = tracking_uri(root, settings)
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise RegistryError(
            f"'{address}' is not a model address",
            "write models:/NAME@ALIAS or models:/NAME/VERSION",
        )
    with backbone_below(root), registry_errors(uri):
        mlflow.set_tracking_uri(uri)
        _check(mlflow.MlflowClient(uri), match["name"], match["alias"], match["version"], uri)
        return mlflow.pyfunc.load_model(address)


def _check(client: Any, name: str, alias: str | None, version: str | None, uri: str) -> None:
    models = {m.name: m for m in client.search_registered_models()}
    if name not in models:
        raise RegistryError(
            f"no registered model '{name}' at {uri}; there: {', '.join(sorted(models)) or 'none'}",
            "register one: cahl register",
        )
    versions = sorted(
        (v.version for v in client.search_model_versions(f"name='{name}'")), key=lambda v: int(v)
    )
    aliases = client.get_registered_model(name).aliases
    if (alias is not None and alias not in aliases) or (
        version is not None and version not in map(str, versions)
    ):
        wanted = f"alias '{alias}'" if alias is not None else f"version '{version}'"
        known = ", ".join(f"@{a} → {v}" for a, v in sorted(aliases.items())) or "none"
        raise RegistryError(
            f"model '{name}' has no {wanted}; versions: {', '.join(map(str, versions)) or 'none'}; "
            f"aliases: {known}",
            "register one: cahl register",
        )
