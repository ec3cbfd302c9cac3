"""The report: no text from outside becomes markup, nothing is loaded from elsewhere, gaps are shown."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import CONTAMINATION, Described, evaluation, lines_of, scores, timing_of
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.errors import DataError
from cahl_core.evaluation import report, results_file
from cahl_core.evaluation.report import document, examples, page
from cahl_core.evaluation.report.benchmark import irrelevance, unanswerable

EVIL = "</pre></td><script>alert(1)</script> | ``` <img src=http://x> \x1b[31m"
VOID = {"meta", "input", "line", "rect", "wbr", "br"}


class Reader(HTMLParser):
    """Checks that elements close in order, and notes what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def run() -> tuple[dict[str, Any], Any]:
    return evaluation(share=0.1)


@pytest.fixture(scope="module")
def shown(run: Any) -> Reader:
    return read(report.html(*run, timing_of(run[0])))


@pytest.fixture(scope="module")
def text(run: Any) -> str:
    return report.markdown(*run, timing_of(run[0]))


# --- texts from outside --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile() -> tuple[dict[str, Any], Any]:
    """Evil texts in every place that models, data or users can reach."""
    described = Described("api_bank", {EVIL: 4})
    described.title = EVIL
    found = {
        m: [
            results_file.score_of({**vars_of(s), "id": EVIL + s.id, "error": EVIL, "error_type": EVIL,
                                   "outcome": EVIL, "scores": {EVIL: 0.5}})
            for s in scores("api_bank", m, counts={EVIL: 4})
        ]
        for m in (EVIL, "cahl")
    }  # fmt: skip
    results = results_file.build(
        {m: {"api_bank": own} for m, own in found.items()},
        [described],
        models={m: {"backbone": EVIL} for m in found},
        config={EVIL: EVIL},
        versions={EVIL: EVIL},
        seeds={},
        git=EVIL,
        prompts={m: {"api_bank": [{"title": EVIL, "text": EVIL}]} for m in found},
    )
    items = {
        m: {
            "api_bank": [
                {**x, "example": EVIL, "correct": float(m == EVIL)} for x in lines_of(own, m)
            ]
        }
        for m, own in found.items()
    }
    return results, items


def vars_of(score: Any) -> dict[str, Any]:
    return {name: getattr(score, name) for name in results_file.FIELDS}


def test_texts_from_outside_are_shown_as_text(hostile: Any) -> None:
    reader = read(report.html(*hostile))
    assert len(reader.of("script")) == 1  # the page's own
    assert reader.of("img") == []
    assert sum("alert(1)" in t for t in reader.texts) > 20  # all shown, as text


def test_no_line_of_the_markdown_can_become_markup(hostile: Any) -> None:
    lines = report.markdown(*hostile).splitlines()
    evil = [line for line in lines if "alert(1)" in line]
    assert evil
    for line in evil:
        assert line.startswith("    ") or "<" not in line  # code, or without a tag
    table = [line for line in lines if line.startswith("|") and "alert(1)" in line]
    assert table
    assert all(
        re.search(r"(?<!\\)\| ``` ", line) is None for line in table
    )  # the bar stays in its cell


@given(st.text())
def test_any_text_stays_in_its_cell_and_its_paragraph(value: str) -> None:
    table = document.Table(["a", "b"], [[value, "x"]])
    lines = document.markdown([table]).split("\n")
    assert len(lines) == 4
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3
    reader = read(page.block_html(document.Folds([document.Fold(value, value, [value])])))
    assert {tag for tag, _ in reader.elements} == {"div", "details", "summary", "span", "pre"}


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path, run: Any) -> None:
    results, items = run
    line = {**items["cahl"]["api_bank"][0], "example": "\ud800 broken", "correct": 0.0}
    report.write(tmp_path, results, {"cahl": {"api_bank": [line]}})
    assert "\\ud800 broken" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\\ud800 broken" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_console_shows_no_control_characters(hostile: Any) -> None:
    shown = document.console(report.blocks(*hostile))
    assert "alert(1)" in shown
    assert "\x1b" not in shown


