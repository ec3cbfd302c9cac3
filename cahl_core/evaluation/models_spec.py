"""How a model to be evaluated is named, in settings and on the command line.

    base | sft | cahl                          the project's backbone, and its adapters
    hf:ID-OR-FOLDER[@REVISION][?OPTIONS]       a Hugging Face model, from the hub or a folder
    models:/NAME@ALIAS | models:/NAME/VERSION  a model of the MLflow registry
    http(s)://HOST[/…/v1][?OPTIONS]            a server with OpenAI's chat completions

OPTIONS are ``key=value`` joined by ``&``, percent-encoded where a value holds one of these. A name for
the report stands in front (``NAME=MODEL``) or among the options (``label=NAME``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError

from cahl_core.errors import ConfigError
from cahl_core.train_config import Form, Positive, Section

T = TypeVar("T", bound=Section)
Kind = Literal["project", "huggingface", "registry", "endpoint"]
EndpointForm = Literal["native", "low_only", "single_level", "hierarchical"]
PROJECT = ("base", "sft", "cahl")
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
NAMED = re.compile(r"(?P<label>[^=:/?]*)=(?P<model>.+)", re.DOTALL)
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
ALLOWED = (
    "allowed: base, sft, cahl, hf:ID-OR-FOLDER[@REVISION], models:/NAME@ALIAS, models:/NAME/VERSION, "
    "http(s)://HOST/v1"
)


class HuggingFaceOptions(Section):
    """What may follow ``hf:…?``. What is not said is as the project's ``model`` settings say it.

    Attributes:
        form: default ``low_only``, or ``hierarchical`` where ``adapters`` holds a planner.
        adapters: folder with an adapter per role (planner, executor), below the project or absolute.
    """

    form: Form | None = None
    adapters: str | None = None
    revision: str | None = None
    max_context: Positive | None = None
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    tool_rendering: Literal["compact", "json"] | None = None


class EndpointOptions(Section):
    """What may follow a URL.

    Attributes:
        model: as the server calls it; needed unless it serves one only.
        form: ``native``: the server's own tool calling; the others: our prompts as chat messages.
        key_env: environment variable that holds the API key.
        concurrency: requests at a time.
        timeout, give_up_after: seconds for one answer, and without any after which the run ends.
        thinking: ``off`` asks for ``enable_thinking=false`` in the chat template (vLLM, SGLang).
        max_tokens_field: name of the bound on generated tokens in the request.
        omit: fields that the server refuses, such as ``stop,temperature``.
    """

    model: str | None = None
    form: EndpointForm = "native"
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    concurrency: Positive = 8
    timeout: Positive = 600
    give_up_after: Positive = 300
    thinking: Literal["server", "off"] = "server"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    omit: str = ""

    @property
    def omitted(self) -> tuple[str, ...]:
        return tuple(filter(None, (name.strip() for name in self.omit.split(","))))


Options = HuggingFaceOptions | EndpointOptions


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as it was named.

    Attributes:
        place: ``base``, ``sft``, ``cahl``; hub id or folder; registry address; URL.
        label: unique short name that may be a file's.
        options: of Hugging Face models and endpoints.
    """

    kind: Kind
    place: str
    label: str
    options: Options | None = None


def parse_models(texts: Sequence[str]) -> list[ModelSpec]:
    """`parse_model` of each.

    Raises:
        ConfigError: also where two have one label.
    """
    specs: dict[str, tuple[str, ModelSpec]] = {}
    for text in texts:
        spec = parse_model(text)
        if spec.label.casefold() in specs:
            other = specs[spec.label.casefold()][0]
            raise ConfigError(
                f"models '{other}' and '{text}' have one name: {spec.label}",
                f"name one of them: NAME={text}",
            )
        specs[spec.label.casefold()] = (text, spec)
    return [spec for _, spec in specs.values()]


def parse_model(text: str) -> ModelSpec:
    """Reads one model's name; nothing is opened.

    >>> parse_model("hf:org/Some-1B@main?form=single_level").label
    'Some-1B-main-single_level'
    >>> parse_model("mine=models:/cahl-agent@champion").label
    'mine'

    Raises:
        ConfigError: says what is allowed.
    """
    given, text = _named(text.strip())
    if text in PROJECT:
        spec = ModelSpec("project", text, given or text)
    elif text.startswith("hf:"):
        spec = _huggingface(text, given)
    elif text.startswith("models:"):
        spec = _registered(text, given)
    elif text.startswith(("http://", "https://")):
        spec = _endpoint(text, given)
    else:
        raise ConfigError(f"'{text}' names no model", ALLOWED)
    if spec.label.casefold() in PROJECT and spec.place != spec.label:
        raise ConfigError(
            f"'{spec.label}' is the project's own model", f"{text} needs another name"
        )
    return spec


