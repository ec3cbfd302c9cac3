"""Traces in the terminal: a table by step, then a tree per record.

On a terminal the trees are drawn in colour; into a pipe goes indented text with the same words and
signs. Texts of models and data are shown on one line, without control characters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cahl_core.datasets.view import plain
from cahl_core.tables import show_table
from cahl_core.traces.select import SUMMARY_HEADER, Query, Record, Selection, summary_rows

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

CHARS, VALUE_CHARS = 160, 60
INDENT = "  "
GOOD, BAD, DIM, HEAD = "green", "red", "dim", "bold"
# parts of a line, each with its style
Line = list[tuple[str, str]]


@dataclass(slots=True)
class Node:
    """A line and what stands below it."""

    line: Line
    children: list[Node] = field(default_factory=list)

    def add(self, *parts: tuple[str, str]) -> Node:
        """A new last child."""
        child = Node(list(parts))
        self.children.append(child)
        return child


def show(selection: Selection, query: Query, *, full: bool = False) -> None:
    """Prints the summary and the selected trees, and says how many were left out.

    Args:
        full: texts in full length.
    """
    show_table(SUMMARY_HEADER, summary_rows(selection.steps), "Traced trees by step")
    for record in selection.records:
        _print(record_node(record, query, full))
    left = selection.matching - len(selection.records)
    matching = f"{selection.matching} of {selection.read} trees match"
    print(f"\n{matching}" + (f"; {left} not shown, see --limit" if left else ""))


def record_node(record: Record, query: Query, full: bool = False) -> Node:
    """The whole record as a tree of lines."""
    task = record["task"]
    root = Node([(f"step {record['step']}  {plain(task['id'])}", HEAD),
                 (f"  {plain(task['source'])}, {record['arm']}", DIM)])  # fmt: skip
    for message in task["messages"]:
        root.add((f"{plain(message['role'])}: {_text(message['content'], full)}", ""))
    root.add((f"tools ({len(task['tools'])}): {_text(', '.join(task['tools']), full)}", DIM))
    for number, (call, resolved) in enumerate(zip(task["gold"], task["resolved"], strict=True), 1):
        same = "" if call == resolved else f" = {call_text(resolved, full)}"
        root.add((f"gold {number}: {call_text(call, full)}{same}", DIM))
    if not task["gold"]:
        root.add(("gold: no call is due", DIM))
    subject, hidden = query.subject(record), 0
    for number, plan in enumerate(record["plans"], 1):
        if subject == "planner" and not query.wants(plan["sample"]):
            hidden += 1
            continue
        node = _plan(plan, number, query, subject == "executor", full)
        if subject == "planner" or not query.narrows or node.children:
            root.children.append(node)
    if hidden:
        root.add((f"{hidden} other plans not shown", DIM))
    return root


def _plan(plan: Mapping[str, Any], number: int, query: Query, bounds: bool, full: bool) -> Node:
    sample = plan["sample"]
    if sample is None:
        node = Node([("the request itself", HEAD)])
    else:
        node = Node([(f"plan {number}  ", HEAD), *_numbers(sample)])
        if query.role != "executor":
            _written(node, sample, full)
            _plan_verdicts(node, sample["breakdown"])
    if query.role == "planner" and sample is not None:
        return node
    for k, sub_task in enumerate(plan["sub_tasks"], 1):
        child = _sub_task(sub_task, k, query if bounds else Query(), full)
        if child.children or not (bounds and query.narrows):
            node.children.append(child)
    return node


def _sub_task(sub_task: Mapping[str, Any], number: int, query: Query, full: bool) -> Node:
    asked = {"name": sub_task["tool"], "arguments": sub_task["arguments"]}
    what = call_text(asked, full) if sub_task["tool"] is not None else "answer in words"
    column, gold = sub_task["column"], sub_task["gold"]
    if gold is None:
        stands = "no gold step: trains no executor"
    else:
        stands = f"gold {column + 1}" if column is not None else "the whole request"
        stands = stands if gold else "no call due"
    node = Node([(f"sub-task {number}  {what}  ", HEAD),
                 (f"{_text(sub_task['task'], full)}  [{stands}]", DIM)])  # fmt: skip
    for g, sample in enumerate(sub_task["samples"], 1):
        if query.wants(sample):
            child = node.add((f"execution {g}  ", ""), *_numbers(sample))
            _written(child, sample, full)
            _verdicts(child, sample["breakdown"])
    if not sub_task["samples"]:
        node.add(("not executed: its prompt is too long", DIM))
    return node


def _numbers(sample: Mapping[str, Any]) -> Line:
    """Reward and advantage, the parts, tokens, and what is special about the text."""
    advantage = sample["advantage"]
    style = GOOD if advantage > 0 else BAD if advantage < 0 else ""
    reward = "not judged" if sample["parts"] is None else f"reward {sample['reward']:.3f}"
    line: Line = [(reward, HEAD), (f"  advantage {advantage:+.3f}", style)]
    parts = {k: v for k, v in (sample["parts"] or {}).items() if k != "total"}
    line.append(("".join(f"  {key} {value:.2f}" for key, value in parts.items()), ""))
    line.append((f"  {sample['tokens']} tokens", DIM))
    special = {
        "no signal": not sample["in_signal"],
        "cut by the token limit": not sample["finished"],
        "void: nothing learns from it": sample["void"],
    }
    return [*line, *((f"  [{name}]", DIM) for name, holds in special.items() if holds)]


def _written(node: Node, sample: Mapping[str, Any], full: bool) -> None:
    node.add((_text(sample["text"], full) or "(empty)", DIM))
    if failure := sample["failure"]:
        node.add(
            (f"✗ outside the grammar: {failure['reason']} (character {failure['position']})", BAD)
        )
    if sample.get("result") is not None:
        node.add((f"result: {_value(sample['result'], full)}", DIM))


def _plan_verdicts(node: Node, breakdown: Mapping[str, Any] | None) -> None:
    """Which gold values the plan holds, and what each run made of each gold step."""
    if breakdown is None:
        return
    _verdicts(node, breakdown["calls"], numbered=True)
    for run, (steps, succeeded) in enumerate(
        zip(breakdown["steps"], breakdown["succeeded"], strict=True), 1
    ):
        met = ", ".join(_step(step) for step in steps)
        sign, style = ("✓ solved", GOOD) if succeeded else ("✗ not solved", BAD)
        node.add((f"run {run}: ", DIM), (met + "  " if met else "", ""), (sign, style))
    if breakdown["extra"]:
        node.add((f"✗ {breakdown['extra']} more sub-tasks than gold calls", BAD))


def _step(step: Mapping[str, Any]) -> str:
    by = " and ".join(str(k + 1) for k in step["sub_tasks"])
    what = f"by sub-task {by} {step['semantics']:.2f}" if by else "not met"
    return f"step {step['step'] + 1} {what}"


def _verdicts(
    node: Node, verdicts: Sequence[Mapping[str, Any]] | None, numbered: bool = False
) -> None:
    """What each call and argument was judged."""
    for verdict in verdicts or ():
        child = node.add(*_verdict_line(verdict, numbered))
        for argument in verdict["arguments"]:
            child.line += argument_parts(argument)
        if verdict["note"]:
            child.line.append((f"  ({plain(verdict['note'])})", BAD))


def _verdict_line(verdict: Mapping[str, Any], numbered: bool) -> Line:
    made, due = verdict["name"], verdict["due"]
    if due is None:
        return [("answers in words", DIM)] if made is None else [(f"✗ {plain(made)}: not due", BAD)]
    if made is None:
        which = f"gold {verdict['number'] + 1} " if numbered else ""
        return [(f"✗ {which}{plain(due)}: missing", BAD)]
    if verdict["valid"] is False:
        return [(f"✗ {plain(made)}: outside its schema", BAD)]
    return [(f"✓ {plain(made)}", GOOD)]


def argument_parts(argument: Mapping[str, Any]) -> Line:
    """One argument: sign, name, value, and the value due where it differs."""
    name, made, due = plain(argument["name"]), _value(argument["made"]), _value(argument["due"])
    place = f" in {plain(argument['at'])}" if argument["at"] else ""
    text, style = {
        "equal": (f"✓ {name} = {due if argument['made'] is None else made}{place}", GOOD),
        "differs": (f"✗ {name} = {made}{place}, due {due}", BAD),
        "missing": (f"✗ {name} missing, due {due}", BAD),
        "extra": (f"✗ {name} = {made}, not due", BAD),
    }[argument["verdict"]]
    return [(f"  {text}", style)]


def call_text(call: Mapping[str, Any], full: bool = False) -> str:
    """A call as it would be written in Python.

    >>> call_text({"name": "f", "arguments": {"a": 1, "b": "x"}})
    'f(a=1, b="x")'
    """
    inside = ", ".join(f"{k}={_value(v, full)}" for k, v in call["arguments"].items())
    return plain(f"{call['name']}({inside})")


def _value(value: Any, full: bool = False) -> str:
    text = plain(json.dumps(value, ensure_ascii=False))
    return text if full or len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 1] + "…"


def _text(text: str, full: bool) -> str:
    line = plain(text)
    return line if full or len(line) <= CHARS else line[: CHARS - 1] + "…"


def _print(node: Node) -> None:
    if not sys.stdout.isatty():
        print()
        print("\n".join(lines(node)))
        return
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree(_rich(node.line))
    _grow(tree, node.children)
    console = Console()
    console.print()
    console.print(tree)


def lines(node: Node, depth: int = 0) -> Iterator[str]:
    """The tree as indented plain text."""
    yield INDENT * depth + "".join(text for text, _ in node.line).rstrip()
    for child in node.children:
        yield from lines(child, depth + 1)


def _grow(tree: Tree, children: Sequence[Node]) -> None:
    for child in children:
        _grow(tree.add(_rich(child.line)), child.children)


def _rich(line: Line) -> Text:
    from rich.text import Text

    return Text.assemble(*line)
