"""Augmentation of checked tasks: other names, other tools beside the gold ones, another order.

A model that has seen each record under many names has to read the tool list instead of learning the
tools by heart (Hammer, arXiv 2410.04587, masks names in the same way). All functions are pure and
determined by their generator; the gold is rewritten consistently, so it earns what it earned before.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from cahl_core.datasets.catalogue import topic_of
from cahl_core.datasets.names import IDENTIFIER
from cahl_core.datasets.variation import STYLES, Style, argument_name, tool_name
from cahl_core.files import dump_json
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask

TOKEN = re.compile(r"[A-Za-z0-9]+(?:[_.]+[A-Za-z0-9]+)*")
HEADS = {"tool": ("run", "do", "use", "my"), "arg": ("the", "in", "my", "value")}
MODES = ("random", "numbered", "synonym", "synonym", "upper")
ATTEMPTS = 8
POOL_SAMPLE = 200  # tools looked at for distractors: enough to find related ones
VALID_TOOL = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
VALID_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
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


def rename(task: ToolTask, generator: random.Random) -> ToolTask:
    """The task with new names for all its tools and top-level arguments.

    The mixture of random, numbered and synonymous names in several styles is the generator's.
    """
    return draw_renaming(task, generator).apply(task)


def draw_renaming(task: ToolTask, generator: random.Random) -> Renaming:
    """New names for one record: valid, different from one another and from every old name."""
    tools = list(dict.fromkeys(_tool_names(task)))
    arguments = list(dict.fromkeys(_argument_names(task)))
    tokens = set(TOKEN.findall("\n".join(_texts(task))))
    mentioned = frozenset(n for n in (*tools, *arguments) if n in tokens and is_identifier(n))
    namer = Namer(
        generator.choice(MODES), generator.choice(STYLES), {*tools, *arguments}, tokens, mentioned
    )
    return Renaming(
        namer.assign(tools, tool_name, "tool", VALID_TOOL, generator),
        namer.assign(arguments, argument_name, "arg", VALID_ARGUMENT, generator),
        mentioned,
    )


def is_identifier(name: str) -> bool:
    """Whether a name stands out from prose: ``get_x``, ``a.b``, ``fooBar``; not ``query``."""
    return TOKEN.fullmatch(name) is not None and IDENTIFIER.search(name) is not None


def _texts(task: ToolTask) -> Iterator[str]:
    """Where names may be mentioned: everything that `Renaming` looks through."""
    for tool in task.tools:
        yield tool.description
        yield dump_json(tool.parameters)
    yield from (s.task for s in (task.plan.sub_tasks if task.plan else ()))


@dataclass(frozen=True, slots=True)
class Namer:
    """Gives names of one mode and style; ``taken`` grows by each of them."""

    mode: str
    style: Style
    taken: set[str]
    tokens: set[str]
    mentioned: frozenset[str]

    def assign(
        self,
        names: Sequence[str],
        synonym: Callable[[str, Style, random.Random], str],
        prefix: str,
        valid: re.Pattern[str],
        generator: random.Random,
    ) -> dict[str, str]:
        """A new valid name for each of ``names``."""
        given: dict[str, str] = {}
        for name in names:
            for new in self._proposals(name, synonym, prefix, generator):
                free = new not in self.taken
                # inside a description the new name must be recognisable, to be turned back
                if (
                    free
                    and valid.fullmatch(new)
                    and not (name in self.mentioned and new in self.tokens)
                ):
                    break
            given[name] = new
            self.taken.add(new)
        return given

    def _proposals(
        self,
        name: str,
        synonym: Callable[[str, Style, random.Random], str],
        prefix: str,
        generator: random.Random,
    ) -> Iterator[str]:
        if self.mode == "synonym":
            yield from (synonym(name, self.style, generator) for _ in range(ATTEMPTS))
        elif self.mode == "upper":
            yield from (synonym(name, STYLES[0], generator).upper() for _ in range(ATTEMPTS))
        if self.mode in ("synonym", "upper"):
            head = generator.choice(HEADS[prefix])
            stem = synonym(name, self.style, generator)
            yield f"{head}_{stem}".upper() if self.mode == "upper" else f"{head}_{stem}"
        elif self.mode == "numbered":
            yield from (f"{prefix}_{generator.randint(1, 99)}" for _ in range(ATTEMPTS))
        while True:
            yield _identifier(generator)


def _identifier(generator: random.Random) -> str:
    """Letters and digits without a meaning, four to eight of them."""
    first = generator.choice(string.ascii_letters)
    rest = generator.choices(string.ascii_letters + string.digits, k=generator.randint(3, 7))
    return first + "".join(rest)


def _tool_names(task: ToolTask) -> Iterator[str]:
    yield from (t.name for t in task.tools)
    yield from (c.name for c in _all_calls(task))
    yield from (s.tool for s in (task.plan.sub_tasks if task.plan else ()) if s.tool is not None)


def _argument_names(task: ToolTask) -> Iterator[str]:
    for tool in task.tools:
        yield from tool.properties
        yield from (n for n in tool.required if isinstance(n, str))
    for call in _all_calls(task):
        yield from call.arguments
    for sub_task in task.plan.sub_tasks if task.plan else ():
        yield from sub_task.arguments
    for values in task.meta.get("resolved") or ():
        yield from values or ()


def _all_calls(task: ToolTask) -> Iterator[ToolCall]:
    yield from task.calls
    yield from (c for m in task.messages for c in m.tool_calls)


def shuffle_tools(task: ToolTask, generator: random.Random) -> ToolTask:
    """The task with its tools in another order."""
    return replace(task, tools=tuple(generator.sample(task.tools, len(task.tools))))


def add_distractors(
    task: ToolTask, pool: Sequence[ToolSpec], count: int, generator: random.Random
) -> ToolTask:
    """The task with up to ``count`` more tools, put anywhere among its own.

    None has the name of an offered tool, nor its schema and description under another name. Tools
    that share topic words with the gold calls come first: they are the hard choices.
    """
    offered = {t.name: t for t in task.tools}
    called = [offered[c.name] for c in task.calls if c.name in offered]
    wanted = {w for t in called for w in topic_of(t.name, t.description)}
    drawn = draw_tools(pool, generator)
    drawn.sort(key=lambda t: wanted.isdisjoint(topic_of(t.name, t.description)))
    tools = list(task.tools)
    for tool in islice(other_tools(task.tools, drawn), count):
        tools.insert(generator.randint(0, len(tools)), tool)
    return replace(task, tools=tuple(tools))


def draw_tools(pool: Sequence[ToolSpec], generator: random.Random) -> list[ToolSpec]:
    """Some tools of the pool in random order."""
    return generator.sample(pool, min(POOL_SAMPLE, len(pool)))


def other_tools(offered: Sequence[ToolSpec], drawn: Iterable[ToolSpec]) -> Iterator[ToolSpec]:
    """Those of the drawn tools that are no offered tool, one per name and per content."""
    names = {t.name for t in offered}
    contents = {_content(t) for t in offered}
    for tool in drawn:
        if tool.name not in names and (content := _content(tool)) not in contents:
            names.add(tool.name)
            contents.add(content)
            yield tool


def _content(tool: ToolSpec) -> str:
    return tool.description + dump_json(tool.parameters)
