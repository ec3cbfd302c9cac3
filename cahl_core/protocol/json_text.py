"""Strict JSON inside model text: a value, or a `ParseFailure` that says where.

Stricter than Python's reader, so that whatever is read can be written down again and fits every
other JSON reader: no NaN, no repeated keys, no number beyond float64, no half of a surrogate pair,
nesting bounded by `MAX_JSON_DEPTH`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_JSON_DEPTH = 64
MAX_DIGITS = 308  # of an integer: float64 ends at 1.8e308

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """Why a text is outside the grammar, and the character position where that shows."""

    reason: str
    position: int


def load(text: str, start: int, end: int) -> Any:
    """The JSON value that fills ``text[start:end]``, or a `ParseFailure`.

    The position is that of the character where the syntax breaks; of the element of a top-level
    list, or of the value, that holds what JSON allows and we do not.

    >>> load('[{"a": 1}, {"a": NaN}]', 0, 22)
    ParseFailure(reason='not JSON: NaN', position=11)
    """
    body = text[start:end]
    deep = _too_deep(body)
    if deep is not None:
        return ParseFailure(f"nested deeper than {MAX_JSON_DEPTH}", start + deep)
    try:
        return _decoded(body)
    except json.JSONDecodeError as error:
        return ParseFailure(f"not JSON: {error.msg}", start + error.pos)
    except ValueError as error:
        return ParseFailure(f"not JSON: {error}", _culprit(text, start, end))


def elements(text: str, start: int, end: int) -> Iterator[Span]:
    """The spans of the elements of the JSON list in ``text[start:end]``, in order.

    What follows an element that is no JSON is not looked at.
    """
    position = skip_space(text, start)
    if not text.startswith("[", position):
        return
    position = skip_space(text, position + 1)
    while position < end and text[position] != "]":
        try:
            _, stop = _LENIENT.raw_decode(text, position)
        except ValueError:
            return
        yield position, stop
        position = skip_space(text, stop)
        if not text.startswith(",", position):
            return
        position = skip_space(text, position + 1)


def skip_space(text: str, position: int) -> int:
    """The first position from ``position`` on that is no white space."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def unwritable(text: str) -> int | None:
    """Position of the first half of a surrogate pair, which no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _decoded(body: str) -> Any:
    value = _STRICT.decode(body)
    if _SURROGATE.search(body) is not None:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair") from None
    return value


def _culprit(text: str, start: int, end: int) -> int:
    """Where the element is that `_decoded` refuses; the value's start if it is no list."""
    for first, last in elements(text, start, end):
        try:
            _decoded(text[first:last])
        except ValueError:
            return first
    return skip_space(text, start)


def _too_deep(body: str) -> int | None:
    """Where the nesting passes its bound; brackets inside strings do not count."""
    if body.count("[") + body.count("{") <= MAX_JSON_DEPTH:
        return None
    depth = 0
    for match in _BRACKET.finditer(body):
        bracket = match.group()
        depth += (bracket in "[{") - (bracket in "]}")
        if depth > MAX_JSON_DEPTH:
            return match.start()
    return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is out of range")
    return number


def _bounded(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{digits[:20]}... has {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


_SPACE = re.compile(r"\s*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# a string is skipped whole, an unfinished one to the end
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z|\\)|[\[\]{}]', re.DOTALL)
_STRICT = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_finite,
    parse_int=_bounded,
    object_pairs_hook=_unique,
)
_LENIENT = json.JSONDecoder(parse_float=str, parse_int=str)
