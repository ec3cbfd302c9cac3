"""``data/sources.yaml``: what can be fetched, from where, with which checksum and licence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cahl_core.errors import ConfigError, DataError, LicenceError

SOURCES_FILE = Path("data") / "sources.yaml"
ORIGIN_FILE = "SOURCE.yaml"

Use = Literal["research", "commercial"]
Purpose = Literal["train", "evaluate"]
Format = Literal[
    "gguf",
    "safetensors",
    "openai-messages",
    "sharegpt",
    "toolace",
    "xlam",
    "glaive",
    "apigen-mt",
    "toolrl",
    "sgd",
    "taskmaster",
    "api-bank-raw",
    "qa",
    "nestools",
    "seal-tools",
    "mtu-bench",
    "tau-bench",
    "complexfuncbench",
    "nestful",
    "tool-tasks",
    "bfcl",
    "passages",
]

NEEDS = {
    "pypi": ("package", "file", "sha256"),
    "huggingface": ("repo", "revision"),
    "git": ("repo", "revision", "files"),
    "path": ("path",),
}
COMMIT = re.compile(r"[0-9a-f]{40}")
SPAN = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Entry(BaseModel):
    """Base of what sources.yaml holds: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Records(Entry):
    """The same source in ToolTask form, as a mirror may hold it: files below ``MIRROR/<folder>/``."""

    folder: str
    files: dict[str, str]
    format: Format = "tool-tasks"


class Source(Entry):
    """One entry of sources.yaml.

    ``members`` maps files of a wheel to sha256 (without members it is unzipped whole); ``files`` the
    files of a repository, relative to its ``folder``, to sha256 or ``None`` where that is not known.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # it is a folder's name
    kind: Literal["model", "data", "benchmark", "corpus"]
    description: str
    licence: str
    permits: tuple[Use, ...] = Field(("research", "commercial"), min_length=1)
    share_alike: bool = False
    citation: str = ""
    test_only: bool = False
    fetcher: Literal["pypi", "huggingface", "git", "path"]
    format: Format
    package: str | None = None
    file: str | None = None
    sha256: str | None = None
    size: int = 0
    members: dict[str, str] = {}
    repo: str | None = None
    revision: str | None = None
    gated: bool = False
    folder: str = ""
    files: dict[str, str | None] = {}
    path: str | None = None
    records: Records | None = None

    @field_validator("files", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """A plain list means sums that are not known; ``{001..127}`` in a name counts up."""
        named = dict.fromkeys(value) if isinstance(value, list) else value
        if not isinstance(named, Mapping):
            return named
        return {name: total for given, total in named.items() for name in _counted(str(given))}

    @model_validator(mode="after")
    def _fetcher_has_what_it_needs(self) -> Source:
        missing = [key for key in NEEDS[self.fetcher] if not getattr(self, key)]
        if missing:
            raise ValueError(f"fetcher '{self.fetcher}' needs {', '.join(missing)}")
        if self.file is not None and Path(self.file).name != self.file:
            raise ValueError(f"file must be a bare file name, got '{self.file}'")
        if self.fetcher == "git" and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(f"revision must be a commit of 40 hex digits, got '{self.revision}'")
        records = self.records or Records(folder="", files={})
        inside = [self.folder, *self.files, records.folder, *records.files]
        for name in inside:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"'{name}' must stay inside the source's folder")
        return self

    @property
    def origin(self) -> str:
        """Where the source comes from, in words: fetcher, package or repository, revision."""
        if self.fetcher == "path":
            return f"path {self.path}"
        if self.fetcher == "pypi":
            return f"PyPI {self.package}"
        place = {"git": "GitHub", "huggingface": "Hugging Face"}[self.fetcher]
        return f"{place} {self.repo} @ {self.revision}"


def _counted(name: str) -> list[str]:
    span = SPAN.search(name)
    if span is None:
        return [name]
    first, last = span.groups()
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [name[: span.start()] + number + name[span.end() :] for number in numbers]


@dataclass(frozen=True, slots=True)
class Origin:
    """What ``data/raw/<source>/`` holds: upstream's files, or records in ToolTask form."""

    source: str
    form: Literal["upstream", "records"]
    format: str
    licence: str = ""
    citation: str = ""
    revision: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def to_yaml(self) -> str:
        """The text of SOURCE.yaml: no times, no absolute paths, files by name."""
        body = {
            "source": self.source,
            "form": self.form,
            "format": self.format,
            "licence": self.licence,
            "citation": self.citation,
            "revision": self.revision,
            "files": dict(sorted(self.files.items())),
        }
        return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=1000)


def read_origin(folder: Path, declared: Source | None = None) -> Origin:
    """What a folder below ``data/raw`` holds.

    A folder without SOURCE.yaml comes from an older fetch: upstream's files in the format that
    ``declared`` (else the entry of the project around the folder) says.

    Raises:
        DataError: SOURCE.yaml does not have its form. ConfigError: no entry for the folder.
    """
    path = folder / ORIGIN_FILE
    if not path.is_file():
        source = declared or pick(load_sources(folder.absolute().parents[2]), folder.name)
        return Origin(source.name, "upstream", source.format, source.licence, source.citation)
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        if body["form"] not in ("upstream", "records"):
            raise ValueError(f"form '{body['form']}' is not upstream or records")
        files = {str(name): str(total) for name, total in (body["files"] or {}).items()}
        said = {key: str(body.get(key) or "") for key in ("licence", "citation", "revision")}
        return Origin(str(body["source"]), body["form"], str(body["format"]), files=files, **said)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} does not have the form that `cahl fetch` writes: {error}",
            f"fetch the source again: cahl data fetch {folder.name}",
        ) from error


def require_use(source: Source, use: Use, purpose: Purpose) -> None:
    """Raises `LicenceError` unless the source may serve ``use`` and ``purpose``."""
    asked = f"{'training' if purpose == 'train' else 'evaluation'} for {use} use"
    if use not in source.permits:
        raise LicenceError(
            f"source '{source.name}' has licence {source.licence}, which permits "
            f"{' and '.join(source.permits)} use only; asked for: {asked}",
            f"take '{source.name}' out of fetch.sources and prepare.sources, or set fetch.use to "
            f"{' or '.join(source.permits)} where that is what you do",
        )
    if source.test_only and purpose == "train":
        raise LicenceError(
            f"source '{source.name}' (licence {source.licence}) is a test set, kept for evaluation; "
            f"asked for: {asked}",
            f"take '{source.name}' out of prepare.sources; prepare.decontaminate may name it",
        )


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


def pick(sources: dict[str, Source], name: str, kinds: tuple[str, ...] = ()) -> Source:
    """The entry ``name`` of one of ``kinds`` (of any without); else a `ConfigError` with the choices."""
    allowed = sorted(n for n, s in sources.items() if not kinds or s.kind in kinds)
    if name in allowed:
        return sources[name]
    near = difflib.get_close_matches(name, allowed, n=1)
    raise ConfigError(
        f"source '{name}' is not a {' or '.join(kinds) or 'known'} source of {SOURCES_FILE}",
        f"did you mean '{near[0]}'? " * bool(near) + f"sources there: {', '.join(allowed)}",
    )
