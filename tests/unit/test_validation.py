"""``cahl data validate``: what it says of files and sources before anything is prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cahl_core.config import Settings, validate
from cahl_core.datasets.validation import command, recognise
from cahl_core.errors import ConfigError, DataError, StageInputError

POISON = Path(__file__).parents[1] / "poison"
SOURCES = """
own: {kind: data, description: mine, licence: MIT, fetcher: path, format: tool-tasks, path: x}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sources.yaml").write_text(SOURCES)
    return tmp_path


def settings() -> Settings:
    return validate({"prepare": {"decontaminate": []}})


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_fault_is_counted_with_its_meaning_and_an_example(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="prompts break a rule"):
        command(root, settings(), str(POISON / "records.jsonl"), None, True)
    found = report(capsys)
    lines = (POISON / "records.jsonl").read_text().splitlines()
    expected = [json.loads(line)["meta"]["expect"] for line in lines]
    assert found["prompts"] == len(lines)
    assert found["kept"] == expected.count("")
    assert {rule: entry["count"] for rule, entry in found["rules"].items()} == {
        rule: expected.count(rule) for rule in set(expected) - {""}
    }
    assert all(entry["meaning"] and entry["examples"] for entry in found["rules"].values())
    assert any("prompt lengths" in note for note in found["not_checked"])


def test_a_sound_file_passes_and_its_table_is_readable(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "sound.jsonl"
    path.write_text((POISON / "records.jsonl").read_text().splitlines()[0] + "\n")
    command(root, settings(), str(path), None, False)
    assert "1 records, 1 prompts: 1 hold, 0 break a rule" in capsys.readouterr().out


def test_a_fetched_source_is_validated_by_its_name(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageInputError, match="cahl data fetch own"):
        command(root, settings(), "own", None, True)
    (root / "data" / "raw" / "own").mkdir(parents=True)
    first = (POISON / "records.jsonl").read_text().splitlines()[0]
    (root / "data" / "raw" / "own" / "a.jsonl").write_text(first)
    command(root, settings(), "own", None, True)
    assert report(capsys)["kept"] == 1


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"messages": [], "answers": [], "tools": []}, "tool-tasks"),
        ({"messages": [], "tools": []}, "openai-messages"),
        ({"conversations": []}, "sharegpt"),
        ({"query": "", "answers": "[]", "tools": "[]"}, "xlam"),
        ({"system": "", "chat": ""}, "glaive"),
        ({"question": "", "answer": ""}, "qa"),
    ],
)
def test_the_format_is_recognised_by_the_first_record(
    tmp_path: Path, record: dict[str, Any], format: str
) -> None:
    (tmp_path / "a.jsonl").write_text("not json\n" + json.dumps(record))
    assert recognise(tmp_path / "a.jsonl", 1000) == format
    assert recognise(tmp_path, 1000) == format


def test_what_cannot_be_told_or_found_says_what_to_give(root: Path) -> None:
    (root / "odd.jsonl").write_text('{"x": 1}')
    with pytest.raises(ConfigError, match=r"give --format, one of .*openai-messages"):
        command(root, settings(), str(root / "odd.jsonl"), None, True)
    with pytest.raises(ConfigError, match="neither a file, a folder nor a source"):
        command(root, settings(), "nothing", None, True)
    with pytest.raises(ConfigError, match="format 'csv' is not one of task records"):
        command(root, settings(), str(root / "odd.jsonl"), "csv", True)
