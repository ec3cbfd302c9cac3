"""Where the weights of a local model are: the project, a folder, the hub, or the registry.

Nothing is loaded here, but what is missing is found: a download happens, folders are looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import ModelSettings, Settings
from cahl_core.errors import ConfigError, ModelError, SourceError, StageInputError
from cahl_core.evaluation.model_keys import folder_digest
from cahl_core.evaluation.models_spec import HuggingFaceOptions, ModelSpec
from cahl_core.files import read_json
from cahl_core.roles import roles_of
from cahl_core.serving.served import CARD, stored_team
from cahl_core.train_config import Form

if TYPE_CHECKING:
    from cahl_core.policy.team import Team

ADAPTERS = {"base": None, "sft": Path("models/sft"), "cahl": Path("models/cahl")}
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
UNWANTED = ("original/*", "onnx/*", "consolidated*")  # the same weights in other layouts


@dataclass(frozen=True, slots=True)
class Weights:
    """One model's weights, not loaded yet.

    Attributes:
        settings: of the model: form, prompts, context.
        load: gives the roles.
        digest: of all files, as JSON; part of the model's key.
        facts: where they come from, for reports; no paths of this machine.
        bare: no adapters: every role is the backbone.
    """

    settings: ModelSettings
    load: Callable[[], Team]
    digest: Any
    facts: Mapping[str, Any]
    bare: bool


def find_weights(spec: ModelSpec, settings: Settings, root: Path) -> Weights:
    """The weights of a model of the kinds ``project``, ``huggingface`` and ``registry``.

    Raises:
        StageInputError, ModelError, RegistryError, SourceError: they are not there, with what to do.
    """
    if spec.kind == "project":
        return _project(spec.place, settings, root)
    if spec.kind == "registry":
        return _registered(spec.place, settings, root)
    return _huggingface(spec, settings, root)


def _project(name: str, settings: Settings, root: Path) -> Weights:
    folder, backbone = ADAPTERS[name], root / "data/backbone"
    _check_model(backbone, "run: cahl fetch")
    adapters = None if folder is None else root / folder
    if adapters is not None:
        missing = _without_weights(adapters, settings.model.form)
        if missing:
            raise StageInputError(
                f"{adapters} holds no {' and no '.join(missing)}",
                f"run: cahl {'sft' if name == 'sft' else 'train'}",
            )
    return _weights(backbone, adapters, settings.model, {"backbone": settings.model.backbone})


def _huggingface(spec: ModelSpec, settings: Settings, root: Path) -> Weights:
    options = spec.options
    assert isinstance(options, HuggingFaceOptions)
    local = _existing(spec.place, root)
    if local is not None and options.revision:
        raise ConfigError(
            f"hf:{spec.place} is a folder here and has no revision '{options.revision}'",
            "leave the revision out, or rename the folder to mean the hub's model",
        )
    folder = local or hub_folder(spec.place, options.revision)
    _check_model(folder, "name the folder that holds config.json and *.safetensors")
    # a hub snapshot's folder is named by its commit, whose files never change
    name = folder.name if local else spec.place
    facts = {"backbone": name, "revision": None if local else folder.name}
    adapters = _adapters(options, root)
    model = _settings(options, adapters, folder, name, settings.model)
    identity = None if local else [spec.place, folder.name]
    return _weights(folder, adapters, model, facts, identity)


def _registered(address: str, settings: Settings, root: Path) -> Weights:
    from cahl_core.serving.backbone_pointer import backbone_below
    from cahl_core.serving.registry import agent_files

    found = agent_files(root, settings, address)
    card = read_json(found.folder / CARD)
    model = ModelSettings.model_validate(card["model"])

    def load() -> Team:
        with backbone_below(root):
            return stored_team(found.folder, card, model)

    facts = {
        "backbone": model.backbone,
        "revision": f"{found.name} version {found.version}",
        "merged": card["merged"],
    }
    weights = [folder_digest(found.folder), card["backbone"]["sha256"]]
    return Weights(model, load, weights, facts, bare=False)


def _weights(
    backbone: Path,
    adapters: Path | None,
    model: ModelSettings,
    facts: Mapping[str, Any],
    identity: Any = None,
) -> Weights:
    def load() -> Team:
        from cahl_core.policy.team import load_team

        return load_team(backbone, adapters, model)

    weights = [
        folder_digest(backbone) if identity is None else identity,
        None if adapters is None else folder_digest(adapters),
    ]
    facts = {**facts, "adapters": weights[1]}
    return Weights(model, load, weights, facts, bare=adapters is None)


def _adapters(options: HuggingFaceOptions, root: Path) -> Path | None:
    if options.adapters is None:
        return None
    folder = _existing(options.adapters, root)
    if folder is None:
        raise ModelError(
            f"adapters={options.adapters} is not a folder",
            "give one below the project, or absolute",
        )
    form = _form(options, folder)
    if missing := _without_weights(folder, form):
        raise ModelError(
            f"{folder} holds no {' and no '.join(missing)} for the form {form}",
            "each role's adapter is in a folder of its name, as `cahl train` writes them",
        )
    return folder


def _form(options: HuggingFaceOptions, adapters: Path | None) -> Form:
    if options.form is not None:
        return options.form
    planned = adapters is not None and (adapters / "planner").is_dir()
    return "hierarchical" if planned else "low_only"


def _settings(
    options: HuggingFaceOptions,
    adapters: Path | None,
    folder: Path,
    name: str,
    project: ModelSettings,
) -> ModelSettings:
    """The project's settings with what the options say; the context is at most the model's own."""
    longest = _context(folder)
    wanted = options.max_context or project.max_context
    if options.max_context and longest and options.max_context > longest:
        raise ConfigError(
            f"max_context={wanted}, but {name} has {longest}", f"give at most {longest}"
        )
    given = {
        "dtype": options.dtype,
        "tool_rendering": options.tool_rendering,
        "max_context": min(wanted, longest or wanted),
        "backbone": name,
        "form": _form(options, adapters),
    }
    update = {key: value for key, value in given.items() if value is not None}
    return project.model_copy(update=update)


def _context(folder: Path) -> int | None:
    """Positions that the model knows, where its config says so."""
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def _existing(place: str, root: Path) -> Path | None:
    """The folder that is meant, below the project or absolute; ``None`` if there is none."""
    folder = root / Path(place).expanduser()
    return folder if folder.is_dir() else None


def _check_model(folder: Path, advice: str) -> None:
    if not (folder / "config.json").exists():
        raise ModelError(f"no model in {folder} (config.json is missing)", advice)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"no *.safetensors in {folder}",
            "only this format is read; convert others with transformers' save_pretrained",
        )


def _without_weights(folder: Path, form: Form) -> list[str]:
    """Roles of the form that have neither adapter nor whole model in ``folder``."""
    files = ("adapter_config.json", "config.json")
    return [r for r in roles_of(form) if not any((folder / r / f).exists() for f in files)]


def hub_folder(repo: str, revision: str | None) -> Path:
    """The hub's files of a model in the user's cache; the folder's name is the commit.

    Without a network what is in the cache is used.

    Raises:
        SourceError: it does not exist, needs the terms accepted, or cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except HFValidationError as error:
        raise SourceError(
            f"'{repo}' is neither a folder nor the id of a model", "write hf:ORGANISATION/NAME"
        ) from error
    except Exception as error:  # the hub raises its own, the HTTP client's and OS errors
        raise _unreachable(repo, revision, error) from error
    return Path(found)


def _unreachable(repo: str, revision: str | None, error: Exception) -> SourceError:
    kind = type(error).__name__
    wanted = f"{repo}@{revision}" if revision else repo
    download = f"hf download {wanted.replace('@', ' --revision ')} --local-dir DIR, then hf:DIR"
    if kind == "GatedRepoError":
        return SourceError(
            f"{wanted}: its owners want their terms accepted first",
            f"accept them on the model's page and set HF_TOKEN; or {download}",
        )
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        missing = "model" if kind.startswith("Repo") else "revision"
        return SourceError(
            f"{wanted}: the hub has no such {missing}, or it is private",
            "correct the name, set HF_TOKEN, or name a folder: hf:DIR",
        )
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return SourceError(
            f"{wanted}: not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)",
            f"where there is a network: {download}",
        )
    reason = (str(error).strip().splitlines() or [kind])[0]
    return SourceError(f"{wanted} cannot be had: {kind}: {reason}", download)
