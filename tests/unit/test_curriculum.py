"""The sampler and the capability posterior: what is drawn, what waits, what a checkpoint keeps."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.records import Message, ToolCall, ToolTask
from cahl_core.train_config import CurriculumSettings
from cahl_core.training.curriculum import NO_TOOL, Capability, Sampler

CAPABILITY = CurriculumSettings(kind="capability", low=0.2, high=0.9, max_wait=2)


def _task(number: int, *tools: str) -> ToolTask:
    steps = tuple((ToolCall(tool, {}),) for tool in tools)
    return ToolTask(f"t{number}", "toy", (Message("user", "Go."),), (), steps)


@given(st.integers(1, 12), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_a_pass_holds_every_task_once_however_it_is_cut(count: int, sizes: list[int]) -> None:
    sampler = Sampler([_task(n, "find") for n in range(count)], 3)
    drawn = [task.id for size in sizes for task in sampler.draw(size, Capability(CAPABILITY))]
    for start in range(0, len(drawn) - count + 1, count):
        assert len(set(drawn[start : start + count])) == count


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_restored_sampler_goes_on_like_the_one_it_was_taken_from(before: int, after: int) -> None:
    tasks = [_task(n, f"tool{n % 3}") for n in range(7)]
    capability = Capability(CAPABILITY)
    capability.update({"tool0": (0.0, 50.0), "tool1": (50.0, 0.0)})
    first, second = (Sampler(tasks, 0, CAPABILITY) for _ in range(2))
    first.draw(before, capability)
    second.restore(json.loads(json.dumps(first.state())))
    assert [t.id for t in first.draw(after, capability)] == [
        t.id for t in second.draw(after, capability)
    ]
    assert first.state() == second.state()


def test_tasks_out_of_bounds_wait_and_none_starves() -> None:
    tasks = [_task(n, "hopeless" if n % 2 else "open") for n in range(8)]
    capability = Capability(CAPABILITY)
    capability.update({"hopeless": (0.0, 100.0)})
    sampler = Sampler(tasks, 0, CAPABILITY)
    first = Counter(t.id for t in sampler.draw(8, capability))
    assert all(int(task[1:]) % 2 == 0 for task in first)  # two passes of the four others
    assert len(sampler.waiting) == 4
    later = Counter(t.id for t in sampler.draw(8, capability))
    # in the third pass each was refused max_wait = 2 times before
    assert {task for task in later if int(task[1:]) % 2} == {"t1", "t3", "t5", "t7"}
    assert sampler.refused == 8


def test_a_sampler_of_hopeless_tasks_only_still_draws() -> None:
    capability = Capability(CAPABILITY)
    capability.update({"hopeless": (0.0, 100.0)})
    assert len(Sampler([_task(0, "hopeless")], 0, CAPABILITY).draw(3, capability)) == 3


def test_the_weakest_tool_decides_and_a_new_tool_is_admitted() -> None:
    capability = Capability(CAPABILITY)
    capability.update({"weak": (0.0, 8.0), "strong": (8.0, 0.0)})
    assert capability.predicted(["strong", "weak"]) == pytest.approx(0.1)
    assert capability.predicted(["new"]) == 0.5
    assert capability.predicted([]) == capability.mean(NO_TOOL) == 0.5


def test_old_outcomes_fade() -> None:
    capability = Capability(CurriculumSettings(decay=0.5, prior=1.0))
    capability.update({"find": (0.0, 8.0)})
    for _ in range(3):
        capability.update({})
    assert capability.counts["find"] == (0.0, 1.0)
    assert capability.mean("find") == pytest.approx(1 / 3)
    again = Capability(CurriculumSettings())
    again.restore(json.loads(json.dumps(capability.state())))
    assert again.counts == capability.counts
