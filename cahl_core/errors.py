"""The one tree of exceptions that users see.

Every message says what is wrong, where, what is allowed, and what to change. The CLI prints the
message without a traceback and exits with the class's ``exit_code``.
"""

from __future__ import annotations


class CahlError(Exception):
    """Base of every expected failure.

    Args:
        what: what went wrong, with the place (file, line, key, record).
        hint: what the user can change; printed on its own line.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\n  → {hint}")
        self.what = what
        self.hint = hint


class ConfigError(CahlError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class SourceError(CahlError):
    """A source of data or weights could not be had."""

    exit_code = 3


class ChecksumError(SourceError):
    """A downloaded or mirrored file is not the declared one."""


class LicenceError(SourceError):
    """A source's licence, or its being a test set, forbids the use asked for."""


class DataError(CahlError):
    """A record or a file does not have the declared form."""

    exit_code = 4


class StageInputError(CahlError):
    """What a stage needs from an earlier stage is missing or incomplete."""

    exit_code = 5


class ModelError(CahlError):
    """Weights, adapters or tokenizer cannot be loaded or do not fit each other."""

    exit_code = 6


class PromptTooLongError(ModelError):
    """A prompt does not fit the context left for it."""


class TrainingError(CahlError):
    """Training cannot go on (non-finite loss, no usable group)."""

    exit_code = 7


class MemoryLimitError(TrainingError):
    """What has to be in memory at one time does not fit, however small the batches are made."""


class EvaluationError(CahlError):
    """The harness failed: this is never a score of the model."""

    exit_code = 8


class RegistryError(CahlError):
    """The model registry has no such model, version or alias, or cannot be reached."""

    exit_code = 9


class StorageError(CahlError):
    """A file could not be written (disk full, no permission)."""

    exit_code = 10


class RolloutServerError(CahlError):
    """A server that should sample rollouts cannot be reached, refuses, or serves other weights."""

    exit_code = 11
