"""Grid files: what is refused before anything runs, and which cells come of what is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiment_project import GRID, write_grid, write_yaml
from small_project import SMALL

from cahl_core.errors import ConfigError, StageInputError
from cahl_core.experiments.grid import ARMS, load_grid
from cahl_core.experiments.plan import Cell, Inputs, cells, changes, select
from cahl_core.train_config import FORMS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_yaml(tmp_path / "params.yaml", {"profile": "tiny"})
    train = {k: v for k, v in SMALL["train"].items() if k != "steps"}
    write_yaml(tmp_path / "configs/tiny.yaml", {**SMALL, "train": train})
    return write_grid(tmp_path)


def _cells(root: Path, **grid: Any) -> list[Cell]:
    write_grid(root, **grid)
    return cells(load_grid(root, "tiny"), root)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"arms": ["joint", "freeze_lo"]}, "no arm 'freeze_lo'; nearest: freeze_low"),
        ({"arms": ["joint", "joint"]}, "arms names joint twice"),
        ({"seeds": [3, 3]}, "seeds names 3 twice"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"budget": {"sampled_token": 5}}, "nearest valid: sampled_tokens"),
        ({"budget": None}, "'budget' is missing"),
        ({"arm": ["joint"]}, "no key 'arm'; nearest valid: arms"),
        ({"evaluate": {"task": 3}}, "no key 'evaluate.task'; nearest valid: tasks"),
        ({"cross_play": {"snapshot": 3}}, "no key 'cross_play.snapshot'; nearest valid: snapshots"),
        ({"variants": {"a": {"sets": {}}}}, "no key 'variants.a.sets'; nearest valid: set"),
        ({"variants": {"a": {"arms": ["broadcast"]}}}, "variants.a.arms names broadcast"),
        ({"variants": {}}, "variants is empty"),
        ({"cross_play": {"arms": ["broadcast"]}}, "cross_play.arms names broadcast"),
        ({"set": {"train": {"arm": "joint"}}}, "'train.arm' is decided by the grid's 'arms'"),
        ({"set": {"seed": 3}}, "'seed' is decided by the grid's 'seeds'"),
        ({"set": {"train.steps": 3}}, "'train.steps' is decided by the grid's 'budget.max_steps'"),
        ({"name": "../../x"}, "name: "),
    ],
)
def test_a_faulty_grid_is_one_sentence_that_names_the_fault(
    root: Path, grid: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _cells(root, **grid)
    assert sentence in str(caught.value)
    assert (
        len(str(caught.value).splitlines()) == 2
    )  # the sentence, and where the keys are explained


def test_flat_arms_have_nothing_to_cross(root: Path) -> None:
    with pytest.raises(ConfigError, match="low_only has no planner"):
        _cells(root, arms=["joint", "low_only"], cross_play={"arms": ["low_only"]})


def test_settings_that_do_not_hold_name_variant_and_arm(root: Path) -> None:
    variant = {"set": {"train": {"tasks_per_step": 1}}}
    with pytest.raises(ConfigError, match=r"variant 'one', arm shuffled_credit: .*at least 2"):
        _cells(root, arms=["joint", "shuffled_credit"], variants={"one": variant}, cross_play=None)
    with pytest.raises(ConfigError, match=r"variant 'typo'.*train\.stepz.*nearest valid"):
        _cells(root, variants={"typo": {"set": {"train.stepz": 1}}})


def test_variants_that_change_nothing_make_duplicate_cells(root: Path) -> None:
    variants = {"one": {}, "two": {"set": {"train.tasks_per_step": 2}}}  # what the profile says too
    with pytest.raises(ConfigError, match="start-one-s0 and start-two-s0 have the same settings"):
        _cells(root, variants=variants)


def test_an_unknown_grid_names_those_that_there_are(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"nearest: tiny; grids here: tiny"):
        load_grid(root, "tinny")
    assert load_grid(root, str(root / "configs/experiments/tiny.yaml")).name == "tiny"


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_files_that_are_no_mapping_are_refused(root: Path, text: str) -> None:
    (root / "configs/experiments/tiny.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"tiny\.yaml"):
        load_grid(root, "tiny")


# --- what comes of it ----------------------------------------------------------------------------


def test_cells_are_the_product_seed_by_seed_with_the_start_of_each_seed(root: Path) -> None:
    assert [c.id for c in _cells(root)] == [
        "start-s0", "joint-s0", "freeze_low-s0", "start-s1", "joint-s1", "freeze_low-s1",
    ]  # fmt: skip


def test_a_start_shared_by_all_seeds_is_evaluated_once(root: Path) -> None:
    found = _cells(root, sft={"per_seed": False})
    assert [c.id for c in found if not c.trains] == ["start-s0"]
    assert {c.start.seed for c in found} == {0}
    assert {c.settings.seed for c in found} == {0, 1}


def test_variants_are_named_and_may_be_of_some_arms_only(root: Path) -> None:
    shared = {"set": {"model": {"weights": "shared_adapter"}}, "arms": ["joint"]}
    found = _cells(root, variants={"apart": {}, "shared": shared}, seeds=[0])
    assert [c.id for c in found] == [
        "start-apart-s0", "joint-apart-s0", "freeze_low-apart-s0", "start-shared-s0", "joint-shared-s0",
    ]  # fmt: skip
    assert found[-1].settings.model.weights == "shared_adapter"


def test_every_arm_gets_its_form_and_the_same_budget(root: Path) -> None:
    found = _cells(root, arms=list(ARMS), seeds=[0], cross_play=None)
    for cell in found:
        expected = cell.arm if cell.arm in FORMS else "hierarchical"
        assert cell.settings.model.form == expected
        assert cell.settings.train.max_sampled_tokens == GRID["budget"]["sampled_tokens"]
        assert cell.settings.train.steps == GRID["budget"]["max_steps"]
    assert {c.arm for c in found} == {*ARMS, "start"}


def test_snapshots_are_kept_where_they_are_crossed_and_nowhere_else(root: Path) -> None:
    every = {c.arm: c.settings.train.snapshot_every for c in _cells(root)}
    assert every == {"start": 0, "joint": 1, "freeze_low": 0}


def test_layers_win_in_order_and_dotted_keys_are_sections(root: Path) -> None:
    found = _cells(
        root,
        set={"train.planner.learning_rate": "3e-4", "sft": {"steps": 9}},
        variants={"a": {}, "b": {"set": {"train": {"planner": {"learning_rate": 1e-5}}}}},
    )
    rates = {c.variant: c.settings.train.planner.learning_rate for c in found}
    assert rates == {"a": 3e-4, "b": 1e-5}
    assert {c.settings.sft.steps for c in found} == {9}
    assert {c.settings.train.planner.max_tokens for c in found} == {24}  # the profile's


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["joint"], ["joint-s0", "joint-s1"]),
        (["joint/1"], ["joint-s1"]),
        (["*/0"], ["start-s0", "joint-s0", "freeze_low-s0"]),
        (["freeze_low-s1", "joint/0"], ["joint-s0", "freeze_low-s1"]),
        ([], ["start-s0", "joint-s0", "freeze_low-s0", "start-s1", "joint-s1", "freeze_low-s1"]),
    ],
)
def test_only_picks_cells_in_the_grids_order(
    root: Path, only: list[str], expected: list[str]
) -> None:
    assert [c.id for c in select(_cells(root), only)] == expected


def test_only_that_names_nothing_says_what_there_is(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)--only joint/7 names no cell.*joint-s0"):
        select(_cells(root), ["joint", "joint/7"])


# --- digests -------------------------------------------------------------------------------------

SUMS = Inputs({"data/prepared/train": "a", "data/prepared/dev": "b", "data/backbone": "c"})


def _keys(root: Path, inputs: Inputs = SUMS, **grid: Any) -> dict[str, tuple[str, str, str]]:
    found = _cells(root, **grid)
    return {c.id: (inputs.key(c), inputs.train_key(c), inputs.start_key(c)) for c in found}


def test_all_cells_have_keys_of_their_own_and_share_the_starts_of_their_seed(root: Path) -> None:
    keys = _keys(root)
    assert len({cell for cell, _, _ in keys.values()}) == len(keys)
    assert len({start for _, _, start in keys.values()}) == 2
    assert keys["joint-s0"][2] == keys["freeze_low-s0"][2] != keys["joint-s1"][2]


def test_another_form_needs_another_start(root: Path) -> None:
    keys = _keys(root, arms=["joint", "low_only", "single_level"], seeds=[0])
    assert len({start for _, _, start in keys.values()}) == 3


def test_evaluating_otherwise_changes_the_cell_but_not_what_is_trained(root: Path) -> None:
    before = _keys(root)["joint-s0"]
    after = _keys(root, evaluate={"tasks": 1, "samples": 0})["joint-s0"]
    assert before[0] != after[0]
    assert before[1:] == after[1:]


def test_another_setting_of_training_leaves_the_start(root: Path) -> None:
    before = _keys(root)["joint-s0"]
    after = _keys(root, set={"train.lambda_executor": 2.0})["joint-s0"]
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert before[2] == after[2]


@pytest.mark.parametrize(
    ("changed", "same"),
    [("data/prepared/train", set()), ("data/prepared/dev", {2}), ("data/backbone", set())],
)
def test_changed_inputs_change_what_depends_on_them(
    root: Path, changed: str, same: set[int]
) -> None:
    other = Inputs({**SUMS.sums, changed: "other"})
    before, after = _keys(root)["joint-s0"], _keys(root, other)["joint-s0"]
    assert {i for i in range(3) if before[i] == after[i]} == same


def test_changes_are_said_key_by_key() -> None:
    old, new = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": None}
    assert changes(old, new) == ["b 2 → 5", "c 3 → unset"]


def test_missing_data_is_said_before_anything_runs(root: Path) -> None:
    with pytest.raises(StageInputError, match="cahl prepare"):
        Inputs.of(load_grid(root, "tiny"), root)


@pytest.mark.parametrize("name", ["smoke", "paper-small"])
def test_the_shipped_grids_hold(name: str) -> None:
    grid = load_grid(ROOT, name)
    found = cells(grid, ROOT)
    assert grid.name == name
    assert len({SUMS.key(c) for c in found}) == len(found)


def test_the_larger_grid_has_every_arm_three_times() -> None:
    found = cells(load_grid(ROOT, "paper-small"), ROOT)
    apart = [c for c in found if c.variant == "two_adapters" and c.trains]
    assert {arm: sum(c.arm == arm for c in apart) for arm in ARMS} == dict.fromkeys(ARMS, 3)