def _named(text: str) -> tuple[str | None, str]:
    match = NAMED.fullmatch(text)
    return (_safe_label(match["label"]), match["model"]) if match else (None, text)


def _safe_label(label: str) -> str:
    if not LABEL.fullmatch(label):
        raise ConfigError(
            f"'{label}' cannot name a model in reports and files",
            "use letters, digits, '.', '_' and '-', at most 80: NAME=MODEL",
        )
    return label


def _huggingface(text: str, given: str | None) -> ModelSpec:
    place, pairs = _split(text.removeprefix("hf:"))
    name, at, revision = place.rpartition("@")
    if at and "/" not in revision:
        place = name
        if "revision" in pairs:
            raise ConfigError(f"{text}: the revision is given twice", "keep @REVISION or revision=")
        pairs["revision"] = revision
    if not place or pairs.get("revision") == "":
        raise ConfigError(f"'{text}' names no model", "write hf:ORGANISATION/NAME or hf:FOLDER")
    label = _label(pairs, given, text)
    options = _options(HuggingFaceOptions, pairs, text)
    parts = [place.rstrip("/").rpartition("/")[2]]
    parts += [str(v) for k, v in pairs.items() if k in ("revision", "form")]
    parts += [pairs["adapters"].rstrip("/").rpartition("/")[2]] if "adapters" in pairs else []
    return ModelSpec("huggingface", place, label or _safe(parts), options)


def _registered(text: str, given: str | None) -> ModelSpec:
    place, pairs = _split(text)
    label = _label(pairs, given, text)
    if pairs:
        raise ConfigError(f"{text}: '{next(iter(pairs))}' is no option here", "allowed: label")
    match = REGISTERED.fullmatch(place)
    if match is None:
        raise ConfigError(
            f"'{place}' is not a model address", "write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    which = match["alias"] or f"v{match['version']}"
    return ModelSpec("registry", place, label or _safe([match["name"], which]))


def _endpoint(text: str, given: str | None) -> ModelSpec:
    place, pairs = _split(text)
    try:
        parts = urlsplit(place)
    except ValueError as error:
        raise ConfigError(f"'{place}' is not a URL: {error}", "write http(s)://HOST/v1") from error
    if "@" in parts.netloc:
        raise ConfigError(
            "the model's URL holds a user name or password",  # which is not repeated here
            "put the key into an environment variable and name it: ?key_env=VARIABLE",
        )
    path = parts.path.rstrip("/")
    if not parts.hostname or parts.fragment or (path and not path.endswith("/v1")):
        raise ConfigError(f"'{place}' is not the URL of an API", "write http(s)://HOST[:PORT]/v1")
    label = _label(pairs, given, text)
    options = _options(EndpointOptions, pairs, text)
    name = (options.model or parts.netloc).rstrip("/").rpartition("/")[2]
    label = label or _safe([name, *([options.form] if "form" in pairs else [])])
    return ModelSpec("endpoint", place.rstrip("/").removesuffix("/v1"), label, options)


def _split(text: str) -> tuple[str, dict[str, str]]:
    place, _, query = text.partition("?")
    pairs: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or key in pairs:
            raise ConfigError(
                f"{text}: option '{pair}' {'is given twice' if equals else 'has no value'}",
                "options are ?key=value&key=value",
            )
        pairs[key] = unquote(value)
    return place, pairs


def _label(pairs: dict[str, str], given: str | None, text: str) -> str | None:
    """The name that the user gave, taken out of the options."""
    label = pairs.pop("label", None)
    if label is not None and given is not None:
        raise ConfigError(f"{text} is named twice: {given} and {label}", "keep one name")
    return given if label is None else _safe_label(label)


def _options(kind: type[T], pairs: dict[str, str], text: str) -> T:
    if unknown := sorted(set(pairs) - set(kind.model_fields)):
        known = ", ".join(["label", *kind.model_fields])
        raise ConfigError(f"{text}: '{unknown[0]}' is no option here", f"allowed: {known}")
    try:
        return kind.model_validate(pairs)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if key == "key_env":  # perhaps the key itself: not repeated
            raise ConfigError(
                "key_env is not the name of an environment variable", "?key_env=VARIABLE"
            ) from None
        raise ConfigError(
            f"{text}: {key}={pairs[key]}: {first['msg']}", _values(kind, key)
        ) from error


def _values(kind: type[Any], key: str) -> str:
    """The words that an option may be, where there are only some."""
    annotation = kind.model_fields[key].annotation
    kinds = [annotation, *get_args(annotation)]
    words = [w for k in kinds for w in get_args(k) if isinstance(w, str)]
    return f"allowed: {', '.join(dict.fromkeys(words))}" if words else ""


def _safe(parts: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.")[:80] or "model"