# --- one file ------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(shown: Reader, run: Any) -> None:
    for _, attributes in shown.elements:
        assert "src" not in attributes
        assert "style" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", report.html(*run))
    assert {a.get("id") for _, a in shown.elements} >= {
        a["href"][1:] for a in shown.of("a") if a["href"]
    }


def test_the_policy_allows_the_pages_own_style_and_script_alone(run: Any) -> None:
    text = report.html(*run)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_can_be_read_without_its_script(shown: Reader) -> None:
    assert all("hidden" in a for a in shown.of("label"))  # the filters, which need it


def test_the_same_run_gives_the_same_bytes(run: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        results, items = evaluation(share=0.1)
        results_file.write(tmp_path / name, results, items)
        report.write(tmp_path / name, results, items)
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert len(files) == 3 + 9
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# --- what is in it -------------------------------------------------------------------------------


def headings(text: str, level: int) -> list[str]:
    return [x.lstrip("# ") for x in text.splitlines() if x.startswith("#" * level + " ")]


def test_the_report_has_its_parts_in_order(text: str) -> None:
    assert headings(text, 2) == [
        "Summary", "Efficiency", "Time", "BFCL v3, one turn", "API-Bank (ToolRL's 597 items)",
        "Bamboogle, closed book", "To repeat it",
    ]  # fmt: skip
    part = text.partition("## BFCL v3, one turn")[2].partition("\n## ")[0]
    kinds = [re.sub(r"^\d+ items", "n items", h.partition(":")[0]) for h in headings(part, 3)]
    assert list(dict.fromkeys(kinds)) == [
        "Beside published numbers, in %", "Protocol", "Prompts, as they were sent", "Examples",
        "n items on which sft is better than base, 10 shown (all",
        "n items on which sft is worse than base, 10 shown (all",
        "n items on which cahl is better than base, 10 shown (all",
        "n items on which cahl is worse than base, 10 shown (all",
        "n items on which cahl is better than sft, 10 shown (all",
        "n items on which cahl is worse than sft, 10 shown (all",
    ]  # fmt: skip


def rows(text: str, start: str) -> list[list[str]]:
    """Cells of the first Markdown table after a text."""
    lines = text.partition(start)[2].splitlines()
    first = next(i for i, x in enumerate(lines) if x.startswith("|"))
    table: list[list[str]] = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([c.strip() for c in line.strip("|").split(" | ")])
    return table


def test_the_summary_has_n_score_and_interval_of_every_model(run: Any, text: str) -> None:
    header, _, *body = rows(text, "## Summary")
    assert header == ["benchmark", "n", "base", "sft", "cahl"]
    assert [row[1] for row in body] == ["364 of 3,641", "60 of 597", "12 of 125"]
    found = run[0]["results"]["sft"]["bfcl_v3"]["accuracy"]
    assert (
        body[0][3]
        == f"{found['value'] * 100:.1f} \\[{found['low'] * 100:.1f}, {found['high'] * 100:.1f}\\]"
    )


def test_bfcl_is_first_shown_without_what_broken_output_passes(run: Any) -> None:
    results = copy.deepcopy(run[0])
    for model, right in (("base", 0.0), ("sft", 0.25), ("cahl", 0.5)):
        results["results"][model]["bfcl_v3"]["own"]["ast"] = {"n": 200, "accuracy": right}
    table = report.summary_table(results)
    first, second, *_ = [line for line in table.splitlines() if "BFCL" in line]
    assert "items that need calls | 200 | 0.0 " in first
    assert "25.0 \\[19.5, 31.4\\]" in first  # Wilson's interval of 50 in 200
    assert "irrelevance among them | 364 of 3,641" in second


def test_tasks_that_were_trained_on_are_said_before_their_numbers(run: Any) -> None:
    results = copy.deepcopy(run[0])
    entry = results["benchmarks"]["api_bank"]
    entry["about"]["training_overlap"] = {"line": "CONTAMINATED: 3 of 60 requests are in it"}
    page = report.markdown(results, {})
    own = page.partition(f"## {entry['title']}")[2]
    assert own.index("CONTAMINATED: 3 of 60") < own.index("| category")


def test_the_category_table_is_whole(run: Any, text: str) -> None:
    _, _, *body = rows(text.partition("## BFCL v3, one turn")[2], "is not known.")
    assert [row[0] for row in body] == [*run[0]["benchmarks"]["bfcl_v3"]["counts"], "**all items**"]


def test_every_mark_of_a_chart_lies_on_its_axis(shown: Reader) -> None:
    bars, lines = shown.of("rect"), [a for a in shown.of("line") if a.get("class") == "interval"]
    assert len(bars) > 100
    for bar in bars:
        assert (
            0 <= float(bar["x"] or 0) <= float(bar["x"] or 0) + float(bar["width"] or 0) <= 100.01
        )
    for line in lines:
        assert 0 <= float(line["x1"] or 0) <= float(line["x2"] or 0) <= 100


def test_a_bar_is_as_long_as_its_value_and_a_signed_one_starts_at_the_middle() -> None:
    mark = document.Mark(0.25, 0.2, 0.3, 1, "t")
    (bar,) = read(page.chart(document.Chart([("c", [mark])]))).of("rect")
    assert (float(bar["x"] or 0), float(bar["width"] or 0)) == (0.0, 25.0)
    below = document.Mark(-0.05, -0.07, -0.01, 1, "t")  # the axis goes from -10 to +10 points
    (bar,) = read(page.chart(document.Chart([("c", [below])], signed=True))).of("rect")
    assert (float(bar["x"] or 0), float(bar["width"] or 0)) == (25.0, 25.0)


def test_irrelevance_is_split_and_the_parts_are_all(run: Any) -> None:
    own = {m: found["bfcl_v3"] for m, found in run[0]["results"].items()}
    table = irrelevance(own)
    assert table is not None
    assert len(table.rows) == 2 * 3
    for row in table.rows:
        clean, failed, wrong, other, official = map(float, row[3:])
        assert clean + failed + wrong + other == pytest.approx(100, abs=0.2)
        assert clean + failed == pytest.approx(official, abs=0.11)  # as the official rule has it
    assert irrelevance({m: found["api_bank"] for m, found in run[0]["results"].items()}) is None


def test_an_unanswerable_items_samples_all_count() -> None:
    own = {"base": {"own": {"unanswerable": ["a_1"]}}}
    lines = [{"id": "a_1", "correct": c} for c in (1.0, 0.0, 0.0, 0.0)]
    [table] = unanswerable(own, {"base": {"bfcl_v3": lines}}, "bfcl_v3")
    assert table.rows == [["a_1", "0.250"]]  # type: ignore[union-attr]


def test_unanswerable_items_are_listed_with_what_models_scored(text: str) -> None:
    header, _, *body = rows(text, "no answer, or only a degenerate one, can meet")
    assert header == ["unanswerable item", "base", "sft", "cahl"]
    assert [row[0] for row in body] == ["java_3", "live_simple_1"]
    assert {cell for row in body for cell in row[1:]} <= {"0.000", "1.000"}


def test_contamination_is_said_for_every_benchmark(text: str) -> None:
    assert "5 records of the training sources repeated one of bfcl-v3's 8,200 questions" in text
    assert text.count("Contamination: not known") == 2
    bare, _ = evaluation(("base",), ("bfcl_v3",), contamination=None)
    assert "Contamination: not known" in report.markdown(bare, {})


@pytest.mark.parametrize(
    ("benchmark", "found"),
    [("bfcl_v3", True), ("bfcl_v3_multi_turn", True), ("bfcl_v4", False), ("bfcl", False)],
)
def test_a_benchmark_is_matched_with_its_source(benchmark: str, found: bool) -> None:
    assert (results_file.overlap(benchmark, CONTAMINATION) is not None) == found


def test_times_are_shown_only_when_they_are_given(run: Any, text: str) -> None:
    assert "## Time" not in report.markdown(*run)
    header, _, *body = rows(text, "## Time")
    row = dict(zip(header, body[0], strict=True))
    assert (row["encoding s"], row["decoding s"], row["rest s"]) == ("0.96", "1.17", "0.18")
    assert row["encoding %"] == "41.5"
    assert row["written tokens/s"] == "33"


def test_prompts_are_printed_once_for_the_models_that_share_them(run: Any, shown: Reader) -> None:
    assert sum(t.startswith("system: You plan.") for t in shown.texts) == 3  # one per benchmark


def test_a_sample_is_called_one(text: str) -> None:
    assert text.count("A fixed sample") == 3


def test_a_model_without_a_benchmark_and_items_that_are_not_there_leave_gaps() -> None:
    results, items = evaluation(("base", "cahl"), ("api_bank",))
    del results["results"]["base"]["api_bank"]
    results["paired"]["api_bank"] = []
    text = report.markdown(results, {})
    assert "| API-Bank (ToolRL's 597 items) | 60 of 597 | – |" in text
    assert "Examples" not in text
    assert report.html(results, items)


def test_a_refused_pair_says_why() -> None:
    one, other = (scores("api_bank", m, share=0.1) for m in ("base", "cahl"))
    results = results_file.build(
        {"base": {"api_bank": one}, "cahl": {"api_bank": other[1:]}}, [Described("api_bank")],
        models={"base": {}, "cahl": {}}, config={}, versions={}, seeds={},
    )  # fmt: skip
    assert "only the first has 1 (level-1\\_0)" in report.markdown(results, {}).replace(
        "_0", "\\_0"
    )


def test_number_and_summary_table_are_for_logs(run: Any) -> None:
    assert [report.number(x) for x in (None, 0.12345, 7)] == ["–", "0.123", "7"]
    assert report.summary_table(run[0]).startswith(
        "Accuracy in % with 95 % interval\n\n| benchmark |"
    )


# --- examples ------------------------------------------------------------------------------------


def test_wrong_examples_are_of_different_kinds_the_most_frequent_first() -> None:
    lines = [
        {"id": str(i), "category": "c", "correct": 0.0, "outcome": "calls", "error_type": kind}
        for i, kind in enumerate(["b"] * 2 + ["a"] * 5 + ["c"])
    ]
    assert [x["error_type"] for x in examples.worst(lines, 4)] == ["a", "b", "c", "a"]


def test_right_examples_are_those_with_most_calls() -> None:
    line = {"category": "c", "correct": 1.0, "outcome": "calls", "sample": 1}
    lines = [{**line, "id": str(i), "attempted": i} for i in range(5)]
    assert [f.title for f in examples.examples("m", lines).items] == ["4 #1", "3 #1"]


def test_flips_are_all_found_and_hold_both_texts() -> None:
    one, other = (lines_of(scores("api_bank", m, share=0.5), m) for m in ("sft", "cahl"))
    better, worse = examples.flips(one, other, ("sft", "cahl"))
    changes = {a["id"]: b["correct"] - a["correct"] for a, b in zip(one, other, strict=True)}
    assert {f.title for f in better} == {i for i, c in changes.items() if c > 0}
    assert {f.title for f in worse} == {i for i, c in changes.items() if c < 0}
    assert better
    assert worse
    for fold in better:
        assert (
            fold.text.index("=== sft")
            < fold.text.index("plan of sft")
            < fold.text.index("=== cahl")
        )
        assert "plan of cahl" in fold.text


@given(st.text(max_size=200), st.integers(2, 50))
def test_a_cut_text_keeps_its_ends_and_says_what_is_missing(text: str, limit: int) -> None:
    found = examples.cut(text, limit)
    if len(text) <= limit:
        assert found == text
    else:
        half = limit // 2
        assert found.startswith(text[:half])
        assert found.endswith(text[-half:])
        assert f"{len(text) - 2 * half} characters left out" in found


# --- results.json --------------------------------------------------------------------------------


def test_results_are_read_as_they_were_written(run: Any, tmp_path: Path) -> None:
    results, items = run
    results_file.write(tmp_path, results, items)
    assert results_file.read(tmp_path) == json.loads(json.dumps(results))
    assert results_file.read(tmp_path / "results.json") == results_file.read(tmp_path)
    lines = results_file.read_items(tmp_path, results, "sft", "api_bank")
    assert [results_file.score_of(x) for x in lines] == scores("api_bank", "sft", share=0.1)


def test_results_name_no_place_and_no_time(tmp_path: Path) -> None:
    config = {
        "model": {"path": str(tmp_path / "weights")},
        "corpus": "data/raw/x",
        "windows": r"C:\a\b",
    }
    results, _ = evaluation(
        ("base",), ("bamboogle",), config=config, described={"place": str(tmp_path)}
    )
    written = json.dumps(results, ensure_ascii=False)
    assert str(tmp_path) not in written
    assert results["config"] == {
        "model": {"path": "…/weights"},
        "corpus": "data/raw/x",
        "windows": "…/b",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(version=99), "version 99; this program reads version 1"),
        (lambda r: r.pop("paired"), "the whole: 'paired' is a required property"),
        (lambda r: r["results"]["base"]["bamboogle"].update(n="12"),
         "results/base/bamboogle/n: '12' is not of type 'integer'"),
        (lambda r: r["results"]["base"]["bamboogle"]["accuracy"].pop("low"),
         "results/base/bamboogle/accuracy: 'low' is a required property"),
    ],
)  # fmt: skip
def test_damaged_results_are_refused_where_they_are_damaged(
    change: Any, message: str, tmp_path: Path
) -> None:
    results, items = evaluation(("base",), ("bamboogle",))
    results_file.write(tmp_path, results, items)
    change(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match=re.escape(message)):
        results_file.read(tmp_path)


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        results_file.read(tmp_path)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(DataError, match="version None"):
        results_file.read(tmp_path)


