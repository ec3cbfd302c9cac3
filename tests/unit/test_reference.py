"""Published numbers: what is in the file holds together, and no column mixes two ways to measure."""

from __future__ import annotations

from typing import Any

import pytest
from evaluation_runs import COUNTS, evaluation
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.evaluate_config import BENCHMARKS
from cahl_core.evaluation import reference, report
from cahl_core.evaluation.bfcl import formulas
from cahl_core.evaluation.reference import comparable

ROWS = [reference.Row(**row) for row in reference.load()["rows"]]
SMALL, LARGE = "smollm2-135m-instruct", "Qwen/Qwen2.5-7B-Instruct"


def _rows(protocol: str) -> list[reference.Row]:
    return [row for row in ROWS if row.protocol == protocol]


def _by_key(benchmark: str, backbone: str) -> dict[str, reference.ProtocolRows]:
    return {found.key: found for found in comparable(benchmark, backbone)}


# --- the file ------------------------------------------------------------------------------------


def test_protocols_are_of_benchmarks_that_exist_and_every_row_has_a_value() -> None:
    for protocol in reference.load()["protocols"].values():
        assert set(protocol["benchmarks"]) <= set(BENCHMARKS)
        assert protocol["comparability"].endswith(".")
    assert all(row.values for row in ROWS)
    assert len({(r.model, r.protocol) for r in ROWS}) == len(ROWS)


def test_nonagentic_values_are_those_of_our_formula_on_the_boards_columns() -> None:
    checked = 0
    for row in _rows("bfcl_v4"):
        if {"non_live", "live", "irrelevance", "nonagentic"} <= set(row.values):
            value = formulas.v4_nonagentic(row.values, row.values["multi_turn"])
            assert row.values["nonagentic"] == pytest.approx(value, abs=0.006)
            checked += 1
    assert checked == 3


def test_overall_scores_are_those_of_the_official_formula_where_its_parts_are_known() -> None:
    for row in _rows("bfcl_v3_noexec"):
        if {"non_live_ast", "live"} <= set(row.values):
            # the board's column is AST alone; what the overall contains leaves room for irrelevance
            non_live = 3 * row.values["overall"] - row.values["live"] - row.values["multi_turn"]
            irrelevance = 5 * non_live - 4 * row.values["non_live_ast"]
            assert 50 < irrelevance < 100
    for row in _rows("bfcl_v4"):
        if {"web_search", "memory", "irrelevance"} <= set(row.values):
            agentic = formulas.agentic(row.values["web_search"], row.values["memory"])
            value = formulas.overall_v4(row.values, row.values["multi_turn"], agentic)
            assert row.values["overall"] == pytest.approx(value, abs=0.02)


@pytest.mark.parametrize(("column", "items"), [("overall", 597), ("level_1", 399), ("level_2", 67),
                                               ("level_3", 131)])  # fmt: skip
def test_api_bank_values_are_whole_numbers_of_items(column: str, items: int) -> None:
    values = [r.values[column] for r in _rows("api_bank") if column in r.values]
    assert len(values) >= 15
    for value in values:
        right = value * items / 100
        assert right == pytest.approx(round(right), abs=items * 0.0051 / 100 + 1e-6)


def test_overall_api_bank_values_are_the_micro_average_of_the_levels() -> None:
    for row in _rows("api_bank"):
        if "level_1" in row.values:
            right = sum(
                round(row.values[f"level_{i}"] * n / 100) for i, n in ((1, 399), (2, 67), (3, 131))
            )
            assert row.values["overall"] == pytest.approx(100 * right / 597, abs=0.006)


@given(st.sampled_from(["bamboogle_judged_google", "bamboogle_em"]))
def test_bamboogle_values_are_whole_numbers_of_125_questions(protocol: str) -> None:
    for row in _rows(protocol):
        for column in ("judged", "em", "cover_em"):
            right = row.values.get(column, 0.0) * 1.25
            assert right == pytest.approx(round(right), abs=0.01)


def test_official_rows_carry_their_commit_and_papers_their_number_where_known() -> None:
    for source in reference.load()["sources"].values():
        if source["kind"] == "official":
            assert len(source["commit"]) == 8
    assert "arXiv 2504.13958v1" in reference.source_text("toolrl")
    assert "second-hand" in reference.source_text("cahl")


# --- the choice of rows --------------------------------------------------------------------------


def test_smollm2_has_no_row_and_the_report_says_so() -> None:
    for benchmark in ("bfcl_v3", "bfcl_v4", "api_bank", "bamboogle"):
        for found in comparable(benchmark, SMALL):
            assert found.statement.startswith("No published row for smollm2-135m")
            assert all(relation != "same base model" for relation, _ in found.rows)


def test_official_rows_of_the_same_base_model_come_first() -> None:
    found = _by_key("bfcl_v3", LARGE)["bfcl_v3_exec"]
    models = [row.model for _, row in found.rows]
    assert models[:2] == ["Qwen2.5-7B-Instruct (FC)", "Qwen2.5-7B-Instruct (prompt)"]
    assert found.rows[0][1].values["overall"] == 56.70
    assert "ToolRL raw, Qwen2.5-7B" in models
    assert "of the same base model" in found.statement


@pytest.mark.parametrize("name", ["qwen2.5-7b", "Qwen/Qwen2.5-7B", "hf:Qwen/Qwen2.5-7B-Instruct/"])
def test_a_backbone_is_the_same_however_it_is_named(name: str) -> None:
    assert reference.base_name(name) == "qwen2.5-7b"
    assert comparable("bfcl_v3", name)[0].rows == comparable("bfcl_v3", LARGE)[0].rows


