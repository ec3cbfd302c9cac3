"""Where calls run: recorded results, or Python functions.

An environment answers one call of one task with a JSON value. What the tool itself refuses is a
`ToolError`, which the model gets to read; anything else that goes wrong is ours, not the model's: it
is never shown to a model and enters no loss.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from cahl_core.call_schema import fits_schema
from cahl_core.canonical import canonical
from cahl_core.datasets.references import resolve
from cahl_core.errors import ConfigError
from cahl_core.records import ToolCall, ToolTask

# (task, call with references resolved) → JSON result, None where nobody can tell
Environment = Callable[[ToolTask, ToolCall], Any]

MAX_RESULT_CHARS = 4000


class ToolError(Exception):
    """The tool refuses the call; the text is what the model reads."""


class BrokenEnvironmentError(Exception):
    """The infrastructure failed: the rollout is void, whatever the model wrote."""


def load_environment(name: str) -> Environment:
    """``replay``, or the function at ``module:function``.

    Raises:
        ConfigError: there is no such module or function.
    """
    if name == "replay":
        return replay
    module, colon, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"train.environment={name} cannot be imported: {error}",
            "allowed: replay, or module:function of a module on the Python path",
        ) from error
    if not callable(function):
        raise ConfigError(
            f"train.environment={name} is not a function",
            "allowed: replay, or module:function with the signature (task, call) -> JSON value",
        )
    environment: Environment = function
    return environment


def replay(task: ToolTask, call: ToolCall) -> Any:
    """The recorded result of the gold call with the same arguments; ``None`` if there is none.

    Raises:
        ToolError: the call does not fit its tool's schema.
    """
    if not fits_schema(call, task.tools):
        known = ", ".join(t.name for t in task.tools)
        raise ToolError(f"invalid call of {call.name}; tools: {known}")
    resolved = task.meta.get("resolved") or []
    for number, (gold, result) in enumerate(zip(task.calls, task.results, strict=True)):
        arguments = resolved[number] if number < len(resolved) else None
        wanted = gold.arguments if arguments is None else arguments
        if gold.name == call.name and canonical(wanted) == canonical(call.arguments):
            return result
    return None


def resolved_call(call: ToolCall, task: ToolTask, results: Sequence[Any]) -> ToolCall:
    """The call as an environment runs it: references replaced by results, where these are known."""
    spec = next((t for t in task.tools if t.name == call.name), None)
    arguments = resolve(call, results, spec.parameters if spec else {})
    return call if arguments is None else ToolCall(call.name, arguments)


def run_calls(environment: Environment, task: ToolTask, calls: Sequence[ToolCall]) -> Any:
    """What the executor of the next sub-task reads: the one call's result, or a list of them.

    Raises:
        BrokenEnvironmentError: the environment failed other than by `ToolError`.
    """
    results = [_run(environment, task, call) for call in calls]
    if not results:
        return None
    return results[0] if len(results) == 1 else results


def _run(environment: Environment, task: ToolTask, call: ToolCall) -> Any:
    try:
        return environment(task, call)
    except ToolError as error:
        return {"error": str(error)[:MAX_RESULT_CHARS]}
    except Exception as error:
        raise BrokenEnvironmentError(
            f"{call.name} of task '{task.id}': {type(error).__name__}: {error}"
        ) from error
