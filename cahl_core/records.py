"""The vocabulary every module speaks: tools, calls, sub-tasks, plans, tasks.

A `ToolTask` on disk is one JSON Lines record:

    {"id", "source", "messages": [{"role", "content"}], "tools": [OpenAI function tools],
     "answers": [[{"name", "arguments"}, ...] per step], "plan": [...]?, "meta": {...}}

``answers`` holds the gold steps in order; the calls inside a step are parallel. ``[]`` means that no
call is right. ``$varN.path$`` inside an argument is the value at ``path`` of the N-th call's result,
calls numbered from 1 over the record; ``$varN$`` is the whole result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cahl_core.errors import DataError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

ROLES = ("system", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "name", "reasoning", "tool_calls")
TASK_KEYS = ("id", "source", "messages", "tools", "answers", "plan", "meta")


def _take(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if key not in record:
        raise DataError(f"{where}: field '{key}' is missing", f"fields present: {sorted(record)}")
    value = record[key]
    if not isinstance(value, kind):
        names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise DataError(f"{where}: field '{key}' is {type(value).__name__}, must be {names}")
    return value


def _optional_text(record: Mapping[str, Any], key: str, where: str) -> str | None:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {key} is {type(value).__name__}, must be text")
    return value


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of one tool. Arguments are JSON values; nothing is evaluated."""

    name: str
    arguments: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}

    @classmethod
    def from_json(cls, record: Any, where: str = "tool call") -> ToolCall:
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: is {type(record).__name__}, must be an object")
        return cls(_take(record, "name", str, where), _take(record, "arguments", dict, where))


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A callable tool; ``parameters`` and ``returns`` are JSON Schema objects."""

    name: str
    description: str
    parameters: dict[str, Any]
    returns: dict[str, Any] | None = None

    @property
    def properties(self) -> dict[str, Any]:
        return dict(self.parameters.get("properties") or {})

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.parameters.get("required") or ())

    def to_json(self) -> dict[str, Any]:
        function: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        if self.returns is not None:
            function["returns"] = self.returns
        return {"type": "function", "function": function}

    @classmethod
    def from_json(cls, record: Any, where: str = "tool") -> ToolSpec:
        """Reads the OpenAI form, wrapped in ``{"type": "function", "function": …}`` or bare."""
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: is {type(record).__name__}, must be an object")
        function = record.get("function", record)
        if not isinstance(function, Mapping):
            raise DataError(f"{where}: 'function' is {type(function).__name__}, must be an object")
        name = _take(function, "name", str, where)
        parameters = function.get("parameters")
        if not isinstance(parameters, dict):
            raise DataError(
                f"{where} '{name}': no parameter schema",
                'give "parameters": {"type": "object", "properties": {…}}; '
                '{"type": "object", "properties": {}} for a tool without parameters',
            )
        returns = function.get("returns")
        return cls(
            name,
            str(function.get("description") or ""),
            parameters,
            returns if isinstance(returns, dict) else None,
        )


@dataclass(frozen=True, slots=True)
class SubTask:
    """One step of a plan: what to do, the tool to use (``None``: answer in words), its arguments."""

    task: str
    tool: str | None
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task, "tool": self.tool, "arguments": self.arguments}

    @classmethod
    def from_json(cls, record: Any, where: str = "sub-task") -> SubTask:
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: is {type(record).__name__}, must be an object")
        return cls(
            _take(record, "task", str, where),
            _take(record, "tool", (str, type(None)), where),
            _take(record, "arguments", dict, where),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """An ordered list of sub-tasks. Empty, or a lone ``tool=None``, declines the request."""

    sub_tasks: tuple[SubTask, ...]

    @property
    def calls_tools(self) -> bool:
        return any(s.tool is not None for s in self.sub_tasks)

    def to_json(self) -> list[dict[str, Any]]:
        return [s.to_json() for s in self.sub_tasks]

    @classmethod
    def from_json(cls, record: Any, where: str = "plan") -> Plan:
        if not isinstance(record, list):
            raise DataError(f"{where}: is {type(record).__name__}, must be a list of sub-tasks")
        return cls(
            tuple(SubTask.from_json(s, f"{where}[{i}]") for i, s in enumerate(record)),
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation.

    An assistant's turn may hold the calls it made; a tool's turn is the result of one of them.
    ``extra`` keeps the keys of a record that have no field here.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    reasoning: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name is not None:
            record["name"] = self.name
        if self.reasoning is not None:
            record["reasoning"] = self.reasoning
        if self.tool_calls:
            record["tool_calls"] = [call.to_json() for call in self.tool_calls]
        return record | self.extra

    @classmethod
    def from_json(cls, record: Any, where: str = "message") -> Message:
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: is {type(record).__name__}, must be an object")
        role = _take(record, "role", str, where)
        if role not in ROLES:
            raise DataError(f"{where}: role '{role}' is not one of {', '.join(ROLES)}")
        content = record.get("content")
        if content is not None and not isinstance(content, str):
            raise DataError(f"{where}: content is {type(content).__name__}, must be text")
        calls = record.get("tool_calls") or []
        if not isinstance(calls, list):
            raise DataError(f"{where}: tool_calls is {type(calls).__name__}, must be a list")
        return cls(
            role,
            content or "",
            tuple(ToolCall.from_json(c, f"{where}: tool_calls[{i}]") for i, c in enumerate(calls)),
            _optional_text(record, "name", where),
            _optional_text(record, "reasoning", where),
            {key: value for key, value in record.items() if key not in MESSAGE_KEYS},
        )


@dataclass(frozen=True, slots=True)
class ToolTask:
    """A request, its tools, and the gold steps that answer it.

    ``meta["results"]``, where present, holds the recorded result of every gold call in call order
    (``None`` where none was recorded); ``meta["resolved"]`` its arguments with values for references
    (``None`` where a result is not known); ``meta["answer"]`` the final answer in words.
    """

    id: str
    source: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    steps: tuple[tuple[ToolCall, ...], ...]
    plan: Plan | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The gold calls in order, steps flattened: number N is ``calls[N - 1]``."""
        return tuple(call for step in self.steps for call in step)

    @property
    def results(self) -> tuple[Any, ...]:
        """The recorded result of each gold call; ``None`` where there is none."""
        recorded = list(self.meta.get("results") or [])
        return tuple(recorded + [None] * (len(self.calls) - len(recorded)))

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": self.id,
            "source": self.source,
            "messages": [m.to_json() for m in self.messages],
            "tools": [t.to_json() for t in self.tools],
            "answers": [[c.to_json() for c in step] for step in self.steps],
        }
        if self.plan is not None:
            record["plan"] = self.plan.to_json()
        record["meta"] = self.meta
        return record

    @classmethod
    def from_json(cls, record: Any, where: str = "record") -> ToolTask:
        """Builds a task; raises `DataError` naming the field that does not have its form."""
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: is {type(record).__name__}, must be a JSON object")
        task_id = _take(record, "id", str, where)
        where = f"{where} (id '{task_id}')"
        answers = _take(record, "answers", list, where)
        if not all(isinstance(step, list) for step in answers):
            raise DataError(f"{where}: 'answers' must be a list of steps, each a list of calls")
        plan = record.get("plan")
        meta = record.get("meta") or {}
        if not isinstance(meta, Mapping):
            raise DataError(f"{where}: 'meta' is {type(meta).__name__}, must be an object")
        return cls(
            id=task_id,
            source=_take(record, "source", str, where),
            messages=tuple(
                Message.from_json(m, f"{where}: messages[{i}]")
                for i, m in enumerate(_take(record, "messages", list, where))
            ),
            tools=tuple(
                ToolSpec.from_json(t, f"{where}: tools[{i}]")
                for i, t in enumerate(_take(record, "tools", list, where))
            ),
            steps=tuple(
                tuple(
                    ToolCall.from_json(c, f"{where}: answers[{k}][{i}]") for i, c in enumerate(step)
                )
                for k, step in enumerate(answers)
            ),
            plan=None if plan is None else Plan.from_json(plan, f"{where}: plan"),
            meta={**{k: v for k, v in record.items() if k not in TASK_KEYS}, **meta},
        )
