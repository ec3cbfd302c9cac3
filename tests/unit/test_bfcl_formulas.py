"""The official averages against rows of the published leaderboards (gorilla gh-pages, data_overall.csv).

Rows are in points, rounded to 0.01. What a row does not show (irrelevance without live, agentic parts) is
solved for, and must then be a possible accuracy; a wrong formula gives impossible ones.
"""

from __future__ import annotations

import pytest

from cahl_core.evaluation.bfcl.formulas import (
    LIVE_AST,
    MULTI_TURN,
    V3,
    V4,
    agentic,
    columns,
    mean,
    multi_turn,
    non_live_with_exec,
    overall_v3_no_exec,
    overall_v3_with_exec,
    overall_v4,
    v4_nonagentic,
)

# overall, NL-AST, NL-exec, live, multi-turn, relevance, irrelevance; commit 6079cfcd (2025-03-24)
WITH_EXEC = {
    "GPT-4o-2024-11-20 prompt": (72.08, 88.10, 89.38, 79.83, 47.62, 83.33, 83.76),
    "GPT-4o-2024-11-20 FC": (69.58, 87.42, 89.20, 79.65, 41.00, 83.33, 83.15),
    "GPT-4o-mini FC": (64.10, 85.21, 83.57, 74.41, 34.12, 83.33, 74.75),
    "Hammer2.1-7b": (61.83, 88.65, 85.48, 75.11, 23.50, 82.35, 78.59),
    "Hammer2.1-3b": (59.07, 86.85, 84.09, 74.04, 17.38, 82.35, 81.87),
    "Hammer2.1-1.5b": (54.87, 82.79, 83.39, 70.64, 10.50, 77.78, 79.27),
    "Hammer2.1-0.5b": (45.28, 69.12, 70.46, 62.91, 2.25, 77.78, 73.94),
    "ToolACE-8B": (58.42, 87.54, 89.21, 78.59, 7.75, 83.33, 87.88),
    "ToolACE-2-8B": (68.39, 87.58, 87.11, 80.05, 36.88, 72.22, 90.11),
    "Qwen2.5-7B FC": (56.70, 85.71, 87.73, 74.19, 11.50, 77.78, 69.08),
    "Qwen2.5-7B prompt": (53.69, 86.46, 88.29, 67.44, 7.62, 88.89, 65.16),
    "Qwen2.5-3B FC": (50.75, 78.83, 78.23, 69.39, 6.00, 88.89, 64.26),
    "Qwen2.5-3B prompt": (47.09, 80.79, 81.71, 58.69, 3.38, 88.89, 54.19),
    "Qwen2.5-1.5B FC": (48.72, 79.10, 82.12, 64.82, 2.50, 94.44, 62.68),
    "Qwen2.5-1.5B prompt": (46.71, 73.37, 85.61, 61.08, 1.12, 83.33, 63.04),
    "Qwen2.5-0.5B FC": (36.12, 62.29, 60.93, 47.98, 1.25, 88.89, 46.23),
    "Qwen2.5-0.5B prompt": (28.06, 53.19, 61.89, 31.59, 0.00, 94.44, 16.44),
    "xLAM-7b-r": (54.75, 81.06, 79.88, 75.22, 10.00, 94.44, 77.11),
    "xLAM-1b-fc-r": (24.95, 41.17, 42.95, 36.92, 0.12, 100.0, 6.69),
}
# overall, NL-AST, live, multi-turn, irrelevance; commit a53acce6 (2025-06-14)
NO_EXEC = {"Qwen3-0.6B FC": (47.33, 71.81, 65.66, 1.88, 82.41)}
# overall on identical outputs without the executed categories, from the same CSV files
WITHOUT = {"Qwen2.5-7B FC": 55.81, "Qwen2.5-0.5B FC": 35.63, "Hammer2.1-0.5b": 45.35}
# overall, NL, live, multi-turn, web search, memory, irrelevance; commit 0b6f5dc0 (2025-12-16); nonagentic
VERSION_4 = {
    "Hammer2.1-0.5b": (21.22, 65.98, 54.63, 2.88, 0, 1.08, 80.79, 35.01),
    "Qwen3-0.6B FC": (23.93, 71.79, 56.62, 3.62, 1.0, 8.60, 80.84, 36.69),
    "Granite-4.0-350m": (18.98, 67.92, 46.11, 2.50, 0.5, 3.23, 60.84, 30.39),
}
# overall, nonagentic
VERSION_4_OVERALL = {
    "Hammer2.1-1.5b": (27.88, 46.46),
    "Hammer2.1-7b": (31.67, 52.79),
    "xLAM-2-1b": (30.44, 49.44),
}
LIVE_COUNTS = {"live_ast": 1351, "live_irrelevance": 882, "live_relevance": 18}
ROUNDING = 0.2  # of a solved column: nine parts of an overall score that is rounded to 0.01


