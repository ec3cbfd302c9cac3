"""What registration stores is loaded again as an agent of the same form and the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_project import SMALL, make_project, random_start

from cahl_core.config import Settings, validate
from cahl_core.errors import DataError, ModelError, PromptTooLongError, StageInputError
from cahl_core.policy.team import load_team
from cahl_core.roles import roles_of
from cahl_core.serving.agent import Agent
from cahl_core.serving.openai_form import parse_request
from cahl_core.serving.register import EXAMPLE, collect
from cahl_core.serving.served import ServedAgent
from cahl_core.stage import StageRun

FORMS = ("hierarchical", "low_only", "single_level")


def _settings(form: str = "hierarchical", **other: Any) -> Settings:
    values = {
        **SMALL,
        "model": {**SMALL["model"], "form": form},
        "train": {**SMALL["train"], "arm": "joint" if form == "hierarchical" else form},
        "evaluate": {"plan_tokens": 12, "call_tokens": 6},
    }
    return validate(values | other)


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_project(tmp_path / "project", tiny_backbone)
    shutil.copytree(random_start(root, _settings()), root / "models/cahl")
    monkeypatch.setenv("CAHL_ROOT", str(root))
    return root


def _collected(root: Path, settings: Settings) -> Path:
    folder = root / "agent"
    collect(StageRun("register", root, settings), folder)
    return folder


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_loaded_model_answers_in_its_form_as_the_trained_one(
    root: Path, form: str, merged: bool
) -> None:
    settings = _settings(form, register={"merged": merged})
    if form != "hierarchical":
        shutil.rmtree(root / "models/cahl/planner")  # a flat form has none
    folder = _collected(root, settings)
    stored = sorted(p.name for p in folder.iterdir())
    assert stored == sorted(["agent.json", *roles_of(settings.model.form)])
    (given,) = ServedAgent.load(folder).predict([parse_request(EXAMPLE)], {})
    team = load_team(root / "data/backbone", root / "models/cahl", settings.model)
    agent = Agent(
        team.generate, team.policy.tokenizer, settings.model, plan_tokens=12, call_tokens=6
    )
    loaded = ServedAgent.load(folder)._build(0.0, None)
    prompt = team.policy.tokenizer("Once upon a time")["input_ids"]
    for role in roles_of(settings.model.form):
        (mine,), (theirs,) = (a.generate([prompt], role, max_tokens=16)[0] for a in (agent, loaded))
        assert mine.token_ids == theirs.token_ids
    wanted = agent.run_one(parse_request(EXAMPLE))
    assert given["outcome"] == wanted.outcome
    assert given["usage"]["prompt_tokens"] == wanted.prompt_tokens
    assert given["usage"]["completion_tokens"] == wanted.completion_tokens
    problem = {"hierarchical": "plan: ", "low_only": "calls: ", "single_level": "plan: "}[form]
    assert given["problem"].startswith(problem)


def test_whole_models_of_two_models_are_stored_as_they_are(root: Path) -> None:
    shutil.rmtree(root / "models/cahl")
    for role in ("planner", "executor"):
        shutil.copytree(root / "data/backbone", root / "models/cahl" / role)
    folder = _collected(root, _settings())
    (given,) = ServedAgent.load(folder).predict([parse_request(EXAMPLE)], {})
    assert given["usage"]["completion_tokens"] > 0
    shutil.rmtree(folder / "executor")
    with pytest.raises(ModelError, match="no whole weights of executor"):
        ServedAgent.load(folder)


@pytest.mark.parametrize("form", FORMS)
def test_max_tokens_bounds_every_text_of_any_form(root: Path, form: str) -> None:
    folder = _collected(root, _settings(form))
    served = ServedAgent.load(folder)
    agent = served._build(0.0, 5)
    bound = agent.plan_tokens + (agent.call_tokens if form != "hierarchical" else 0)
    assert bound == 5
    assert form == "hierarchical" or served._build(0.0, None).call_tokens == 6


def test_a_missing_adapter_and_wrong_parameters_are_errors(root: Path) -> None:
    served = ServedAgent.load(_collected(root, _settings()))
    with pytest.raises(DataError, match="unknown parameter 'top_p'"):
        served.predict([parse_request(EXAMPLE)], {"top_p": 1})
    long = {**EXAMPLE, "messages": [{"role": "user", "content": "x" * 3000}]}
    with pytest.raises(PromptTooLongError, match="request 0"):
        served.predict([parse_request(long)], {})
    shutil.rmtree(root / "models/cahl/executor")
    with pytest.raises(StageInputError, match="executor holds no adapter"):
        collect(StageRun("register", root, _settings()), root / "again")
