"""Loading a registered model, or its files, with errors that say what the registry does hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import RegistryError
from cahl_core.files import atomic_dir, digest
from cahl_core.serving.backbone_pointer import backbone_below
from cahl_core.serving.served import CARD
from cahl_core.tracking import registry_errors, tracking_uri

ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>.+)|/(?P<version>.+))")


AGENT_FILES = "artifacts/agent"  # where MLflow puts what `register` calls "agent"


@dataclass(frozen=True, slots=True)
class Registered:
    """One version of a registered agent, as files.

    Attributes:
        folder: with ``agent.json`` and the weights of the roles.
    """

    name: str
    version: str
    folder: Path


def load_agent(root: Path, settings: Settings, address: str) -> Any:
    """The pyfunc model at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        RegistryError: no such model, alias or version; the message lists those that exist.
        ModelError: its backbone is missing or another one.
    """
    import mlflow

    uri = tracking_uri(root, settings)
    match = _parsed(address)
    with backbone_below(root), registry_errors(uri):
        mlflow.set_tracking_uri(uri)
        _check(mlflow.MlflowClient(uri), match["name"], match["alias"], match["version"], uri)
        return mlflow.pyfunc.load_model(address)


def agent_files(root: Path, settings: Settings, address: str) -> Registered:
    """The files of a registered agent, downloaded once into ``.cahl/registered``.

    Raises:
        RegistryError: no such model, alias or version, or it is not an agent of this program.
    """
    import mlflow

    uri = tracking_uri(root, settings)
    match = _parsed(address)
    with registry_errors(uri):
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient(uri)
        name, alias, version = match["name"], match["alias"], match["version"]
        _check(client, name, alias, version, uri)
        found = (
            client.get_model_version(name, version)
            if alias is None
            else client.get_model_version_by_alias(name, alias)
        )
        version = str(found.version)
        # versions are numbered anew in another registry, so their origin is in the name too
        kept = root / ".cahl/registered" / digest([uri, name, version, found.source])
        if not kept.exists():
            with atomic_dir(kept) as folder:
                mlflow.artifacts.download_artifacts(
                    f"models:/{name}/{version}", dst_path=str(folder)
                )
    if not (kept / AGENT_FILES / CARD).exists():
        raise RegistryError(
            f"{address} is not an agent that `cahl register` made (no {AGENT_FILES}/{CARD})",
            "evaluate its weights as hf:FOLDER, or behind a server",
        )
    return Registered(name, version, kept / AGENT_FILES)


def _parsed(address: str) -> re.Match[str]:
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise RegistryError(
            f"'{address}' is not a model address",
            "write models:/NAME@ALIAS or models:/NAME/VERSION",
        )
    return match


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
