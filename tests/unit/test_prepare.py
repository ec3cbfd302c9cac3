"""The prepare stage on a user's own records: all are accounted for, outputs are stable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cahl_core.config import Settings, validate
from cahl_core.datasets import prepare
from cahl_core.errors import ConfigError, DataError, SourceError, StageInputError
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
    own = {
        "sources": ["own"], "max_prompt_tokens": 6000, "dev_tasks": 8, "decontaminate": [],
        "workers": 1,
    }  # fmt: skip
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
        "records": 26,
        "tasks": 26,
        "kept": 20,
        "held_out": 1,
        "quarantined": {
            "duplicate": 1, "duplicate_id": 1, "malformed": 1, "prompt_too_long": 1,
            "tool_without_schema": 1,
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


def written(root: Path) -> dict[str, bytes]:
    folders = (root / "data" / "prepared", root / "reports" / "data", root / "metrics")
    return {p.name: p.read_bytes() for folder in folders for p in folder.iterdir()}


def test_a_second_run_gives_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    before = written(prepared)
    for workers in (1, 2):  # in one process and in two
        root = tmp_path / str(workers)
        shutil.copytree(prepared / "data", root / "data")
        shutil.rmtree(root / "data" / "prepared")
        run(root, workers=workers)
        assert written(root) == before
    assert not any(str(prepared).encode() in content for content in before.values())


def test_the_report_lists_expectations_with_severity_and_observation(prepared: Path) -> None:
    report = read_json(prepared / "reports" / "data" / "expectations.json")
    assert report["success"] is True
    assert set(report["suites"]) == {"raw", "prepared", "sft", "rl", "eval"}
    results = [r for suite in report["suites"].values() for r in suite["results"]]
    for result in results:
        assert {"expectation", "column", "success", "severity", "observed"} <= set(result)
    assert {r["severity"] for r in results} == {"critical", "warning"}


def test_a_failed_critical_expectation_stops_but_keeps_the_report(
    tmp_path: Path, backbone: Path
) -> None:
    root = project(tmp_path, backbone, [*(record(n) for n in range(8)), *["bad"] * 8])
    with pytest.raises(DataError, match="critical expectations failed"):
        run(root)
    for folder in (root / "reports" / "data", root / ".cahl" / "prepare"):
        assert read_json(folder / "expectations.json")["success"] is False
        assert (folder / "report.html").exists()


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
    assert run(root, max_records=6)["sources"]["own"]["records"] == 6


def test_a_broken_line_of_a_source_is_quarantined_with_file_and_line(
    tmp_path: Path, backbone: Path
) -> None:
    root = project(tmp_path, backbone, [record(n) for n in range(9)])
    with (root / "data" / "raw" / "own" / "a.jsonl").open("a") as out:
        out.write('\n{"id": ')
    assert run(root)["sources"]["own"]["quarantined"] == {"not_json": 1}
    (aside,) = read_jsonl(root / "data" / "prepared" / "quarantine.jsonl")
    assert "a.jsonl:10" in aside["detail"]


def test_a_test_question_among_the_records_is_quarantined_and_reported(
    tmp_path: Path, backbone: Path
) -> None:
    question = "Could you tell me how the weather is going to be in town 77 next week?"
    planted = record(77, messages=[{"role": "user", "content": question}])
    root = project(tmp_path, backbone, [*(record(n) for n in range(12)), planted])
    (root / "data" / "sources.yaml").write_text(
        SOURCES
        + "exam: {kind: data, description: x, licence: MIT, fetcher: path, format: tool-tasks,"
        " path: x, test_only: true}\n"
    )
    (root / "data" / "raw" / "exam").mkdir()
    exam = record(500, id="exam-1", messages=[{"role": "user", "content": question.lower()}])
    (root / "data" / "raw" / "exam" / "a.jsonl").write_text(json.dumps(exam))
    metrics = run(root, decontaminate=["exam"])
    assert metrics["sources"]["own"]["quarantined"] == {"benchmark_overlap": 1}
    found = read_json(root / "reports" / "data" / "contamination.json")["benchmarks"]["exam"]
    assert (found["exact"], found["ids"]) == (1, ["own-77 (exact)"])
    assert "get_weather" in found["tool_names"]
    with pytest.raises(SourceError, match="exam"):
        run(root, sources=["own", "exam"])


def test_unseen_tools_are_in_no_training_prompt(tmp_path: Path, backbone: Path) -> None:
    def about(number: int, name: str) -> dict[str, Any]:
        tool = {**record(0)["tools"][0], "name": name}
        call = {"name": name, "arguments": {"city": f"town {number}"}}
        return record(number, tools=[tool, record(0)["tools"][1]], answers=[[call]])

    records = [about(n, f"weather_{n // 4}") for n in range(40)]
    root = project(tmp_path, backbone, records)
    metrics = run(root, unseen_tool_tasks=8, distractors=4)
    assert metrics["dev_unseen_tools_tasks"] == 8
    unseen = {c.name for t in tasks(root, "dev_unseen_tools") for c in t.calls}
    offered = {
        t.name for name in ("train", "dev") for task in tasks(root, name) for t in task.tools
    }
    assert len(unseen) == 2
    assert not unseen & offered


def test_augmented_records_keep_their_gold_and_outgrown_ones_stay_as_they_were(
    prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "data", tmp_path / "data")
    run(tmp_path, rename_share=1.0, distractors=3)
    before = {t.id: t for t in tasks(prepared, "train")}
    renamed = [t for t in tasks(tmp_path, "train") if "derived_from" not in t.meta]
    assert renamed
    for task in renamed:
        original = before[task.id]
        assert len(task.tools) >= len(original.tools)
        assert {c.name for c in task.calls} <= {t.name for t in task.tools}
        assert [list(c.arguments.values()) for c in task.calls] == [
            list(c.arguments.values()) for c in original.calls
        ]
    assert any(t.calls[0].name != before[t.id].calls[0].name for t in renamed)
