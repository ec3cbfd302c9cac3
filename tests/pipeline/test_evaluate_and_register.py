"""Stages evaluate and register on a tiny random backbone: files, resumption, a new process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cahl_core.config import Settings, validate
from cahl_core.errors import DataError, EvaluationError, RegistryError, StageInputError
from cahl_core.files import tree_digest, write_jsonl
from cahl_core.stage import StageRun

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = {"simple": 3, "parallel": 2, "irrelevance": 2}
TURNS = {"multi_turn_base": 1, "multi_turn_miss_func": 1}
TASK = {
    "id": "dev-1",
    "source": "test",
    "messages": [{"role": "user", "content": "Add one and two."}],
    "tools": [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}}],
    "answers": [[{"name": "add", "arguments": {"a": 1, "b": 2}}]],
    "meta": {},
}  # fmt: skip
MADE = ("reports/evaluation", "metrics/evaluate.json", "plots/evaluation.csv")
EVALUATED = {"bfcl_v3/n": 7.0, "bfcl_v3/accuracy": 0.25}
REQUEST = {"messages": [{"role": "user", "content": "Add one and two."}], "tools": TASK["tools"]}


def _settings(**register: object) -> Settings:
    return validate(
        {
            "model": {
                "backbone": "tiny",
                "dtype": "float32",
                "max_context": 4096,
                "lora": {"rank": 4, "alpha": 8},
            },
            "train": {"planner": {"max_tokens": 32}, "executor": {"max_tokens": 32}},
            "evaluate": {
                "benchmarks": ["bfcl_v3", "bfcl_v3_multi_turn"],
                "sample": {f"bfcl_v3/{c}": n for c, n in SAMPLE.items()}
                | {f"bfcl_v3_multi_turn/{c}": n for c, n in TURNS.items()},
                "plan_tokens": 32,
                "call_tokens": 32,
                "batch_size": 4,
                "dev_tasks": 1,
            },
            "register": register,
        }
    )


@pytest.fixture(scope="session")
def adapters(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random adapters of both roles that do change the output."""
    import torch

    from cahl_core.policy.backbone import ROLES, Policy

    folder = tmp_path_factory.mktemp("adapters")
    policy = Policy.load(tiny_backbone, None, _settings().model)
    torch.manual_seed(0)
    for seed, role in enumerate(ROLES):
        policy.new_adapter(role, seed)
        with torch.no_grad():
            for parameter in policy.parameters(role):
                parameter.add_(torch.randn_like(parameter) * 0.3)
        policy.save_adapter(role, folder / role)
    return folder


