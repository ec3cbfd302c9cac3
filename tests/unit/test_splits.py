"""Splits by group and tool set, whatever the records are."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cahl_core.datasets.splits import DEV, TRAIN, UNSEEN, Member, assign, without_tools
from cahl_core.records import ToolSpec, ToolTask

GROUPS = st.integers(0, 12).map(lambda n: f"g{n}")
TOOLS = st.lists(st.sampled_from([f"tool{n}" for n in range(25)]), max_size=3, unique=True)
MEMBERS = st.lists(st.tuples(GROUPS, TOOLS), min_size=1, max_size=40).map(
    lambda rows: [Member(f"id{n}", g, tuple(t)) for n, (g, t) in enumerate(rows)]
)


@given(MEMBERS, st.integers(1, 10), st.integers(0, 10), st.integers(0, 5))
def test_groups_stay_whole_and_unseen_tools_are_nowhere_else(
    members: list[Member], dev: int, unseen: int, seed: int
) -> None:
    found = assign(members, dev, unseen, seed)
    by_group: dict[str, set[str]] = {}
    for member, split in zip(members, found.splits, strict=True):
        by_group.setdefault(member.group, set()).add(split)
    assert all(len(splits) == 1 for splits in by_group.values())
    elsewhere = {t for i in range(len(members)) if found.splits[i] != UNSEEN
                 for t in members[i].gold_tools}  # fmt: skip
    assert not elsewhere & found.unseen_tools
    assert len(found.indices(UNSEEN)) <= min(unseen, len(members) // 4)
    assert found.indices(TRAIN)


@given(MEMBERS, st.integers(0, 5))
def test_the_order_of_the_records_does_not_matter(members: list[Member], seed: int) -> None:
    one = assign(members, 5, 5, seed)
    shuffled = random.Random(seed).sample(members, len(members))
    other = assign(shuffled, 5, 5, seed)
    by_id = dict(zip((m.id for m in members), one.splits, strict=True))
    assert [by_id[m.id] for m in shuffled] == list(other.splits)
    assert one.unseen_tools == other.unseen_tools


def test_many_small_components_fill_the_unseen_split() -> None:
    members = [Member(f"id{n}", f"id{n}", (f"tool{n // 2}",)) for n in range(80)]
    found = assign(members, 8, 12, 0)
    assert len(found.indices(UNSEEN)) == 12
    assert len(found.indices(DEV)) == 8
    assert len(found.unseen_tools) == 6


def test_hidden_tools_are_not_offered_any_more() -> None:
    tools = tuple(ToolSpec(name, "", {"type": "object"}) for name in "abc")
    task = ToolTask("t", "s", (), tools, ())
    assert [t.name for t in without_tools(task, frozenset("b")).tools] == ["a", "c"]
    assert without_tools(task, frozenset("x")) is task
