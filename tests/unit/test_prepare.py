"""The prepare stage on a user's own records: all are accounted for, outputs are stable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cahl_core.config import Settings, validate
from cahl_core.datasets import prepare
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.files import read_json, read_jsonl
from cahl_core.records import ToolTask
from cahl_core.stage import StageRun

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
SOURCES = """
own: {kind: data, description: my records, licence: MIT, fetcher: path, format: tool-tasks, path: x}
"""


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer: a token is a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("backbone")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def record(number: int, **changes: Any) -> dict[str, Any]:
    def tool(name: str, description: str, argument: str) -> dict[str, Any]:
        schema = {
            "type": "object",
            "properties": {argument: {"type": "string"}},
            "required": [argument],
        }
        return {"name": name, "description": description, "parameters": schema}

    own = {
        "id": f"own-{number}",
        "source": "own",
        "messages": [{"role": "user", "content": f"Weather in town {number}?"}],
        "tools": [
            tool("get_weather", "Get the weather for a city", "city"),
            tool("play_song", "Play a song", "title"),
        ],
        "answers": [[{"name": "get_weather", "arguments": {"city": f"town {number}"}}]],
        "meta": {"resolved": [{"city": f"town {number}"}]},
    }  # fmt: skip
    return {**own, **changes}


def project(root: Path, backbone: Path, records: list[Any]) -> Path:
    (root / "data" / "raw" / "own").mkdir(parents=True)
    (root / "data" / "sources.yaml").write_text(SOURCES)
    shutil.copytree(backbone, root / "data" / "backbone")
    lines = [json.dumps(r) for r in records]
    (root / "data" / "raw" / "own" / "a.jsonl").write_text("\n".join(lines))
    return root


def settings(**changes: Any) -> Settings:
    own = {"sources": ["own"], "max_prompt_tokens": 6000, "dev_tasks": 8}
    return validate({"model": {"max_context": 9000}, "prepare": {**own, **changes}})


def run(root: Path, **changes: Any) -> dict[str, Any]:
    prepare.run(StageRun("prepare", root, settings(**changes)))
    metrics: dict[str, Any] = read_json(root / "metrics" / "prepare.json")
    return metrics


RECORDS = [
    *(record(n) for n in range(20)),
    "not a record",
    record(20, messages=[{"role": "user", "content": "Weather in TOWN 3?"}]),
    record(3, messages=[{"role": "user", "content": "Another request with a taken id"}]),
    record(21, messages=[{"role": "user", "content": "long " * 3000}]),
    record(22, tools=[{"name": "get_weather"}]),
    record(23),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    root = project(tmp_path_factory.mktemp("project"), backbone, RECORDS)
    (root / "data" / "holdout.yaml").write_text("own: [own-23]\n")
    run(root)
    return root


def test_every_record_is_in_exactly_one_place(prepared: Path) -> None:
    counts = read_json(prepared / "metrics" / "prepare.json")["sources"]["own"]
    assert counts == {
        "in": 26,
        "kept": 20,
        "held_out": 1,
        "quarantined": {
            "duplicate": 2, "malformed": 1, "prompt_too_long": 1, "tool_without_schema": 1,
        },
    }  # fmt: skip
    quarantined = list(read_jsonl(prepared / "data" / "prepared" / "quarantine.jsonl"))
    assert [q["id"] for q in quarantined] == ["own-20", "own-20", "own-3", "own-21", "own-22"]
    assert all(q["detail"] and q["excerpt"] for q in quarantined)


def tasks(root: Path, name: str) -> list[ToolTask]:
    return [ToolTask.from_json(r) for r in read_jsonl(root / "data" / "prepared" / f"{name}.jsonl")]


def test_splits_share_no_request_and_derived_tasks_follow_their_parent(prepared: Path) -> None:
    train, dev = tasks(prepared, "train"), tasks(prepared, "dev")
    assert len(dev) == 8
    assert not {t.messages[0].content for t in train} & {t.messages[0].content for t in dev}
    for own, other in ((train, dev), (dev, train)):
        parents = {t.meta["derived_from"] for t in own if "derived_from" in t.meta}
        assert parents <= {t.id for t in own}
        assert not parents & {t.id for t in other}


def test_shares_of_derived_tasks_are_the_settings(prepared: Path) -> None:
    train = tasks(prepared, "train")
    kinds = [t.meta.get("derivation", "original") for t in train]
    shares = settings().prepare
    assert abs(kinds.count("single_step") / len(train) - shares.single_step_share) < 0.05
    assert abs(kinds.count("irrelevance") / len(train) - shares.irrelevance_share) < 0.05


def test_the_held_out_record_is_nowhere(prepared: Path) -> None:
    for file in (prepared / "data" / "prepared").glob("*.jsonl"):
        assert "own-23" not in file.read_text()
        assert "town 23" not in file.read_text()


def test_a_second_run_gives_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "data", tmp_path / "data")
    before = {p.name: p.read_bytes() for p in (prepared / "data" / "prepared").iterdir()}
    shutil.rmtree(tmp_path / "data" / "prepared")
    run(tmp_path)
    after = {p.name: p.read_bytes() for p in (tmp_path / "data" / "prepared").iterdir()}
    assert before == after
    assert str(prepared) not in before["expectations.json"].decode()


def test_the_report_lists_expectations_with_severity_and_observation(prepared: Path) -> None:
    report = read_json(prepared / "data" / "prepared" / "expectations.json")
    assert report["success"] is True
    assert {"expectation", "column", "success", "severity", "observed"} <= set(report["results"][0])
    assert {r["severity"] for r in report["results"]} == {"critical", "warning"}
    page = (prepared / "data" / "prepared" / "expectations.html").read_text()
    assert page.count("<tr") == len(report["results"]) + 1
    assert "http" not in page


def test_a_failed_critical_expectation_stops_but_keeps_the_report(
    tmp_path: Path, backbone: Path
) -> None:
    root = project(tmp_path, backbone, [*(record(n) for n in range(8)), *["bad"] * 8])
    with pytest.raises(DataError, match=r"ExpectColumnMaxToBeBetween\(faulty_share\)"):
        run(root)
    for folder in (root / "data" / "prepared", root / ".cahl" / "prepare"):
        assert read_json(folder / "expectations.json")["success"] is False
        assert "FAILED (critical)" in (folder / "expectations.html").read_text()


def test_missing_inputs_say_which_command_makes_them(tmp_path: Path, backbone: Path) -> None:
    root = project(tmp_path, backbone, RECORDS)
    shutil.rmtree(root / "data" / "raw" / "own")
    with pytest.raises(StageInputError, match=r"raw/own does not exist[\s\S]*cahl fetch"):
        run(root)
    shutil.rmtree(root / "data" / "backbone")
    with pytest.raises(StageInputError, match="has no backbone"):
        run(root)


def test_nothing_usable_is_a_data_error(tmp_path: Path, backbone: Path) -> None:
    root = project(tmp_path, backbone, ["bad", 3])
    with pytest.raises(DataError, match="no record of any source is usable"):
        run(root)


def test_shares_that_leave_no_place_are_refused(tmp_path: Path, backbone: Path) -> None:
    root = project(tmp_path, backbone, [record(1)])
    with pytest.raises(ConfigError, match="must be below 1"):
        run(root, single_step_share=0.9)


def test_max_records_takes_a_fixed_sample(tmp_path: Path, backbone: Path) -> None:
    root = project(tmp_path, backbone, [record(n) for n in range(20)])
    assert run(root, max_records=6)["sources"]["own"]["in"] == 6


def test_a_broken_line_of_a_source_names_file_and_line(tmp_path: Path, backbone: Path) -> None:
    root = project(tmp_path, backbone, [record(1)])
    with (root / "data" / "raw" / "own" / "a.jsonl").open("a") as out:
        out.write('\n{"id": ')
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        run(root)
