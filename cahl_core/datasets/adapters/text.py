"""Values and calls that sources write as text: JSON, Python literals, ``[Name(a="x", n=2)]``.

Nothing is evaluated: a value is JSON or what `ast.literal_eval` takes, on text of bounded length and
nesting. Every failure is a ValueError, which makes the record malformed with the reason.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_CHARS = 200_000
MAX_DEPTH = 60
MAX_TRIES = 2_000


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if value - value != 0:  # 1e999 is JSON, but infinite as a number
        raise ValueError(f"{digits} is too large a number")
    return value


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def literal(text: str) -> Any:
    """The value a text writes, as JSON or as a Python literal, in JSON types.

    >>> literal('{"a": [1, true]}'), literal("{'a': (1, None)}")
    ({'a': [1, True]}, {'a': [1, None]})
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"a value of {len(text)} characters, {MAX_CHARS} allowed")
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"a value nested more than {MAX_DEPTH} deep")
    text = text.strip()
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError:
        pass
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"neither JSON nor a literal: {text[:60]!r}") from None
    return plain(value)


def _depth(text: str) -> int:
    """An upper bound of the nesting: brackets inside strings count too."""
    opened = text.count("(") + text.count("[") + text.count("{")
    if opened <= MAX_DEPTH:
        return opened
    level = deepest = 0
    for char in text:
        if char in "([{":
            level += 1
            deepest = max(deepest, level)
        elif char in ")]}":
            level -= 1
    return deepest


def plain(value: Any) -> Any:
    """A Python literal in JSON types: tuples and sets become lists, keys become texts."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and value - value == 0:  # neither NaN nor infinite
        return value
    raise ValueError(f"{type(value).__name__} is not a JSON value")


def json_or_text(text: str) -> Any:
    """A recorded result: the JSON value a text holds, or the text (``null`` stays a text)."""
    try:
        value = DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return text
    return text if value is None else value


def arguments_of(value: Any) -> dict[str, Any]:
    """A call's arguments from the forms in use: object, text, nothing, list of name and value."""
    if isinstance(value, str):
        value = literal(value) if value.strip() else None
    if value is None or value == []:
        return {}
    if isinstance(value, list) and all(isinstance(v, dict) and "name" in v for v in value):
        return {str(v["name"]): v.get("value") for v in value}
    if not isinstance(value, dict):
        raise ValueError(f"arguments are {type(value).__name__}, must be an object")
    return value


def call_of(value: Any) -> dict[str, Any]:
    """A call as ``{"name", "arguments"}``, from any of the key names in use."""
    if not isinstance(value, dict):
        raise ValueError(f"a call is {type(value).__name__}, must be an object")
    function = value.get("function")
    if isinstance(function, dict):
        value = function
    keys = ("arguments", "parameters", "args", "kwargs", "input")
    found = next((value[key] for key in keys if value.get(key) is not None), None)
    name = value.get("name") if isinstance(value.get("name"), str) else function
    if not isinstance(name, str) or not name.strip():
        raise ValueError("a call has no name")
    return {"name": name, "arguments": arguments_of(found)}


def calls_of(text: str) -> list[dict[str, Any]]:
    """Calls written as JSON: one object, a list of them, or one object per line."""
    try:
        value = literal(text)
        return [call_of(v) for v in (value if isinstance(value, list) else [value])]
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [call_of(literal(line)) for line in lines]


def parse_calls(text: str) -> list[dict[str, Any]]:
    """Calls written as ``[Name With Spaces(arg="v", n=2), Other()]``.

    >>> parse_calls('[Get News(query="a, (b)", n=2, tags=["x"]), stop()]')
    [{'name': 'Get News', 'arguments': {'query': 'a, (b)', 'n': 2, 'tags': ['x']}}, \
{'name': 'stop', 'arguments': {}}]
    """
    body = text.strip()
    if len(body) > MAX_CHARS or not (body.startswith("[") and body.endswith("]")):
        raise ValueError(f"not a list of calls: {body[:60]!r}")
    return [_call(part) for part in _split(body[1:-1], quotes=False)]


def looks_like_calls(text: str) -> bool:
    """Whether a text is meant as `parse_calls` reads it: bracketed, with a name before ``(``."""
    body = text.strip()
    head, bracket, _ = body[1:].partition("(")
    head = head.strip()
    named = bool(head) and head[0] not in "\"'" and not set(head) & set("[]{}=\n")
    return body.startswith("[") and body.endswith(")]") and bool(bracket) and named


def _call(text: str) -> dict[str, Any]:
    name, bracket, rest = text.strip().partition("(")
    if not bracket or not rest.endswith(")") or not name.strip():
        raise ValueError(f"not a call: {text[:60]!r}")
    arguments: dict[str, Any] = {}
    for part in _split(rest[:-1], quotes=True):
        key, equals, value = part.partition("=")
        key = key.strip().strip("\"'")
        if not equals or not key or key in arguments:
            raise ValueError(f"not an argument of {name.strip()}: {part[:60]!r}")
        arguments[key] = literal(value)
    return {"name": name.strip(), "arguments": arguments}


def _split(text: str, quotes: bool) -> Iterator[str]:
    """Parts of ``text`` at commas outside brackets and texts.

    Names may hold apostrophes, so outside brackets a quote opens a text only if ``quotes``.
    """
    level, start, quote, escaped = 0, 0, "", False
    for position, char in enumerate(text):
        if quote:
            if char == quote and not escaped:
                quote = ""
            escaped = char == "\\" and not escaped
        elif char in "\"'" and (quotes or level):
            quote = char
        elif char in "([{":
            level += 1
        elif char in ")]}":
            level -= 1
        elif char == "," and level == 0:
            yield text[start:position]
            start = position + 1
    if quote or level:
        raise ValueError(f"quotes or brackets do not match: {text[:60]!r}")
    if text[start:].strip() or start:
        yield text[start:]


def json_values(text: str) -> Iterator[tuple[Any, int, int]]:
    """Every JSON object or list that stands in a text, with its start and end."""
    position = failed = 0
    while match := _next_bracket(text, position):
        try:
            value, end = DECODER.raw_decode(text, match - 1)
        except (ValueError, RecursionError):
            position, failed = match, failed + 1
            if failed > MAX_TRIES:
                raise ValueError(
                    f"more than {MAX_TRIES} brackets that open no JSON value"
                ) from None
            continue
        yield value, match - 1, end
        position = end


def _next_bracket(text: str, start: int) -> int:
    """One past the next ``{`` or ``[``; 0 where there is none."""
    found = [p for p in (text.find("{", start), text.find("[", start)) if p >= 0]
    return min(found) + 1 if found else 0


def balanced(text: str, start: int) -> int:
    """One past the bracket that closes the one at ``start``; brackets inside texts do not count."""
    level, quote, escaped = 0, "", False
    for position in range(start, len(text)):
        char = text[position]
        if quote:
            if char == quote and not escaped:
                quote = ""
            escaped = char == "\\" and not escaped
        elif char in "\"'":
            quote = char
        elif char in "([{":
            level += 1
        elif char in ")]}":
            level -= 1
            if level == 0:
                return position + 1
    raise ValueError(f"a bracket is never closed: {text[start : start + 60]!r}")