def _solved(overall: float, live: float, multi: float) -> float:
    """Non-live as the overall score has it."""
    return 3 * overall - live - multi


def _possible(value: float) -> bool:
    return -ROUNDING <= value <= 100 + ROUNDING


@pytest.mark.parametrize("model", WITH_EXEC)
def test_the_formula_with_exec_gives_published_rows(model: str) -> None:
    overall, ast, executed, live, multi, relevance, irrelevance = WITH_EXEC[model]
    # the mean of nine is 8/9 known: what is left is irrelevance without live
    base = non_live_with_exec([ast] * 4, [executed] * 4, 0)
    alone = 9 * (_solved(overall, live, multi) - base)
    live_irrelevance = 2 * irrelevance - alone
    rest = live * 2251 - live_irrelevance * 882 - relevance * 18
    assert _possible(alone) and _possible(live_irrelevance) and _possible(rest / 1351)
    again = non_live_with_exec([ast] * 4, [executed] * 4, alone)
    assert overall_v3_with_exec(again, live, multi) == pytest.approx(overall, abs=1e-9)


@pytest.mark.parametrize("model", WITHOUT)
def test_both_v3_formulas_agree_with_what_the_board_showed_after_the_change(model: str) -> None:
    overall, ast, executed, live, multi, _, irrelevance = WITH_EXEC[model]
    base = non_live_with_exec([ast] * 4, [executed] * 4, 0)
    alone = 9 * (_solved(overall, live, multi) - base)
    found = _columns_v3(ast, alone, 2 * irrelevance - alone, live)
    assert overall_v3_no_exec(found, multi) == pytest.approx(WITHOUT[model], abs=0.02)


def test_the_formula_without_exec_gives_published_rows() -> None:
    overall, ast, live, multi, irrelevance = NO_EXEC["Qwen3-0.6B FC"]
    alone = 5 * _solved(overall, live, multi) - 4 * ast
    assert _possible(alone) and _possible(2 * irrelevance - alone)
    found = _columns_v3(ast, alone, 2 * irrelevance - alone, live)
    assert found["irrelevance"] == pytest.approx(irrelevance)
    assert overall_v3_no_exec(found, multi) == pytest.approx(overall, abs=0.01)
    assert mean([ast, live, multi]) != pytest.approx(overall, abs=0.5)  # irrelevance is in it


def _columns_v3(
    ast: float, irrelevance: float, live_irrelevance: float, live: float
) -> dict[str, float]:
    """Columns of a row whose AST categories are all ``ast``, with live AST such that ``live`` comes out."""
    relevance = 80.0
    rest = (live * 2251 - live_irrelevance * 882 - relevance * 18) / 1351
    accuracy = dict.fromkeys(V3.non_live_ast, ast) | dict.fromkeys(LIVE_AST, rest)
    accuracy |= {"irrelevance": irrelevance, "live_irrelevance": live_irrelevance}
    counts = dict(zip(LIVE_AST, (258, 1053, 16, 24), strict=True)) | LIVE_COUNTS
    return columns(V3, accuracy | {"live_relevance": relevance}, counts)


