"""The code location of this repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from cahl_core.lineage import read_stages, upstream
from pipelines.assets import code_version
from pipelines.definitions import build_definitions

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "peft", "mlflow", "great_expectations", "dvc", "scipy", "pandas"}


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_definitions(ROOT)


def test_definitions_are_loadable(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


@pytest.mark.parametrize("module", ["pipelines.definitions", "cahl_core.cli"])
def test_loading_imports_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not HEAVY & {name.split(".")[0] for name in done.stdout.split()}


def test_every_stage_is_an_asset_with_the_deps_and_group_of_dvc_yaml(defs: dg.Definitions) -> None:
    stages = read_stages(ROOT)
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == set(stages)
    for name, stage in stages.items():
        node = graph.get(dg.AssetKey(name))
        assert {key.to_user_string() for key in node.parent_keys} == set(upstream(stage, stages))
        assert node.group_name == stage.meta["group"]
        assert node.kinds == set(stage.meta["kinds"])
        assert node.description == stage.description
        assert node.code_version


def test_the_chain_is_the_one_the_issue_names() -> None:
    stages = read_stages(ROOT)
    assert list(stages) == ["fetch", "prepare", "sft", "train", "evaluate", "register"]
    assert upstream(stages["train"], stages) == ("fetch", "prepare", "sft")
    assert upstream(stages["register"], stages) == ("fetch", "train", "evaluate")


def test_selection_strings_parse(defs: dg.Definitions) -> None:
    # antlr 4.9, which dvc's hydra asks for, breaks this parser
    graph = defs.resolve_asset_graph()
    selected = dg.AssetSelection.from_string('group:"evaluation"+').resolve(graph)
    assert {key.to_user_string() for key in selected} == {"evaluate", "register"}


def test_the_schedule_waits_to_be_switched_on(defs: dg.Definitions) -> None:
    [schedule] = defs.schedules or []
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.job_name == "pipeline"


def test_the_code_version_follows_settings_the_stage_reads_and_no_others(project: Path) -> None:
    def versions() -> dict[str, str]:
        return {name: code_version(s, project) for name, s in read_stages(project).items()}

    before = versions()
    (project / "configs/quick.yaml").write_text("prepare: {rows: 2}\ntrain: {steps: 3}\n")
    after = versions()
    assert {name for name in before if before[name] != after[name]} == {"train"}
