"""Models behind `transformers serve`, a server that is not ours, beside the same weights loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_project import make_project, small_settings, small_task
from test_transformers_serve import Theirs, extras, theirs

from cahl_core.config import Settings
from cahl_core.evaluation.models import Model, open_model, parse_model
from cahl_core.records import Message
from cahl_core.serving.results import AgentResult, Request

__all__ = ["extras", "theirs"]


def _settings() -> Settings:
    settings = small_settings()
    bounds = {"plan_tokens": 10, "call_tokens": 10}
    return settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update=bounds)})


@pytest.fixture(scope="module")
def root(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("served") / "project", tiny_backbone)


def _behind(theirs: Theirs, form: str, root: Path, more: str = "") -> Model:
    spec = parse_model(f"{theirs.url}/v1?model={theirs.model}&form={form}&concurrency=4{more}")
    return open_model(spec, _settings(), root)


def _requests(count: int) -> list[Request]:
    return [Request(t.messages, t.tools, seed=t.id) for t in map(small_task, range(count))]


def test_plain_conversations_get_the_texts_of_the_local_model(theirs: Theirs, root: Path) -> None:
    talks = [
        [Message("system", "Be brief."), Message("user", f"number {n}: the quick brown fox")]
        for n in range(6)
    ]
    seeds = [str(n) for n in range(6)]
    ours = open_model(parse_model("base"), _settings(), root).solver().complete(talks, 12, seeds)
    found = _behind(theirs, "native", root).solver().complete(talks, 12, seeds)
    assert found == ours
    assert len(set(ours)) > 1


@pytest.mark.parametrize("form", ["low_only", "single_level", "hierarchical"])
def test_our_prompts_are_the_same_tokens_there_and_their_texts_begin_alike(
    theirs: Theirs, root: Path, form: str
) -> None:
    local = open_model(parse_model(f"hf:data/backbone?form={form}"), _settings(), root)
    remote = _behind(theirs, form, root)
    plans = [small_task(n).plan for n in range(3)] if form == "hierarchical" else [None] * 3
    asked = [
        Request(r.messages, r.tools, plan=p) for r, p in zip(_requests(3), plans, strict=True)
    ] + _requests(3)
    for ours, found in zip(local.solver().run(asked), remote.solver().run(asked), strict=True):
        assert ours.prompt_tokens == found.prompt_tokens > 0
        for mine, other in zip(_texts(ours), _texts(found), strict=True):
            # here a text ends where it can no longer be in the grammar, perhaps within a character
            assert mine and other.startswith(mine.rstrip("\ufffd"))
    assert (remote.usage()["decoded_tokens"] or 0) > 0


def _texts(result: AgentResult) -> list[str]:
    return [result.plan_text or "", *(s.text for s in result.steps)][-1:]


def test_native_requests_are_answered_and_whatever_comes_is_a_record(
    theirs: Theirs, root: Path
) -> None:
    results = _behind(theirs, "native", root).solver().run(_requests(2))
    for result in results:
        assert result.form == "low_only" and len(result.steps) == 1
        assert AgentResult.from_json(result.to_json()) == result


def test_killed_and_started_again_in_the_middle_nothing_is_lost_or_doubled(
    theirs: Theirs, root: Path
) -> None:
    asked = _requests(16)
    straight = _behind(theirs, "low_only", root).solver().run(asked)
    told: list[int] = []

    def on_result(i: int, result: Any) -> None:
        told.append(i)
        if len(told) == 4:
            theirs.kill()
            theirs.start(wait=False)

    again = _behind(theirs, "low_only", root).solver().run(asked, on_result)
    assert [r.to_json() for r in again] == [r.to_json() for r in straight]
    assert sorted(told) == list(range(16))