def test_models_near_in_size_stand_in_where_there_is_no_row() -> None:
    found = _by_key("bfcl_v3", SMALL)["bfcl_v3_noexec"]
    sizes = [row.billions for relation, row in found.rows if relation == "near in size"]
    assert sizes == sorted(sizes)  # type: ignore[type-var]
    assert all(0.135 / 5 <= (s or 0) <= 0.135 * 5 for s in sizes)
    assert {"Qwen3-0.6B (FC)", "Hammer2.1-0.5b"} <= {row.model for _, row in found.rows}
    far = _by_key("api_bank", SMALL)["api_bank"]
    assert "differ by a factor of 11" in far.statement


def test_the_methods_own_rows_are_always_there() -> None:
    for backbone in (SMALL, LARGE, "nobody/unknown-model"):
        found = _by_key("api_bank", backbone)["api_bank"]
        assert ("the method", 75.54) in [(rel, r.values["overall"]) for rel, r in found.rows]


def test_a_model_of_unknown_size_gets_no_rows_by_size() -> None:
    found = _by_key("bfcl_v3", "mystery")["bfcl_v3_exec"]
    assert "its size is not known" in found.statement
    assert {relation for relation, _ in found.rows} == {"the method"}


def test_a_benchmark_without_rows_has_none() -> None:
    assert comparable("nestful", LARGE) == []


# --- columns that do not mix ---------------------------------------------------------------------


def test_with_exec_and_no_exec_scores_never_share_a_column() -> None:
    protocols = reference.load()["protocols"]
    columns = {key: {c["key"]: c for c in p["columns"]} for key, p in protocols.items()}
    assert columns["bfcl_v3_exec"]["overall"]["ours"] == []  # no package can execute them any more
    assert columns["bfcl_v3_noexec"]["overall"]["ours"]
    titles = [p["columns"][0]["title"] for key, p in protocols.items() if "overall" in columns[key]]
    bfcl = [t for t in titles if t != "overall"]
    assert len(set(bfcl)) == len(bfcl) == 4


def test_v4_nonagentic_is_never_called_overall() -> None:
    columns = {c["key"]: c for c in reference.load()["protocols"]["bfcl_v4"]["columns"]}
    assert columns["overall"]["ours"] == []
    assert "overall" not in columns["nonagentic"]["title"]
    assert columns["nonagentic"]["ours"]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    results, _ = evaluation(
        ("cahl",), ("bfcl_v3", "bfcl_v3_multi_turn", "api_bank", "bamboogle"), share=1.0
    )
    return results


@pytest.fixture(scope="module")
def sampled() -> dict[str, Any]:
    return evaluation(("cahl",), ("bfcl_v3", "bfcl_v3_multi_turn", "bamboogle"), share=0.1)[0]


def _ours(results: dict[str, Any], benchmark: str, protocol: str) -> dict[str, float | None]:
    found = _by_key(benchmark, SMALL)[protocol]
    return {c.key: reference.ours(results, "cahl", c) for c in found.columns}


def test_our_numbers_are_official_formulas_over_our_categories(whole: dict[str, Any]) -> None:
    accuracy = {
        c: part["accuracy"]["value"]
        for b in ("bfcl_v3", "bfcl_v3_multi_turn")
        for c, part in whole["results"]["cahl"][b]["by_category"].items()
    }
    columns = formulas.columns(formulas.V3, accuracy, COUNTS["bfcl_v3"])
    turns = formulas.multi_turn(accuracy)
    assert turns is not None
    ours = _ours(whole, "bfcl_v3", "bfcl_v3_noexec")
    expected = {
        "overall": formulas.overall_v3_no_exec(columns, turns),
        **{k: columns[k] for k in ("non_live_ast", "live", "irrelevance")},
        "multi_turn": turns,
    }
    assert ours == pytest.approx(expected)
    with_exec = _ours(whole, "bfcl_v3", "bfcl_v3_exec")
    assert with_exec["overall"] is None
    assert with_exec["non_live_exec"] is None
    assert with_exec["non_live_ast"] == pytest.approx(columns["non_live_ast"])


def test_our_numbers_by_category_and_for_bamboogle(whole: dict[str, Any]) -> None:
    own = whole["results"]["cahl"]
    by_category = _ours(whole, "bfcl_v3", "bfcl_v3_categories")
    part = own["bfcl_v3"]["by_category"]["live_relevance"]
    assert by_category["relevance"] == part["accuracy"]["value"]
    em = _ours(whole, "bamboogle", "bamboogle_em")
    assert em == {"em": own["bamboogle"]["accuracy"]["value"], "cover_em": None}
    assert _ours(whole, "bamboogle", "bamboogle_judged_google") == {"judged": None, "calls": None}


def test_a_sample_fills_no_published_column(sampled: dict[str, Any]) -> None:
    for benchmark, protocol in (("bfcl_v3", "bfcl_v3_noexec"), ("bfcl_v3", "bfcl_v3_categories"),
                                ("bamboogle", "bamboogle_em")):  # fmt: skip
        found = _ours(sampled, benchmark, protocol)
        assert set(found.values()) == {None}
    assert "only part of bfcl_v3, bfcl_v3_multi_turn was evaluated" in report.markdown(sampled, {})


def test_75_2_is_never_printed_without_the_reason_why_it_differs(whole: dict[str, Any]) -> None:
    for text in (report.markdown(whole, {}), report.html(whole, {}).replace("</tr>", "\n")):
        shown = [line for line in text.splitlines() if "75.2" in line.replace("75.20", "75.2")]
        shown = [line for line in shown if "Agent-as-Tool" in line or "CAHL" in line]
        assert shown
        for line in shown:
            assert "judge" in line
            assert "EM" in line
