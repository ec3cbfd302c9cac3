"""Mutated texts through every parser: no exception, and what is read holds.

`benchmarks/fuzz_parsers.py` does the same with a million texts.
"""

from __future__ import annotations

import json
from itertools import islice

import pytest
from text_mutations import mutated

from cahl_core.protocol.parsing import (
    Execution,
    ParseFailure,
    Single,
    parse_execution,
    parse_plan,
    parse_single,
    split_single,
)
from cahl_core.protocol.spans import execution_spans, plan_spans, single_spans
from cahl_core.records import Plan

TEXTS = 20_000


@pytest.mark.parametrize("seed", [0])
def test_no_text_raises_and_what_is_read_can_be_written_again(seed: int) -> None:
    read = {"plan": 0, "execution": 0, "single": 0}
    for text in islice(mutated(seed), TEXTS):
        plan, execution, single = parse_plan(text), parse_execution(text), parse_single(text)
        for value in (plan, execution, single):
            if isinstance(value, ParseFailure):
                assert 0 <= value.position <= len(text), text
                assert value.reason
        if isinstance(plan, Plan):
            read["plan"] += 1
            _check_plan(text, plan)
        if isinstance(execution, Execution):
            read["execution"] += 1
            _check_execution(text, execution)
        if isinstance(single, Single):
            read["single"] += 1
            _check_single(text, single)
        plan_spans(text), execution_spans(text), single_spans(text)
    assert min(read.values()) > TEXTS / 50  # the mutations leave enough of either outcome
    assert max(read.values()) < TEXTS / 2


def _check_plan(text: str, plan: Plan) -> None:
    json.dumps(plan.to_json(), allow_nan=False, ensure_ascii=False).encode()
    spans = plan_spans(text).sub_tasks
    assert [json.loads(text[a:b]) for a, b in spans] == plan.to_json()


def _check_execution(text: str, execution: Execution) -> None:
    spans = execution_spans(text)
    written = [json.loads(text[a:b]) for a, b in spans.calls]
    assert written == [c.to_json() for c in execution.calls]
    for span, words in ((spans.response, execution.response), (spans.think, execution.think)):
        assert (span is None) == (words is None)
        if span is not None:
            assert text[slice(*span)] == words


def _check_single(text: str, single: Single) -> None:
    """The whole, its two parts, and its spans say the same."""
    head, tail = split_single(text)
    assert head + tail == text
    assert (parse_plan(head), parse_execution(tail)) == (single.plan, single.execution)
    spans = single_spans(text)
    assert [json.loads(text[a:b]) for a, b in spans.sub_tasks] == single.plan.to_json()
    written = [json.loads(text[a:b]) for a, b in spans.calls]
    assert written == [c.to_json() for c in single.execution.calls]
