"""What planner and executor share: adapters, one adapter, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cahl_core.config import ModelSettings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.logprobs import sequence_logprobs
from cahl_core.policy.team import Team, load_team, load_trainable
from cahl_core.roles import ROLES

PROMPTS = [[5, 6, 7, 8], [5, 6, 9, 9, 9]]
COMPLETIONS = [[10, 11, 12], [13, 14]]
CPU = torch.device("cpu")


def _settings(weights: str) -> ModelSettings:
    lora = {"rank": 4, "alpha": 8}
    values = {"dtype": "float32", "max_context": 500, "weights": weights, "lora": lora}
    return ModelSettings.model_validate(values)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """Two adapters that are not zero."""
    folder = tmp_path_factory.mktemp("sft")
    policy = Policy.load(tiny_backbone, None, _settings("two_adapters"))
    for seed, role in enumerate(ROLES):
        policy.new_adapter(role, seed)
        torch.manual_seed(seed)
        for parameter in policy.parameters(role):
            torch.nn.init.normal_(parameter, std=0.1)
        policy.save_adapter(role, folder / role)
    return folder


def _scores(team: Team, role: str, reference: bool = False) -> torch.Tensor:
    member = team.members[role]  # type: ignore[index]
    policy, name = member.policy, member.adapter
    if reference:
        assert member.reference is not None
        policy, name = member.reference
    with policy.using(name):
        return torch.cat(sequence_logprobs(policy, PROMPTS, COMPLETIONS, budget=100))


@pytest.mark.parametrize("weights", ["two_adapters", "two_models"])
def test_every_role_starts_as_its_reference_and_as_sft_left_it(
    tiny_backbone: Path, start: Path, weights: str
) -> None:
    team = load_trainable(tiny_backbone, start, _settings(weights), CPU)
    plain = load_team(tiny_backbone, start, _settings("two_adapters"))
    for role in ROLES:
        torch.testing.assert_close(_scores(team, role), _scores(plain, role))
        torch.testing.assert_close(_scores(team, role), _scores(team, role, reference=True))
    assert not torch.allclose(_scores(team, "planner"), _scores(team, "executor"))


@pytest.mark.parametrize("weights", ["two_adapters", "shared_adapter", "two_models"])
def test_only_the_role_itself_changes_when_it_trains(
    tiny_backbone: Path, start: Path, weights: str
) -> None:
    team = load_trainable(tiny_backbone, start, _settings(weights), CPU)
    before = {r: (_scores(team, r), _scores(team, r, reference=True)) for r in ROLES}
    member = team.members["planner"]
    for parameter in member.policy.parameters(member.adapter):
        parameter.data += 0.05
    assert not torch.allclose(_scores(team, "planner"), before["planner"][0])
    same = torch.allclose(_scores(team, "executor"), before["executor"][0])
    assert same == (weights != "shared_adapter")
    for role in ROLES:
        torch.testing.assert_close(_scores(team, role, reference=True), before[role][1])


@pytest.mark.parametrize("weights", ["two_adapters", "shared_adapter", "two_models"])
def test_what_is_saved_loads_to_the_same_and_samples_what_it_scores(
    tiny_backbone: Path, start: Path, tmp_path: Path, weights: str
) -> None:
    settings = _settings(weights)
    team = load_trainable(tiny_backbone, start, settings, CPU)
    for member in team.members.values():
        for parameter in member.policy.parameters(member.adapter):
            parameter.data += 0.01
    team.save(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.bin"))
    again = load_team(tiny_backbone, tmp_path / "out", settings)
    for role in ROLES:
        torch.testing.assert_close(_scores(again, role), _scores(team, role))
        options = {"max_tokens": 6, "temperature": 1.0}
        first = team.generate(PROMPTS, role, **options)
        assert [c.token_ids for [c] in first] == [
            c.token_ids for [c] in again.generate(PROMPTS, role, **options)
        ]
        member = team.members[role]
        with member.policy.using(member.adapter):
            scored = sequence_logprobs(
                member.policy, PROMPTS, [c.token_ids for [c] in first], budget=100
            )
        for [completion], values in zip(first, scored, strict=True):
            torch.testing.assert_close(torch.tensor(completion.logprobs), values, atol=1e-4, rtol=0)


def test_two_models_train_everything_but_embeddings(tiny_backbone: Path, start: Path) -> None:
    team = load_trainable(tiny_backbone, start, _settings("two_models"), CPU)
    policy = team.members["planner"].policy
    names = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert names
    assert not any("embed" in n or "lm_head" in n for n in names)
    assert len(names) == len(list(policy.decoder.parameters())) - 1
