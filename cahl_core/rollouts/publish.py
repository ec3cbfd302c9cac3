"""Adapters for servers to load: one directory per version, there as a whole or not at all.

A name stands for the same bytes for ever (it carries their digest), so a server that several runs
share, or that outlived a run, can never sample with somebody else's adapter of the same name.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cahl_core.errors import ConfigError
from cahl_core.files import atomic_dir, read_json, tree_digest, write_json
from cahl_core.policy.team import Team
from cahl_core.roles import Role

MANIFEST = "published.json"


@dataclass(frozen=True, slots=True)
class Published:
    """The adapters of one version.

    Attributes:
        version: updates behind these weights.
        names: what each role's adapter is called on the servers.
        paths: where each of these names lies, as the servers see it.
    """

    version: int
    names: Mapping[Role, str]
    paths: Mapping[str, str]


class Publisher:
    """Writes versions below ``folder`` and reads them back.

    Args:
        there: the same directory as the servers see it.

    Raises:
        ConfigError: the roles are not played by adapters.
    """

    def __init__(self, team: Team, folder: Path, there: str | None = None) -> None:
        if any(member.adapter is None for member in team.members.values()):
            raise ConfigError(
                "rollout servers load adapters, and model.weights=two_models has none",
                "model.weights=two_adapters or shared_adapter, or no train.rollouts.servers",
            )
        self.team = team
        self.folder = folder
        self._there = PurePosixPath(there or folder.absolute())
        self._adapters: dict[Role, str] = {
            role: str(member.adapter) for role, member in team.members.items()
        }

    def write(self, version: int) -> None:
        """Saves the current weights as ``version``, over what a run that was cut off left of it."""
        with atomic_dir(self.folder / _name(version)) as temporary:
            digests: dict[str, str] = {}
            for role, adapter in self._adapters.items():
                if adapter not in digests:
                    policy = self.team.members[role].policy
                    policy.save_adapter(adapter, temporary / adapter)
                    digests[adapter] = tree_digest(temporary / adapter)[:12]
            write_json(temporary / MANIFEST, {"version": version, "digests": digests})

    def read(self, version: int) -> Published | None:
        """What `write` left, by this process or another; ``None`` if it is not there."""
        manifest = self.folder / _name(version) / MANIFEST
        if not manifest.exists():
            return None
        digests = read_json(manifest)["digests"]
        served = {adapter: f"{adapter}-v{version}-{digest}" for adapter, digest in digests.items()}
        place = self._there / _name(version)
        return Published(
            version,
            {role: served[adapter] for role, adapter in self._adapters.items()},
            {served[adapter]: str(place / adapter) for adapter in digests},
        )

    def keep(self, versions: Collection[int], since: int) -> None:
        """Removes the versions before ``since`` that are not among ``versions``."""
        for path in self.folder.glob("v*"):
            number = path.name.removeprefix("v")
            if number.isdigit() and int(number) < since and int(number) not in versions:
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Removes all versions."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def owns(self, path: str) -> bool:
        """Whether a server's adapter lies below our directory."""
        return PurePosixPath(path).is_relative_to(self._there)


def _name(version: int) -> str:
    return f"v{version:06d}"
