"""Augmentation of checked tasks: other names, other tools beside the gold ones, another order.

A model that has seen each record under many names has to read the tool list instead of learning the
tools by heart (Hammer, arXiv 2410.04587, masks names in the same way). All functions are pure and
determined by their generator; the gold is rewritten consistently, so it earns what it earned before.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from cahl_core.datasets.catalogue import topic_of
from cahl_core.datasets.names import IDENTIFIER
from cahl_core.datasets.renaming import TOKEN, Renaming
from cahl_core.datasets.variation import STYLES, Style, argument_name, tool_name
from cahl_core.files import dump_json
from cahl_core.records import ToolCall, ToolSpec, ToolTask

HEADS = {"tool": ("run", "do", "use", "my"), "arg": ("the", "in", "my", "value")}
MODES = ("random", "numbered", "synonym", "synonym", "upper")
ATTEMPTS = 8
POOL_SAMPLE = 200  # tools looked at for distractors: enough to find related ones
VALID_TOOL = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
VALID_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


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
