"""``dvc.yaml`` of this repository, and DVC itself in the stub project."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from stub_project import dvc, run

from cahl_core.cli import MODULES
from cahl_core.lineage import DvcStage, dvc_md5, locked_sums, read_plots, read_stages
from cahl_core.stage import SECTIONS

ROOT = Path(__file__).parents[2]
STAGES = read_stages(ROOT)

# How a stage runs and reports; a change here does not change what it computes.
RUNTIME = {
    "__init__",
    "cli",
    "config",
    "errors",
    "evaluate_config",
    "files",
    "lineage",
    "memory",
    "profiles",
    "progress",
    "roles",
    "rollout_config",
    "signals",
    "stage",
    "stage_record",
    "tables",
    "tracking",
    "train_config",
}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def own_files(module: str, seen: set[Path] | None = None) -> set[Path]:
    """The files of cahl_core that the module reaches by imports, its own included."""
    seen = set() if seen is None else seen
    path = ROOT / (module.replace(".", "/") + ".py")
    if not module.startswith("cahl_core.") or not path.is_file() or path in seen:
        return seen
    seen.add(path)
    for name in imported(path):
        own_files(name, seen)
    return seen


@pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
def test_code_a_stage_imports_is_among_its_deps(stage: DvcStage) -> None:
    files = own_files(MODULES[stage.name])
    if not files:
        pytest.skip(f"{MODULES[stage.name]} is not written yet")
    names = {
        str(path.relative_to(ROOT))
        for path in files
        # what a run shows of itself, and what it says before it starts
        if path.stem not in RUNTIME and path.parent.name not in ("traces", "cost")
    }
    covered = {n for n in names if any(n == d or n.startswith(f"{d}/") for d in stage.deps)}
    assert names - covered == set()


@pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
def test_params_are_the_settings_the_stage_logs(stage: DvcStage) -> None:
    declared = {key for keys in stage.params.values() for key in keys}
    assert declared == set(SECTIONS[stage.name])


@pytest.mark.parametrize("profile", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_has_the_sections_dvc_asks_for(profile: Path) -> None:
    values = yaml.safe_load(profile.read_text())
    for stage in STAGES.values():
        for file, keys in stage.params.items():
            for key in keys if file.startswith("configs/") else ():
                found = values
                for part in key.split("."):
                    assert part in found, f"{profile.name} lacks {key}, which {stage.name} reads"
                    found = found[part]


def test_no_setting_is_in_two_layers() -> None:
    def leaves(value: object, prefix: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {prefix}
        return {leaf for key, inner in value.items() for leaf in leaves(inner, f"{prefix}.{key}")}

    shared = leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))
    for profile in (ROOT / "configs").glob("*.yaml"):
        assert shared & leaves(yaml.safe_load(profile.read_text())) == set(), profile.name


def test_source_deps_exist_and_commands_are_the_cli() -> None:
    for stage in STAGES.values():
        assert stage.cmd == f"bin/cahl {stage.name} --profile quickstart"
        assert [dep for dep in stage.code if not (ROOT / dep).exists()] == []
    assert os.access(ROOT / "bin/cahl", os.X_OK)


def test_every_plot_draws_a_file_some_stage_writes() -> None:
    made = {path for stage in STAGES.values() for path in stage.products}
    plots = read_plots(ROOT)
    assert plots
    assert {plot.file for plot in plots} <= made


def test_sums_agree_with_dvcs(project: Path) -> None:
    dvc("repro", "-q", cwd=project)
    locked = locked_sums(project)
    assert set(locked) >= {"data/prepared", "models/m", "metrics/train.json"}
    assert {path: dvc_md5(project / path) for path in locked} == locked


def test_exp_run_overrides_a_setting_and_reruns_what_reads_it(project: Path) -> None:
    # hydra 1.3, which dvc pins, needs the antlr that breaks dagster's selections
    dvc("repro", "-q", cwd=project)
    run("git", "add", "-A", cwd=project)
    run("git", "commit", "-qm", "ran", cwd=project)
    dvc("exp", "run", "-S", "configs/quick.yaml:train.steps=5", cwd=project)
    assert (project / "models/m/w.txt").read_text() == "5"
    assert (project / "executions.log").read_text().split().count("prepare") == 1
