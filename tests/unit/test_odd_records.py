"""Records with odd values anywhere are judged like any other: no value ends the stage."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cahl_core.config import validate
from cahl_core.datasets.adapters.base import ReadLimits, converted
from cahl_core.datasets.adapters.tasks import convert
from cahl_core.datasets.checks import parse
from cahl_core.datasets.contamination import Benchmarks
from cahl_core.datasets.judge import Judge
from cahl_core.datasets.prompts import NoMeter
from cahl_core.datasets.raw import RawRecord, read_raw
from cahl_core.records import ToolSpec

GOOD = json.loads((Path(__file__).parents[1] / "poison/records.jsonl").read_text().splitlines()[0])
ODD: list[Any] = [
    True, None, {}, [], "x", 3, 1e308, {"type": ["string", "null"]}, {"enum": []}, {"const": 1},
    {"anyOf": [True, {"type": "integer"}]}, {"type": "object", "properties": {"q": True}}, [[]],
    [None], "$var1$", {"description": None},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def test_no_odd_value_anywhere_in_a_record_raises() -> None:
    pool = ToolSpec("pooled", "Pools.", {"type": "object", "properties": {"a": True}})
    settings = validate({"prepare": {"rename_share": 0.6, "distractors": 3}})
    judge = Judge(NoMeter(), Benchmarks(), settings, (pool,))
    generator = random.Random(0)
    ended = []
    for number in range(3000):
        record = copy.deepcopy({**GOOD, "id": f"odd-{number}"})
        path = generator.choice([p for p in places(record) if p != ("id",)])
        target: Any = record
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = copy.deepcopy(generator.choice(ODD))
        for made in converted(convert, RawRecord("x", record), "poison", "x", ReadLimits()):
            ended += [p.quarantined is None for p in judge.record(made).prompts]
    assert len(ended) == 3000
    assert 0 < sum(ended) < 3000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("results", 3), ("resolved", ["x", None]), ("resolved", [None] * 3), ("levels", "0"),
        ("levels", [0] * 3), ("ungrounded", "2.address"), ("answer", 5), ("weight", "much"),
        ("weight", -1), ("results", [None] * 3), ("derivation", []),
    ],
)  # fmt: skip
def test_a_meta_field_of_another_form_is_named(field: str, value: Any) -> None:
    problem = parse({**GOOD, "meta": {**GOOD["meta"], field: value}}, "x")
    assert isinstance(problem, tuple)
    assert problem[0] == "malformed"
    assert f"meta.{field}" in problem[1]


def test_a_bad_parquet_row_is_one_problem_and_the_others_are_read(tmp_path: Path) -> None:
    texts = [json.dumps(GOOD), '{"a": NaN}', "{broken", "x" * 3000, json.dumps(GOOD)]
    pq.write_table(pa.table({"record": texts}), tmp_path / "a.parquet")
    pq.write_table(
        pa.table({"query": ["q", "r"], "score": [1.0, float("nan")]}), tmp_path / "b.parquet"
    )
    rules = [r.problem[0] if r.problem else "" for r in read_raw(tmp_path, 2000)]
    assert rules == ["", "not_json", "not_json", "record_too_large", "", "", "not_json"]
