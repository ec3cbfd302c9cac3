"""Combined BFCL scores: the leaderboards' formulas over two benchmarks, or nothing."""

from __future__ import annotations

import pytest

from cahl_core.evaluation.bfcl.formulas import EDITIONS, MULTI_TURN
from cahl_core.evaluation.bfcl.overall import combined
from cahl_core.evaluation.core import ItemScore

SIZES = {"live_simple": 3, "live_multiple": 5}


def _case(
    version: str, right: dict[str, int]
) -> tuple[dict[str, list[ItemScore]], dict[str, dict[str, int]]]:
    single = {c: SIZES.get(c, 2) for c in EDITIONS[version].single_turn}
    counts = {f"bfcl_{version}": single, f"bfcl_{version}_multi_turn": dict.fromkeys(MULTI_TURN, 4)}
    scores = {
        name: [
            ItemScore(f"{c}_{i}", c, float(i < right.get(c, 0)), "calls")
            for c, n in own.items()
            for i in range(n)
        ]
        for name, own in counts.items()
    }
    return scores, counts  # fmt: skip


def test_v3_is_the_mean_of_non_live_live_and_multi_turn() -> None:
    scores, counts = _case(
        "v3", {"simple": 2, "irrelevance": 2, "live_multiple": 5, MULTI_TURN[0]: 4}
    )
    found = combined(scores, counts)["bfcl_v3_no_exec"]
    items = 3 + 5 + 2 + 2 + 2 + 2  # the four live AST categories, live_irrelevance, live_relevance
    assert found["non_live"] == pytest.approx((1 / 3 + 1) / 5)
    assert found["live"] == pytest.approx(5 / items)
    assert found["multi_turn"] == pytest.approx(1 / 4)
    assert found["overall"] == pytest.approx((found["non_live"] + found["live"] + 1 / 4) / 3)


def test_v4_without_agentic_categories_has_a_name_of_its_own() -> None:
    scores, counts = _case("v4", {"multiple": 2, "irrelevance": 2, MULTI_TURN[1]: 2})
    ((name, found),) = combined(scores, counts).items()
    assert (name, "overall" in found) == ("bfcl_v4_nonagentic", False)
    # non-live 1/4, live 0, irrelevance 1/2, multi-turn 1/8
    assert found["v4_nonagentic"] == pytest.approx((1 / 4 + 0 + 1 / 2 + 3 / 8) / 6)


@pytest.mark.parametrize("lost", ["single", "turns", "one item"])
def test_without_every_item_there_is_no_combined_score(lost: str) -> None:
    scores, counts = _case("v3", {})
    if lost == "single":
        del scores["bfcl_v3"]
    elif lost == "turns":
        scores["bfcl_v3_multi_turn"] = [
            s for s in scores["bfcl_v3_multi_turn"] if s.category != MULTI_TURN[3]
        ]
    else:
        scores["bfcl_v3"].pop()
    assert combined(scores, counts) == {}