@pytest.mark.parametrize("model", VERSION_4)
def test_the_v4_formulas_give_published_rows(model: str) -> None:
    overall, non_live, live, multi, web, memory, irrelevance, expected = VERSION_4[model]
    found = {"non_live": non_live, "live": live, "irrelevance": irrelevance}
    assert v4_nonagentic(found, multi) == pytest.approx(expected, abs=0.0051)
    assert overall_v4(found, multi, agentic(web, memory)) == pytest.approx(overall, abs=0.01)


@pytest.mark.parametrize("model", VERSION_4_OVERALL)
def test_reference_values_leave_a_possible_agentic_column(model: str) -> None:
    overall, reference = VERSION_4_OVERALL[model]
    left = (overall - 0.6 * reference) / 0.4
    assert -0.03 <= left <= 5
    found = dict.fromkeys(("non_live", "live", "irrelevance"), reference)
    assert overall_v4(found, reference, left) == pytest.approx(overall)


def test_a_perfect_model_reaches_sixty_in_v4_without_agentic_categories() -> None:
    found = dict.fromkeys(("non_live", "live", "irrelevance"), 100.0)
    assert overall_v4(found, 100, 0) == pytest.approx(60)
    assert v4_nonagentic(found, 100) == pytest.approx(100)


def test_columns_weigh_languages_parts_and_live_items() -> None:
    accuracy = {"simple": 1.0, "java": 0.5, "javascript": 0.0, "multiple": 0.8, "parallel": 0.6,
                "parallel_multiple": 0.4, "irrelevance": 0.2, "live_simple": 1.0, "live_multiple": 0.0,
                "live_parallel": 0.0, "live_parallel_multiple": 0.0, "live_irrelevance": 0.5,
                "live_relevance": 0.25}  # fmt: skip
    counts = dict.fromkeys(accuracy, 10) | {"live_simple": 30, "live_irrelevance": 60}
    found = columns(V3, accuracy, counts)
    assert found == pytest.approx({
        "non_live_ast": (0.5 + 0.8 + 0.6 + 0.4) / 4,
        "non_live": (0.5 + 0.8 + 0.6 + 0.4 + 0.2) / 5,
        "live_ast": 30 / 60,
        "live": (30 + 30 + 2.5) / 130,
        "irrelevance": 0.35,
        "relevance": 0.25,
    })  # fmt: skip
    names = dict(zip(V3.simple, V4.simple, strict=True))
    newer = columns(
        V4,
        {names.get(c, c): a for c, a in accuracy.items()},
        {names.get(c, c): n for c, n in counts.items()},
    )
    assert newer["non_live"] == newer["non_live_ast"] == pytest.approx(found["non_live_ast"])
    assert newer["live"] == newer["live_ast"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        ("java", {"non_live_ast", "non_live"}),
        ("irrelevance", {"non_live", "irrelevance"}),
        ("live_parallel", {"live_ast", "live"}),
        ("live_irrelevance", {"live", "irrelevance"}),
        ("live_relevance", {"live", "relevance"}),
    ],
)
def test_a_column_is_left_out_when_a_category_of_it_is_missing(
    missing: str, lost: set[str]
) -> None:
    accuracy = dict.fromkeys(V3.single_turn, 0.5)
    counts = dict.fromkeys(accuracy, 10)
    every = columns(V3, accuracy, counts)
    del accuracy[missing]
    assert set(every) - set(columns(V3, accuracy, counts)) == lost


def test_multi_turn_is_the_mean_of_four_or_nothing() -> None:
    accuracy = dict(zip(MULTI_TURN, (0.1, 0.2, 0.3, 0.4), strict=True))
    assert multi_turn(accuracy) == pytest.approx(0.25)
    assert multi_turn({n: accuracy[n] for n in MULTI_TURN[:3]}) is None


def test_nine_parts_make_non_live_with_exec() -> None:
    assert non_live_with_exec([9, 0, 0, 0], [0, 0, 0, 9], 9) == 3
    with pytest.raises(ValueError, match="four"):
        non_live_with_exec([1, 1, 1], [1, 1, 1, 1], 1)
