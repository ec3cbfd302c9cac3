"""``cahl chat``: a terminal conversation with a registered agent. Its calls are shown, never run."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.errors import CahlError, DataError
from cahl_core.files import read_json
from cahl_core.serving.openai_form import parse_tools
from cahl_core.serving.registry import load_agent

if TYPE_CHECKING:
    from rich.console import Console

HELP = "Type a request. /tools lists the tools, /new starts afresh, /quit or Ctrl-D leaves."


def _tool(name: str, description: str, required: Sequence[str], **fields: str) -> dict[str, Any]:
    properties = {
        field: {"type": kind, "description": text}
        for field, (kind, _, text) in ((f, v.partition(": ")) for f, v in fields.items())
    }
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


EXAMPLE_TOOLS = [
    _tool(
        "get_weather",
        "Current weather of a city.",
        ["city"],
        city="string: Name of the city.",
        unit="string: celsius or fahrenheit.",
    ),
    _tool(
        "search_flights",
        "Flights between two cities on a day.",
        ["origin", "destination", "date"],
        origin="string: City of departure.",
        destination="string: City of arrival.",
        date="string: Day as YYYY-MM-DD.",
    ),
    _tool(
        "convert_currency",
        "Converts an amount of money.",
        ["amount", "source", "target"],
        amount="number: How much.",
        source="string: Currency code to convert from.",
        target="string: Currency code to convert to.",
    ),
]


def chat(
    root: Path,
    settings: Settings,
    model_uri: str = "models:/cahl-agent@champion",
    tools: Path | None = None,
    once: str | None = None,
) -> None:
    """Answers ``once`` and returns, or talks until the user leaves.

    Args:
        tools: JSON file with a list of OpenAI function tools; without it a few examples are offered.

    Raises:
        DataError: the tools' file is malformed; RegistryError: no such model.
    """
    from rich.console import Console

    offered = EXAMPLE_TOOLS if tools is None else read_tools(tools)
    console = Console(highlight=False, markup=False)
    with console.status("loading the model"):
        agent = load_agent(root, settings, model_uri)
    if once is not None:
        _turn(agent, console, [{"role": "user", "content": once}], offered)
        return
    console.print(HELP)
    _converse(agent, console, offered)


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The tools of a file, checked.

    Raises:
        DataError: no such file, not JSON, or a tool without name or schema.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", "give a JSON file with a list of tools")
    tools = read_json(path)
    if not isinstance(tools, list):
        raise DataError(f"{path}: top level is {type(tools).__name__}, must be a list of tools")
    parse_tools(tools, str(path))
    return tools


def _converse(agent: Any, console: Console, tools: list[dict[str, Any]]) -> None:
    messages: list[dict[str, Any]] = []
    while True:
        try:
            text = console.input("\nyou: ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text == "/quit":
            return
        if text == "/new":
            messages = []
        elif text == "/tools":
            console.print("\n".join(_signature(tool) for tool in tools))
        elif text.startswith("/"):
            console.print(HELP)
        elif text:
            asked = {"role": "user", "content": text}
            try:
                reply = _turn(agent, console, [*messages, asked], tools)
            except CahlError as error:
                console.print(clean(str(error)), style="red")
                continue
            messages += [asked, reply]


def _turn(
    agent: Any,
    console: Console,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
) -> dict[str, Any]:
    """Asks once, shows the answer, returns it as an assistant message."""
    with console.status("thinking"):
        (answer,) = agent.predict([{"messages": messages, "tools": tools}])
    show(console, answer)
    return {
        "role": "assistant",
        "content": answer["content"],
        "tool_calls": answer["tool_calls"],
    }


def show(console: Console, answer: dict[str, Any]) -> None:
    """Plan as a table, calls one a line, words as they are."""
    from rich.table import Table
    from rich.text import Text

    if answer["plan"]:
        table = Table("#", "sub-task", "tool", "arguments", title="plan", title_justify="left")
        for number, step in enumerate(answer["plan"], 1):
            arguments = json.dumps(step["arguments"], ensure_ascii=False)
            cells = (str(number), step["task"], step["tool"] or "–", arguments)
            table.add_row(*(Text(clean(cell)) for cell in cells))
        console.print(table)
    for call in answer["tool_calls"]:
        function = call["function"]
        waits = f"  (after {', '.join(call['waits_for'])})" if "waits_for" in call else ""
        console.print(clean(f"call {function['name']} {function['arguments']}{waits}"))
    if answer["content"]:
        console.print(clean(answer["content"]))
    if answer["problem"]:
        console.print(clean(f"the model's text is malformed: {answer['problem']}"), style="yellow")
    elif answer["outcome"] == "abstained" and not answer["content"]:
        console.print("the agent declined: no tool fits the request")


def clean(text: str) -> str:
    """Text without control characters: what a model writes must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf"))


def _signature(tool: dict[str, Any]) -> str:
    function = tool.get("function", tool)
    fields = ", ".join(function["parameters"].get("properties", {}))
    return clean(f"{function['name']}({fields})  {function.get('description', '')}")
