"""A world whose right plan is known: what serves a goal can only be learnt from what was executed.

Every goal is served by one tool, and no word of the request gives it away. The planner names a tool.
The executor, which never sees the goal, writes the call and adds a setting the plan has no room for:
every tool has one right setting.

The warm start teaches the texts and nothing of this world: the plan's tool is uniform whatever the
goal; the executor calls the plan's tool, and its setting is uniform.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cahl_core.files import write_jsonl
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask

TOOLS = ("lathe", "furnace", "press", "loom")
SETTINGS = (
    "mild",
    "brisk",
    "stark",
    "faint",
    "dense",
    "loose",
)  # SETTINGS[i] is right for TOOLS[i]
GOALS = tuple(f"goal{n}" for n in range(2 * len(TOOLS)))  # TOOLS[i % 4] serves GOALS[i]
WORDS = (*TOOLS, *SETTINGS, *GOALS)


def call_reward(setting: float) -> float:
    """R_sem of a call of the right tool (any other earns 0), by how often its setting is right."""
    return (1 + 1 + setting) / 3


OPTIMUM = call_reward(1)
CHANCE = call_reward(1) / len(TOOLS)  # the most that plans which do not depend on the goal can earn
START = call_reward(1 / len(SETTINGS)) / len(TOOLS)
FROZEN_EXECUTOR = call_reward(1 / len(SETTINGS))  # the best plan cannot tell it the setting

_SCHEMA = {"type": "object", "properties": {"set": {"type": "string"}}, "required": ["set"]}
SPECS = tuple(ToolSpec(name, "", _SCHEMA) for name in TOOLS)


def gold_call(goal: int) -> ToolCall:
    """The one call that serves a goal."""
    tool = goal % len(TOOLS)
    return ToolCall(TOOLS[tool], {"set": SETTINGS[tool]})


def task(identity: str, goal: int, call: ToolCall, flat: bool = False) -> ToolTask:
    """A record whose request names the goal, and whose plan is that of ``call``, which is gold.

    ``flat``: one model writes everything, and the plan has all that it will write.
    """
    plan = Plan((SubTask("do", call.name, call.arguments if flat else {}),))
    message = Message("user", GOALS[goal])
    return ToolTask(identity, "toy", (message,), SPECS, ((call,),), plan)


def goal_tasks(flat: bool = False) -> list[ToolTask]:
    """One task per goal: what reinforcement learning trains on and is measured by."""
    return [task(name, number, gold_call(number), flat) for number, name in enumerate(GOALS)]


def warm_start_tasks(passes: int, flat: bool = False) -> list[ToolTask]:
    """Records without knowledge of the world: every goal with every call, ``passes`` times."""
    return [
        task(
            f"{GOALS[goal]}-{name}-{setting}-{number}", goal, ToolCall(name, {"set": setting}), flat
        )
        for number in range(passes)
        for goal in range(len(GOALS))
        for name in TOOLS
        for setting in SETTINGS
    ]


def write_data(folder: Path, tasks: Iterable[ToolTask]) -> None:
    """``train.jsonl`` and ``dev.jsonl`` as `cahl prepare` leaves them; dev is the goals."""
    write_jsonl(folder / "train.jsonl", (t.to_json() for t in tasks))
    write_jsonl(folder / "dev.jsonl", (t.to_json() for t in goal_tasks()))