@pytest.fixture
def built(tmp_path: Path, tiny_backbone: Path, adapters: Path, bfcl_wheel: Path) -> Path:
    """A project in which everything before evaluate is done; both adapter sets are the same."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    shutil.copytree(tiny_backbone, project / "data/backbone")
    (project / "data/raw").mkdir()
    (project / "data/raw/bfcl-v3").symlink_to(bfcl_wheel)
    write_jsonl(project / "data/prepared/dev.jsonl", [TASK])
    for name in ("sft", "cahl"):
        shutil.copytree(adapters, project / "models" / name)
    return project


def _evaluate(root: Path) -> None:
    from cahl_core.evaluation.evaluate import run

    run(StageRun("evaluate", root, _settings()))


def _digests(root: Path) -> list[str]:
    return [tree_digest(root / path) for path in MADE]


def test_evaluation_writes_what_dvc_declares_the_same_each_time(built: Path) -> None:
    _evaluate(built)
    metrics = json.loads((built / "metrics/evaluate.json").read_text())
    assert (list(metrics), metrics["n"]) == (["n", "base", "sft", "cahl"], 10)
    for model in ("base", "sft", "cahl"):
        assert list(metrics[model]) == ["bfcl_v3", "bfcl_v3_multi_turn", "dev"]
        assert metrics[model]["bfcl_v3"]["n"] == 7
        assert metrics[model]["bfcl_v3"]["calls_due"]["n"] == 5
        assert list(metrics[model]["bfcl_v3_multi_turn"]["by_category"]) == list(TURNS)
        assert metrics[model]["dev"]["mean_reward"] == 0.0  # random weights
    plot = (built / "plots/evaluation.csv").read_text().splitlines()
    assert plot[0] == "model,category,accuracy,low,high,n"
    assert len(plot) == 1 + 3 * (len(SAMPLE) + len(TURNS) + 1)
    reports = built / "reports/evaluation"
    rows = [json.loads(line) for line in (reports / "items/cahl/bfcl_v3.jsonl").open()]
    assert len(rows) == 7
    results = json.loads((reports / "results.json").read_text())
    assert results["benchmarks"]["bfcl_v3"]["evaluated"] == SAMPLE
    shown = results["prompts"]["cahl"]["bfcl_v3"]
    assert [p["title"].partition(",")[0] for p in shown] == ["planner", "executor"]
    assert "You plan tool use" in shown[0]["text"]
    everything = "".join(p.read_text() for p in reports.rglob("*") if p.is_file())
    assert str(built) not in everything
    page = (reports / "report.html").read_text()
    assert re.findall(r"<[^>]*\b(?:src|href)\s*=\s*[\"'](?!#)", page) == []
    timing = json.loads((built / ".cahl/evaluate/timing.json").read_text())
    assert timing["base"]["bfcl_v3"]["attempts"] == 7
    first = _digests(built)
    shutil.rmtree(built / ".cahl")
    _evaluate(built)
    assert _digests(built) == first


def test_an_interrupted_evaluation_goes_on_where_it_was(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cahl_core.policy.engine import Engine

    _evaluate(built)
    expected = _digests(built)
    shutil.rmtree(built / ".cahl")
    for path in MADE:
        target = built / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    generate = Engine.generate
    calls: list[int] = []

    def interrupted(self: Engine, prompts: object, *args: object, **options: object) -> object:
        calls.append(len(prompts))  # type: ignore[arg-type]
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, prompts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _evaluate(built)
    assert not any((built / path).exists() for path in MADE)
    records = built / ".cahl/evaluate/records"
    kept = sum(len(p.read_text().splitlines()) for p in records.glob("*.jsonl"))
    # the first benchmark in two batches (random weights write no plan); the second one's prompts do
    # not fit a tokenizer of bytes, so nothing is generated for it
    assert kept == 7 + 2
    calls.clear()
    calls.extend([0, 0, 0])  # past the interruption
    _evaluate(built)
    assert _digests(built) == expected
    whole = [line for p in records.glob("*.jsonl") for line in p.read_text().splitlines()]
    keys = [(json.loads(line)["id"], json.loads(line)["key"]) for line in whole]
    assert len(whole) == 2 * (7 + 2 + 1)  # equal adapters are not asked twice, and no item is
    assert len(set(keys)) == len(whole) / 2


def test_a_model_that_is_not_there_is_said_before_the_others_are_evaluated(built: Path) -> None:
    shutil.rmtree(built / "models/cahl/executor")
    with pytest.raises(StageInputError, match="cahl train"):
        _evaluate(built)
    assert not (built / ".cahl/evaluate/records").exists()


def test_held_back_tasks_are_left_out_for_models_behind_a_url(built: Path) -> None:
    from cahl_core.evaluation.evaluate import run

    settings = _settings()
    address = "far=http://127.0.0.1:9/v1?model=x&give_up_after=1"  # nothing listens there
    evaluate = settings.evaluate.model_copy(
        update={"models": ("base", address), "benchmarks": ("bfcl_v3",), "sample": {"bfcl_v3": 0}}
    )
    run(StageRun("evaluate", built, settings.model_copy(update={"evaluate": evaluate})))
    metrics = json.loads((built / "metrics/evaluate.json").read_text())
    assert (list(metrics["base"]), list(metrics["far"])) == (["bfcl_v3", "dev"], ["bfcl_v3"])


def test_a_report_replaces_reports_only(tmp_path: Path) -> None:
    from cahl_core.errors import ConfigError
    from cahl_core.evaluation.on_demand import check_replaceable

    (tmp_path / "mine.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds more than a report"):
        check_replaceable(tmp_path)
    with pytest.raises(ConfigError, match="holds more than a report"):
        check_replaceable(tmp_path / "mine.jsonl")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds more than a report"):
        check_replaceable(tmp_path)  # somebody's own file is still beside it
    (tmp_path / "mine.jsonl").unlink()
    for folder in (tmp_path, tmp_path / "new"):
        check_replaceable(folder)


def test_an_evaluation_on_demand_says_what_it_took_and_may_be_written_again(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cahl_core.evaluation.on_demand import on_demand
    from cahl_core.evaluation.registry import benchmarks_of

    settings = _settings()
    evaluate = settings.evaluate.model_copy(
        update={"models": ("base",), "benchmarks": ("bfcl_v3",)}
    )
    settings = settings.model_copy(update={"evaluate": evaluate})
    for asked in (3, 0):  # the second time everything is in the store
        benchmarks = benchmarks_of(built, settings)
        folder = on_demand(built, settings, benchmarks, built / "mine", limit=3)
        timing = json.loads((folder / "timing.json").read_text())
        assert timing["base"]["bfcl_v3"]["attempts"] == asked
    assert "report.html" in capsys.readouterr().out


def test_a_failing_checker_writes_no_score(built: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree((built / "data/raw/bfcl-v3").resolve(), broken)
    checker = broken / "bfcl_eval/eval_checker/ast_eval/ast_checker.py"
    checker.write_text("def ast_checker(*args):\n    raise RuntimeError('harness')\n")
    (built / "data/raw/bfcl-v3").unlink()
    (built / "data/raw/bfcl-v3").symlink_to(broken)
    from cahl_core.evaluation.checker import Answer, BfclChecker

    with pytest.raises(EvaluationError, match=r"item simple_0(?s:.*)harness"):
        BfclChecker(broken, 60).score([Answer("simple_0", "simple", ())])


def _register(root: Path, settings: Settings) -> dict[str, object]:
    from cahl_core.serving.register import run

    stage = StageRun("register", root, settings)
    run(stage)
    return stage.reported


@pytest.fixture
def evaluated(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``built`` with a made-up evaluation, and MLflow in its own database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (built / "metrics").mkdir()
    row = {"n": 7, "accuracy": 0.25, "call_validity": None, "by_category": {}}
    metrics = {"n": 7, "cahl": {"bfcl_v3": row}}
    (built / "metrics/evaluate.json").write_text(json.dumps(metrics))
    return built


PREDICT = """
import json, mlflow, sys
mlflow.set_tracking_uri("sqlite:///" + sys.argv[1])
model = mlflow.pyfunc.load_model("models:/cahl-agent@champion")
print("ANSWER", json.dumps(model.predict(json.loads(sys.argv[2]), params={"max_tokens": 24})))
"""


def _predict_elsewhere(root: Path, elsewhere: Path) -> list[dict[str, object]]:
    """What the registered model answers in a new process that starts outside the project."""
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(root / "mlflow.db"), json.dumps(REQUEST)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("ANSWER ")]
    answers: list[dict[str, object]] = json.loads(line.removeprefix("ANSWER "))
    return answers


def test_the_registered_model_answers_in_a_new_process(
    evaluated: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reported = _register(evaluated, _settings())
    (answer,) = _predict_elsewhere(evaluated, tmp_path_factory.mktemp("elsewhere"))
    assert {"plan", "tool_calls", "content", "finish_reason", "outcome"} <= set(answer)
    assert answer["outcome"] == "plan_failure"  # random weights
    report = (evaluated / "reports/registration.json").read_text()
    assert json.loads(report)["evaluation"] == EVALUATED
    assert reported["version"] == 1
    again = _register(evaluated, _settings())
    assert again["version"] == 2
    assert (evaluated / "reports/registration.json").read_text() == report


def test_the_model_carries_its_evaluation_and_no_pickle(evaluated: Path) -> None:
    import mlflow

    reported = _register(evaluated, _settings())
    client = mlflow.MlflowClient()
    logged = client.get_logged_model(str(reported["model_id"]))
    assert {m.key: m.value for m in logged.metrics} == EVALUATED
    assert client.get_model_version_by_alias("cahl-agent", "champion").version in (1, "1")
    files = (p for p in (evaluated / "mlartifacts").rglob("*") if p.is_file())
    # the model file is imported from the local store once, which leaves compiled code beside it
    suffixes = {p.suffix for p in files if p.parent.name != "__pycache__"}
    assert suffixes <= {"", ".json", ".py", ".safetensors", ".txt", ".yaml", ".md"}
    requirements = next((evaluated / "mlartifacts").rglob("requirements.txt")).read_text()
    assert "+" not in requirements
    assert "cahl==" in requirements


def test_merged_weights_answer_like_the_adapters_and_need_no_backbone(
    evaluated: Path, tmp_path: Path
) -> None:
    from cahl_core.policy.engine import Engine
    from cahl_core.serving.register import collect
    from cahl_core.serving.served import ServedAgent, requests_of

    folders = {}
    for merged in (False, True):
        folders[merged] = tmp_path / f"merged-{merged}"
        collect(StageRun("register", evaluated, _settings(merged=merged)), folders[merged])
    prompts = [list(range(3, 60)), list(range(40, 140))]
    from cahl_core.policy.backbone import Policy

    model = _settings().model
    adapted = Engine(Policy.load(evaluated / "data/backbone", folders[False], model))
    for role in ("planner", "executor"):
        whole = Engine(Policy.load(folders[True] / role, None, model))
        wanted = adapted.generate(prompts, role, max_tokens=12)
        found = whole.generate(prompts, role, max_tokens=12)
        assert [c[0].token_ids for c in found] == [c[0].token_ids for c in wanted]
    shutil.rmtree(evaluated / "data/backbone")
    ServedAgent.load(folders[True]).predict(requests_of(REQUEST), {"max_tokens": 8})


def test_without_evaluation_or_adapters_nothing_is_registered(evaluated: Path) -> None:
    shutil.rmtree(evaluated / "models/cahl/executor")
    with pytest.raises(StageInputError, match="cahl train"):
        _register(evaluated, _settings())
    (evaluated / "metrics/evaluate.json").unlink()
    with pytest.raises(StageInputError, match="cahl evaluate"):
        _register(evaluated, _settings())
    assert not (evaluated / "reports/registration.json").exists()
    assert not (evaluated / "mlflow.db").exists()


def test_chat_shows_plan_and_calls_and_missing_models_are_named(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cahl_core.serving.chat import chat

    with pytest.raises(
        RegistryError, match=r"no registered model 'cahl-agent'(?s:.*)cahl register"
    ):
        chat(evaluated, _settings(), once="hello")
    _register(evaluated, _settings())
    chat(evaluated, _settings(), once="What is the weather in Lisbon?")
    assert "malformed" in capsys.readouterr().out  # random weights
    with pytest.raises(
        RegistryError, match=r"no alias 'best'; versions: 1; aliases: @champion → 1"
    ):
        chat(evaluated, _settings(), "models:/cahl-agent@best", once="hello")
    with pytest.raises(RegistryError, match="no version '7'"):
        chat(evaluated, _settings(), "models:/cahl-agent/7", once="hello")
    with pytest.raises(RegistryError, match="is not a model address"):
        chat(evaluated, _settings(), "cahl-agent", once="hello")
    bad = evaluated / "tools.json"
    bad.write_text('[{"type": "function", "function": {"name": "f"}}]')
    with pytest.raises(DataError, match=r"tools\.json: tools\[0\] 'f': no parameter schema"):
        chat(evaluated, _settings(), tools=bad, once="hello")
