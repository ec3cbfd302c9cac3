"""JSON that Python reads but nobody can write down again is outside the grammar."""

from __future__ import annotations

import pytest

from cahl_core.files import dump_json
from cahl_core.protocol.parsing import ParseFailure, parse_execution, parse_plan


@pytest.mark.parametrize("value", ["1e400", "-1e400", '"\\ud800"', "NaN", "Infinity"])
def test_values_that_cannot_be_written_are_parse_failures(value: str) -> None:
    call = f'{{"name": "f", "arguments": {{"a": {value}}}}}'
    assert isinstance(parse_execution(f"<tool_call>{call}</tool_call>"), ParseFailure)
    step = f'[{{"task": "t", "tool": null, "arguments": {{"a": {value}}}}}]'
    assert isinstance(parse_plan(f"<plan>{step}</plan>"), ParseFailure)


@pytest.mark.parametrize("value", ["1e300", '"\\ud83d\\ude00"', "0.1", "12345678901234567890"])
def test_values_that_can_be_written_are_kept(value: str) -> None:
    call = f'{{"name": "f", "arguments": {{"a": {value}}}}}'
    execution = parse_execution(f"<tool_call>{call}</tool_call>")
    assert not isinstance(execution, ParseFailure)
    dump_json(execution.calls[0].to_json()).encode()
