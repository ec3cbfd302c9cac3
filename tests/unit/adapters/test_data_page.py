"""docs/data.md: its example runs as printed, its table is complete, its source declaration is valid."""

import json
import re
from pathlib import Path

import yaml

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.checks import check
from cahl_core.datasets.sources import Source
from cahl_core.records import ToolTask

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_example_becomes_the_task_that_the_page_describes(tmp_path):
    example = block("json")
    assert len(example.splitlines()) <= 20
    (tmp_path / "my_calls.json").write_text(example, encoding="utf-8")
    [record] = READERS["openai-messages"](tmp_path, "my_calls", ReadLimits())
    task = ToolTask.from_json(record)
    described = json.loads(re.search(r"refers to it: `(.*?)`", PAGE)[1])
    assert [call.name for call in task.calls] == ["find_order", "forecast"]
    assert len(task.steps) == 2 and task.calls[1].arguments == described
    assert task.meta["resolved"][1] == {"place": "OSL-0150", "days": 1}
    assert task.meta["answer"] == "Yes, take an umbrella."
    assert check(task, PrepareSettings()) is None


def test_the_source_declaration_is_valid_and_names_the_example():
    [(name, entry)] = yaml.safe_load(block("yaml")).items()
    source = Source(name=name, **entry)
    assert source.format in READERS and source.path == "my_calls.json"


def test_the_table_lists_every_format():
    rows = re.search(r"\| format \| reads \|\n\|---\|---\|\n(.*?)\n\n", PAGE, re.DOTALL)[1]
    listed = [
        name for row in rows.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert sorted(listed) == sorted(READERS)
