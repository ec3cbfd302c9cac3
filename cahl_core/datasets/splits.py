"""Train, dev, and a dev split of tools that training never sees; by digests, so by nothing else.

Tasks that share a gold tool belong together (a connected component). Whole components of few tasks go
to ``dev_unseen_tools``; their tools are then taken out of what other tasks offer, so that no training
prompt shows them even as a distractor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cahl_core.files import digest
from cahl_core.records import ToolTask

TRAIN, DEV, UNSEEN = "train", "dev", "dev_unseen_tools"
SPLITS = (TRAIN, DEV, UNSEEN)


@dataclass(frozen=True, slots=True)
class Member:
    """What splitting needs to know of a task; ``group`` keeps the parts of one record together."""

    id: str
    group: str
    gold_tools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The split of every member, in their order, and the tools that only the unseen split offers."""

    splits: tuple[str, ...]
    unseen_tools: frozenset[str]

    def indices(self, split: str) -> list[int]:
        return [i for i, s in enumerate(self.splits) if s == split]


def assign(members: Sequence[Member], dev: int, unseen: int, seed: int) -> Assignment:
    """Splits tasks by group and by tool set.

    Args:
        dev: wanted tasks of the dev split; at most a quarter of all.
        unseen: most tasks of the unseen-tool split; at most a quarter of all.

    Guarantees: members of one group are in one split; no gold tool of ``dev_unseen_tools`` is a gold
    tool of another split; the result depends on ids, tools and seed only, not on the order.
    """
    quarter = len(members) // 4
    components = _components(members)
    chosen = _choose(components, [m.id for m in members], min(unseen, quarter), seed)
    inside = {index for component in chosen for index in component}
    tools = frozenset(t for i in inside for t in members[i].gold_tools)
    groups: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        if index not in inside:
            groups.setdefault(member.group, []).append(index)
    splits = [TRAIN] * len(members)
    for index in inside:
        splits[index] = UNSEEN
    wanted = min(dev, max(quarter, 1))
    taken = 0
    for group in sorted(groups, key=lambda g: digest([seed, g])):
        if taken >= wanted or len(groups) == 1:
            break
        for index in groups[group]:
            splits[index] = DEV
        taken += len(groups[group])
    return Assignment(tuple(splits), tools)


def _components(members: Sequence[Member]) -> list[list[int]]:
    """Indices of members connected by gold tools or by their group; those without calls are left out."""
    parent: dict[str, str] = {}

    def find(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for member in members:
        nodes = [f"group {member.group}", *(f"tool {t}" for t in member.gold_tools)]
        for node in nodes[1:]:
            a, b = sorted((find(nodes[0]), find(node)))
            parent[b] = a
    found: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        if member.gold_tools:
            found.setdefault(find(f"group {member.group}"), []).append(index)
    # a group's member without calls goes with its group
    rest = {m.group: find(f"group {m.group}") for m in members if not m.gold_tools}
    for index, member in enumerate(members):
        if not member.gold_tools and rest[member.group] in found:
            found[rest[member.group]].append(index)
    return list(found.values())


def _choose(
    components: Sequence[list[int]], ids: Sequence[str], most: int, seed: int
) -> list[list[int]]:
    """Components in the order of the digest of their smallest id, as long as they fit."""
    chosen: list[list[int]] = []
    left = most

    def key(component: list[int]) -> str:
        return digest([seed, "unseen", min(ids[i] for i in component)])

    for component in sorted(components, key=key):
        if len(component) <= left:
            chosen.append(component)
            left -= len(component)
    return chosen


def without_tools(task: ToolTask, names: frozenset[str]) -> ToolTask:
    """The task without the named tools among what it offers; gold tools are never named here."""
    kept = tuple(t for t in task.tools if t.name not in names)
    return task if len(kept) == len(task.tools) else replace(task, tools=kept)


def offers(task: ToolTask, names: frozenset[str]) -> bool:
    """Whether the task offers one of the named tools."""
    return any(tool.name in names for tool in task.tools)
