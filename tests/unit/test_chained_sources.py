"""What may be scored of the sources that are trained on, and the line that says what was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cahl_core.config import Settings, validate
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.evaluation.chained_sources import (
    Trained,
    file_benchmark,
    request_key,
    source_benchmark,
    training_overlap,
)
from cahl_core.records import Message, ToolTask
from tests.unit.chained_tasks import trip

SOURCES = """
toy: {kind: data, description: d, licence: MIT, fetcher: path, format: tool-tasks, path: x}
"""


def write(path: Path, tasks: list[ToolTask]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(t.to_json()) + "\n" for t in tasks))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Trained on trips 0 and 1, the dev split holds 2, the test split reserves 3, nobody has 4."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sources.yaml").write_text(SOURCES)
    (tmp_path / "data" / "holdout.yaml").write_text("toy: [trip-3, trip-99]\n")
    write(tmp_path / "data" / "raw" / "toy" / "all.jsonl", [trip(i) for i in range(5)])
    write(tmp_path / "data" / "prepared" / "train.jsonl", [trip(0), trip(1)])
    write(tmp_path / "data" / "prepared" / "dev.jsonl", [trip(2)])
    write(tmp_path / "data" / "prepared" / "dev_unseen_tools.jsonl", [])
    return tmp_path


def settings(split: str = "not_trained", **changes: Any) -> Settings:
    return validate(changes | {"evaluate": {"chained_split": split}})


@pytest.mark.parametrize(
    ("split", "ids"),
    [
        ("test", [3]),
        ("dev", [2]),
        ("held_back", [2, 3]),
        ("not_trained", [2, 3, 4]),
        ("all", [0, 1, 2, 3, 4]),
    ],
)
def test_each_split_has_its_records(root: Path, split: str, ids: list[int]) -> None:
    found = source_benchmark(root, settings(split), "toy")
    assert [item.id for item in found.items()] == [f"trip-{i}" for i in ids]
    assert found.name == "toy"
    about = found.about()
    notes, line = about["notes"], about["training_overlap"]["line"]
    if split == "all":
        assert line.startswith("CONTAMINATED: 2 of 5 requests")
        assert "trip-0, trip-1" in line
        assert "TRAINING RECORDS INCLUDED" in notes[0]
    else:
        assert line.startswith(f"0 of {len(ids)} requests are in the training set")
    if split in ("test", "held_back"):
        assert any(note.startswith("1 more records of the split are not in") for note in notes)


def test_records_for_training_are_not_thinned_out_here(root: Path) -> None:
    found = source_benchmark(root, settings("all", prepare={"max_records": 1}), "toy")
    assert len(found.items()) == 5


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'held_back', 'test', 'dev', 'not_trained' or 'all'"):
        settings("train")
    assert validate({}).evaluate.chained_split == "not_trained"


def test_a_held_back_record_that_was_trained_on_is_refused(root: Path) -> None:
    write(root / "data" / "prepared" / "train.jsonl", [trip(0), trip(3)])
    with pytest.raises(DataError, match=r"CONTAMINATED: 1 of 1 requests.*trip-3"):
        source_benchmark(root, settings("test"), "toy")


def test_a_record_counts_as_trained_if_a_training_task_was_derived_from_it(root: Path) -> None:
    derived = trip(77)
    derived = replace(derived, id="trip-4--x", meta={**derived.meta, "derived_from": "trip-4"})
    write(root / "data" / "prepared" / "train.jsonl", [derived])
    found = source_benchmark(root, settings("not_trained"), "toy")
    assert "trip-4" not in [item.id for item in found.items()]


def test_without_a_training_set_only_what_needs_none_is_given(root: Path) -> None:
    (root / "data" / "prepared" / "train.jsonl").unlink()
    for split in ("dev", "held_back", "not_trained"):
        with pytest.raises(StageInputError, match="cahl prepare"):
            source_benchmark(root, settings(split), "toy")
    for split in ("test", "all"):
        found = source_benchmark(root, settings(split), "toy")
        assert "NOT CHECKED" in found.about()["training_overlap"]["line"]


def test_a_split_without_records_says_where_they_are(root: Path) -> None:
    write(root / "data" / "raw" / "toy" / "all.jsonl", [trip(0)])
    with pytest.raises(StageInputError, match="chained_split to held_back or not_trained"):
        source_benchmark(root, settings("test"), "toy")
    with pytest.raises(StageInputError, match="does not exist"):
        (root / "data" / "raw" / "toy" / "all.jsonl").unlink()
        (root / "data" / "raw" / "toy").rmdir()
        source_benchmark(root, settings("all"), "toy")


# --- overlap -------------------------------------------------------------------------------------


def test_overlap_is_of_words_not_of_spelling(root: Path) -> None:
    trained = Trained.read(root, settings().prepare)
    assert trained is not None
    assert trained.size == 2
    task = trip(0)
    shouted = Message("user", task.messages[0].content.upper() + "!")
    loud = replace(task, id="x", source="y", messages=(shouted,))
    system = replace(loud, messages=(Message("system", "Be brief."), *task.messages))
    other = replace(trip(9), id="z")
    found = training_overlap([loud, system, other], trained)
    assert found.ids == ("x", "x")
    assert found.line().startswith("CONTAMINATED: 2 of 3 requests")


def test_short_requests_are_equal_by_chance_and_no_overlap() -> None:
    assert request_key(["Yes, please do!"]) == ""
    assert request_key(["Book a hotel in Oslo now"]) == request_key(
        ["book a hotel", "in oslo NOW."]
    )


def test_sharded_training_sets_are_read(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data" / "prepared" / "train.jsonl").unlink()
    table = pa.table({"id": ["trip-4"], "record": [json.dumps(trip(4).to_json())]})
    pq.write_table(table, root / "data" / "prepared" / "train-00000-of-00001.parquet")
    found = source_benchmark(root, settings("not_trained"), "toy")
    assert [item.id for item in found.items()] == [f"trip-{i}" for i in range(4)]


def test_a_file_of_training_requests_is_scored_with_a_loud_line(root: Path) -> None:
    path = root / "my tasks.v2.jsonl"
    write(path, [replace(trip(0), id="mine"), replace(trip(7), id="new")])
    found = file_benchmark(root, settings(), path)
    assert (found.name, len(found.items())) == ("tasks:my tasks", 2)
    about = found.about()
    overlap = about["training_overlap"]
    assert overlap["line"].startswith("CONTAMINATED: 1 of 2 requests")
    assert (overlap["tasks"], overlap["in_training"]) == (2, ["mine"])
    assert overlap["training_tasks"] == 2
    assert about["set_aside"] == about["flaws"] == []
    assert list(about["data"]) == ["my tasks.v2.jsonl"]


def test_nothing_of_the_project_is_needed_to_score_a_file(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", [trip(0)])
    found = file_benchmark(tmp_path, settings(), tmp_path / "x.jsonl")
    assert "NOT CHECKED" in found.about()["training_overlap"]["line"]
