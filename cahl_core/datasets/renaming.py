"""One record under other names: tools, gold, plan, history and metadata rewritten consistently."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask

TOKEN = re.compile(r"[A-Za-z0-9]+(?:[_.]+[A-Za-z0-9]+)*")
# keywords whose schemas describe the same object as the schema they stand in
SAME_OBJECT = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")


@dataclass(frozen=True, slots=True)
class Renaming:
    """New names for every tool and every top-level argument of one record; both maps are injective.

    An argument name stands for one new name in all tools of the record. ``mentioned`` are the names
    that are also replaced inside descriptions; ordinary words that happen to be names are not.
    """

    tools: Mapping[str, str]
    arguments: Mapping[str, str]
    mentioned: frozenset[str] = frozenset()

    def inverse(self) -> Renaming:
        """The renaming that gives back the original names."""
        both = {**self.arguments, **self.tools}
        return Renaming(
            {new: old for old, new in self.tools.items()},
            {new: old for old, new in self.arguments.items()},
            frozenset(both[name] for name in self.mentioned),
        )

    def apply(self, task: ToolTask) -> ToolTask:
        """The task under the new names: tools, gold, plan, history, and what ``meta`` says of them."""
        return replace(
            task,
            messages=tuple(self._message(m) for m in task.messages),
            tools=tuple(self.tool(t) for t in task.tools),
            steps=tuple(tuple(self.call(c) for c in step) for step in task.steps),
            plan=None if task.plan is None else self._plan(task.plan),
            meta=self._meta(task.meta),
        )

    def call(self, call: ToolCall) -> ToolCall:
        return ToolCall(self._tool(call.name), self._keys(call.arguments))

    def tool(self, tool: ToolSpec) -> ToolSpec:
        """The tool with new names; what it returns keeps its fields, references point to them."""
        return ToolSpec(
            self._tool(tool.name),
            self._mentions(tool.description),
            self._schema(tool.parameters, True),
            tool.returns,
        )

    def _tool(self, name: str) -> str:
        return self.tools.get(name, name)

    def _keys(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {self.arguments.get(k, k): v for k, v in arguments.items()}

    def _names(self, names: Any) -> Any:
        """A list of argument names; anything else stays as it is."""
        if not isinstance(names, list):
            return names
        return [self.arguments.get(n, n) if isinstance(n, str) else n for n in names]

    def _mentions(self, text: str) -> str:
        if not self.mentioned:
            return text
        both = {**self.arguments, **self.tools}
        return TOKEN.sub(lambda m: both[m[0]] if m[0] in self.mentioned else m[0], text)

    def _schema(self, schema: Any, top: bool) -> Any:
        """A schema with new property names where ``top``, new pointers and mentions everywhere."""
        if isinstance(schema, list):
            return [self._schema(item, top) for item in schema]
        if not isinstance(schema, Mapping):
            return schema
        return {key: self._keyword(key, value, top) for key, value in schema.items()}

    def _keyword(self, key: str, value: Any, top: bool) -> Any:
        if key == "description" and isinstance(value, str):
            return self._mentions(value)
        if key == "$ref" and isinstance(value, str):
            return self._pointer(value)
        if key in ("enum", "const", "default", "examples", "example"):
            return value
        if not top:
            return self._schema(value, False)
        if key == "required":
            return self._names(value)
        if key == "dependentRequired" and isinstance(value, Mapping):
            return {n: self._names(v) for n, v in self._keys(value).items()}
        if key == "dependentSchemas" and isinstance(value, Mapping):
            return {n: self._schema(v, True) for n, v in self._keys(value).items()}
        if key == "properties" and isinstance(value, Mapping):
            return {n: self._schema(v, False) for n, v in self._keys(value).items()}
        return self._schema(value, key in SAME_OBJECT)

    def _pointer(self, pointer: str) -> str:
        parts = pointer.split("/")
        if parts[:2] != ["#", "properties"] or len(parts) < 3:
            return pointer
        name = parts[2].replace("~1", "/").replace("~0", "~")
        new = self.arguments.get(name, name).replace("~", "~0").replace("/", "~1")
        return "/".join([*parts[:2], new, *parts[3:]])

    def _message(self, message: Message) -> Message:
        name = message.name
        if name is not None and message.role == "tool":
            name = self._tool(name)
        return replace(
            message, name=name, tool_calls=tuple(self.call(c) for c in message.tool_calls)
        )

    def _plan(self, plan: Plan) -> Plan:
        return Plan(
            tuple(
                SubTask(
                    self._mentions(s.task),
                    None if s.tool is None else self._tool(s.tool),
                    self._keys(s.arguments),
                )
                for s in plan.sub_tasks
            )
        )

    def _meta(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        rewrite: dict[str, Callable[[Any], Any]] = {
            "resolved": self._keys,
            "deps": lambda d: {**d, "arg": self._path(d["arg"])} if "arg" in d else d,
            "ungrounded": self._numbered,
            "distractors": self._tool,
        }
        changed = dict(meta)
        for key, change in rewrite.items():
            if isinstance(meta.get(key), list):
                changed[key] = [None if v is None else change(v) for v in meta[key]]
        missing = meta.get("missing")
        if isinstance(missing, Mapping):
            changed["missing"] = {
                "tool": self._tool(missing["tool"]),
                "arguments": self._names(missing["arguments"]),
            }
        return changed

    def _path(self, path: str) -> str:
        """A path into the arguments: its first part is a name, which may hold dots itself."""
        fits = [n for n in self.arguments if path == n or path.startswith((n + ".", n + "["))]
        if not fits:
            return path
        name = max(fits, key=len)
        return self.arguments[name] + path[len(name) :]

    def _numbered(self, place: str) -> str:
        """``"2.city"``: argument ``city`` of call 2."""
        number, dot, path = place.partition(".")
        return number + dot + self._path(path) if number.isdigit() else self._path(place)
