"""What a decoder may evaluate in a model's text, and decoded values as JSON.

Loaded by `bfcl_worker`, in a process that sees the standard library and one unzipped wheel.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any


def plain(value: Any) -> Any:
    """A decoded value as JSON: tuples are lists; what JSON does not have, and keys, are text."""
    if isinstance(value, dict):
        return {str(key): plain(field) for key, field in value.items()}
    if isinstance(value, list | tuple):
        return [plain(element) for element in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    finite = isinstance(value, float) and value - value == 0
    return value if finite else repr(value)


OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
LARGE = 10**100


def arithmetic(text: str) -> Any:
    """The value of an expression of numbers, texts, lists and + - * / // % ** alone.

    Raises:
        ValueError: anything else (names, calls, attributes), and what would take time or memory.

    >>> arithmetic("2 * 3 ** 2 - 1"), arithmetic("'a' + 'b'")
    (17, 'ab')
    """
    return _value(ast.parse(text, mode="eval").body)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.List(elts=elements):
            return [_value(e) for e in elements]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _combined(type(op), _value(left), _value(right))
    raise ValueError(f"not arithmetic on literals: {ast.unparse(node)[:80]}")


def _combined(op: type, left: Any, right: Any) -> Any:
    numbers = all(isinstance(v, int | float) and abs(v) < LARGE for v in (left, right))
    if not numbers and op is not ast.Add:
        raise ValueError("only + is evaluated on anything but numbers below 1e100")
    if op is ast.Pow and abs(right) > 100:
        raise ValueError("the exponent is too large to be evaluated")
    return OPERATORS[op](left, right)
