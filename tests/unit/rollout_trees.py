"""Rollout trees built by hand, for tests of what is shown and measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cahl_core.config import RewardSettings
from cahl_core.datasets.targets import resolved_gold
from cahl_core.policy.engine import Completion
from cahl_core.protocol.parsing import ParseFailure, parse_execution, parse_plan
from cahl_core.protocol.prompts import execution_text, plan_text
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask
from cahl_core.rewards import align_plan, executor_reward, planner_reward
from cahl_core.training.tree import PlanNode, Sample, SubTaskNode, Tree

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ID = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
FIND, BOOK = ToolSpec("find", "Finds a hotel.", CITY), ToolSpec("book", "Books it.", ID)
RATE = ToolSpec("rate", "Rates it.", {"type": "object", "properties": {}})
TOOLS = (FIND, BOOK, RATE)
WEIGHTS = RewardSettings()


def task(number: int = 1, **changes: Any) -> ToolTask:
    """Find a hotel in Rome and book what was found: two gold calls, the second one refers."""
    calls = (ToolCall("find", {"city": "Rome"}), ToolCall("book", {"id": "$var1.id$"}))
    values: dict[str, Any] = {
        "id": f"t{number}",
        "source": "toy",
        "messages": (Message("user", f"Book a hotel in Rome, number {number}."),),
        "tools": TOOLS,
        "steps": tuple((c,) for c in calls),
        "meta": {"results": [{"id": 7}, None], "resolved": [{"city": "Rome"}, {"id": 7}]},
    }
    return ToolTask(**{**values, **changes})


def call(name: str, **arguments: Any) -> str:
    """An executor's text with one call."""
    return execution_text([ToolCall(name, arguments)])


def plan(*steps: tuple[str | None, dict[str, Any]], words: str = "do it") -> str:
    """A planner's text."""
    return plan_text(Plan(tuple(SubTask(words, tool, arguments) for tool, arguments in steps)))


GOLD_PLAN = plan(("find", {"city": "Rome"}), ("book", {"id": "$var1.id$"}))
FIND_ROME, BOOK_7 = call("find", city="Rome"), call("book", id=7)


def sample(text: str, *, finished: bool = True, **values: Any) -> Sample:
    """A sampled text: one token a character."""
    ids = [ord(c) % 250 for c in text]
    return Sample([1, 2, 3], Completion(ids, [-0.5] * len(ids), text, finished), **values)


def sub_node(
    asked: ToolTask, sub_task: SubTask, column: int | None, texts: Sequence[str]
) -> SubTaskNode:
    """A sub-task with its executions, parsed and rewarded against its gold step."""
    gold = None if column is None else (resolved_gold(asked)[column],)
    node = SubTaskNode(sub_task, () if sub_task.tool is None else gold, column)
    for text in texts:
        execution = parse_execution(text)
        node.samples.append(sample(text))
        node.executions.append(execution)
        node.calls.append(() if isinstance(execution, ParseFailure) else execution.calls)
        if node.gold is not None:
            reward = executor_reward(execution, node.gold, asked.tools, WEIGHTS)
            node.rewards.append(reward)
            node.samples[-1].reward = reward.total
    return node


def plan_node(asked: ToolTask, text: str, executions: Sequence[Sequence[str]]) -> PlanNode:
    """A plan with the executor's texts for each of its sub-tasks, rewarded."""
    parsed = parse_plan(text)
    node = PlanNode(sample(text), parsed)
    if isinstance(parsed, Plan):
        columns = align_plan(parsed, asked.calls)
        node.nodes = [
            sub_node(asked, s, c, texts)
            for s, c, texts in zip(parsed.sub_tasks, columns, executions, strict=True)
        ]
    runs = max((len(n.calls) for n in node.nodes), default=0)
    made = [[n.calls[g] for n in node.nodes] for g in range(runs)]
    node.reward = planner_reward(parsed, asked.calls, made, WEIGHTS, resolved_gold(asked))
    assert node.sample is not None
    node.sample.reward = node.reward.total
    return node


def good_tree(number: int = 1) -> Tree:
    """One perfect plan with a right and a wrong execution, one plan outside the grammar."""
    asked = task(number)
    first = plan_node(asked, GOLD_PLAN, [[FIND_ROME, call("find", city="Oslo")], [BOOK_7, BOOK_7]])
    second = plan_node(asked, "Sure!", [])
    return Tree(asked, [first, second])


def flat_tree(number: int = 1) -> Tree:
    """A tree of the arms without a planner: the request is the only sub-task."""
    asked = task(number)
    gold = tuple(resolved_gold(asked))
    node = SubTaskNode(SubTask("Book a hotel in Rome.", None), gold, None)
    for text in (FIND_ROME + BOOK_7, FIND_ROME):
        execution = parse_execution(text)
        assert not isinstance(execution, ParseFailure)
        reward = executor_reward(execution, gold, asked.tools, WEIGHTS)
        node.samples.append(sample(text, reward=reward.total))
        node.executions.append(execution)
        node.calls.append(execution.calls)
        node.rewards.append(reward)
    return Tree(asked, [PlanNode(None, Plan((node.sub_task,)), [node])])