def test_a_damaged_line_of_items_is_named(tmp_path: Path) -> None:
    results, items = evaluation(("base",), ("bamboogle",))
    results_file.write(tmp_path, results, items)
    (path,) = (tmp_path / "items").rglob("*.jsonl")
    path.write_text(path.read_text() + '{"id": "x", "category": "c", "correct": 1}\n')
    with pytest.raises(DataError, match=r"bamboogle.jsonl:13: lacks outcome"):
        results_file.read_items(tmp_path, results, "base", "bamboogle")
    path.unlink()
    with pytest.raises(DataError, match="copy the whole directory"):
        results_file.read_items(tmp_path, results, "base", "bamboogle")


def test_names_of_models_become_folders_that_do_not_meet(tmp_path: Path) -> None:
    names = (
        "models:/cahl@champion",
        "models:/cahl-champion",
        "models__cahl_champion",
        "../../up",
        "A",
        "a",
    )
    results, items = evaluation(names, ("bamboogle",))
    folders = [m["folder"] for m in results["models"].values()]
    assert len({f.lower() for f in folders}) == len(names)
    assert all(re.fullmatch(r"[\w.-]+", f) and not f.startswith(".") for f in folders)
    results_file.write(tmp_path / "x", results, items)
    assert len(list(tmp_path.rglob("*.jsonl"))) == len(names)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_scores_of_what_is_not_described_are_refused() -> None:
    found = {"base": {"bamboogle": scores("bamboogle", "base", share=0.1)}}
    with pytest.raises(DataError, match="scores of bamboogle, which is not described"):
        results_file.build(found, [], models={"base": {}}, config={}, versions={}, seeds={})
    with pytest.raises(DataError, match="scores of base, which is not described"):
        results_file.build(
            found, [Described("bamboogle")], models={}, config={}, versions={}, seeds={}
        )
