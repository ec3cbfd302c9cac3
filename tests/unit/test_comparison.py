"""Two evaluations against each other: what differs is said first, what cannot be compared is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import Described, evaluation, prompts_of, scores, written

from cahl_core.errors import DataError
from cahl_core.evaluation import results_file
from cahl_core.evaluation.comparison import Comparison, compare, compare_reports
from cahl_core.evaluation.pairing import paired
from cahl_core.evaluation.report.compared import blocks
from cahl_core.evaluation.report.examples import FLIPS
from cahl_core.evaluation.report.page import render_page

BENCHMARKS = ("api_bank", "bamboogle")
TRAIN = {"max_tokens": 9}
CONFIG: dict[str, Any] = {
    "train": TRAIN,
    "evaluate": {"plan_tokens": 256, "models": ["a"]},
    "model": {"max_context": 512},
}


def _pair(folder: Path, **second: Any) -> tuple[Path, Path]:
    """Two directories that differ in ``second`` alone."""
    shared: dict[str, Any] = {"models": ("sft",), "benchmarks": BENCHMARKS, "config": CONFIG}
    written(folder / "a", **shared)
    written(folder / "b", **{**shared, **second})
    return folder / "a", folder / "b"


def _matters(found: Comparison) -> list[str]:
    return [d.what for d in found.differences if d.matters]


# --- the same and not the same -------------------------------------------------------------------


def test_an_evaluation_does_not_differ_from_itself(tmp_path: Path) -> None:
    a, b = _pair(tmp_path)
    found = compare(a, b)
    assert found.differences == []
    assert found.only == []
    assert [p.benchmark for p in found.parts] == list(BENCHMARKS)
    for part in found.parts:
        assert part.reasons == []
        assert part.found is not None
        assert part.found["difference"]["value"] == 0
        assert part.better == part.worse == []
    assert "Nothing: same data, items, prompts" in compare_reports(a, b)
    assert compare(a, a).sides == (f"{a} (1)", f"{a} (2)")


def test_other_models_are_compared_item_by_item(tmp_path: Path) -> None:
    a, b = _pair(tmp_path, models=("cahl",))
    found = compare(a, b)
    (part, _) = found.parts
    one, other = (scores("api_bank", m, share=0.1) for m in ("sft", "cahl"))
    assert part.found == paired(one, other)
    assert part.models == ("a: sft", "b: cahl")
    assert part.reasons == []
    changes = {x.id: y.correct - x.correct for x, y in zip(one, other, strict=True)}
    assert {f.title for f in part.better} == {i for i, c in changes.items() if c > 0}
    assert {f.title for f in part.worse} == {i for i, c in changes.items() if c < 0}
    assert [(d.what, d.one, d.other, d.matters) for d in found.differences] == [
        ("sft and cahl: adapters", "sft", "cahl", False)
    ]


# --- protocol ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "matters"),
    [
        ({**CONFIG, "evaluate": {"plan_tokens": 128, "models": ["a"]}}, True),
        ({**CONFIG, "model": {"max_context": 99}}, True),
        ({**CONFIG, "evaluate": {"plan_tokens": 256, "models": ["b"]}}, False),
        ({**CONFIG, "train": {"max_tokens": 3}}, False),
    ],
)
def test_settings_that_change_what_is_asked_make_it_not_comparable(
    config: Any, matters: bool, tmp_path: Path
) -> None:
    found = compare(*_pair(tmp_path, config=config))
    assert len(found.differences) == 1
    assert [bool(p.reasons) for p in found.parts] == [matters, matters]


def test_other_prompts_make_their_benchmark_not_comparable_and_show_where(tmp_path: Path) -> None:
    prompts = {"sft": {b: prompts_of(b) for b in BENCHMARKS}}
    prompts["sft"]["bamboogle"] = prompts_of("bamboogle")
    prompts["sft"]["bamboogle"][1] = {
        "title": "executor, bamboogle",
        "text": "system: You call NOTHING.",
    }
    found = compare(*_pair(tmp_path, prompts=prompts))
    assert [p.reasons for p in found.parts] == [[], ["prompts of sft"]]
    (difference,) = found.differences
    assert "tools" in difference.one
    assert "NOTHING" in difference.other
    text = compare_reports(tmp_path / "a", tmp_path / "b")
    assert "Not comparable as models, as these differ: prompts of sft." in text
    assert text.index("What differs") < text.index("Accuracy in %") < text.index("Not comparable")


def test_other_data_or_another_protocol_make_it_not_comparable(
    tmp_path: Path, monkeypatch: Any
) -> None:
    about = Described.about
    a, _ = _pair(tmp_path)

    def changed(self: Described) -> dict[str, Any]:
        found = about(self)
        found["data"] = {"bamboogle.jsonl": "cd" * 32}
        return {**found, "protocol": {**found["protocol"], "judge": "GPT-4o"}}

    monkeypatch.setattr(Described, "about", changed)
    written(tmp_path / "c", models=("sft",), benchmarks=("bamboogle",), config=CONFIG)
    found = compare(a, tmp_path / "c")
    assert _matters(found) == ["protocol: judge", "data: bamboogle.jsonl"]
    assert found.parts[0].reasons == _matters(found)
    assert "Only in a: benchmark api_bank." in found.only


def test_other_items_are_refused_and_said(tmp_path: Path) -> None:
    found = compare(*_pair(tmp_path, share=0.2))
    assert all(p.found is None for p in found.parts)
    assert found.parts[0].reasons == ["items"]
    assert [(d.benchmark, d.what, d.one, d.other) for d in found.differences] == [
        ("api_bank", "items", "60", "119"),
        ("bamboogle", "items", "12", "25"),
    ]
    assert "only the second has" in found.parts[0].refused
    text = compare_reports(tmp_path / "a", tmp_path / "b")
    assert "a paired difference needs the same items" in text
    assert "all items" not in text


def test_versions_are_said_and_do_not_make_it_incomparable(tmp_path: Path) -> None:
    found = compare(*_pair(tmp_path, versions={"torch": "9.9", "python": "3.11.2"}))
    assert [(d.what, d.one, d.other) for d in found.differences] == [
        ("versions: torch", "2.11", "9.9")
    ]
    assert found.parts[0].reasons == []


def test_a_models_own_token_limits_concern_its_pair_alone(tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder, tokens in zip(folders, (100, 50), strict=True):
        results, items = evaluation(("base", "cahl"), ("bamboogle",))
        results["models"]["cahl"]["decoding"] = {"call_tokens": tokens}
        results_file.write(folder, results, items)
    found = compare(*folders)
    assert [p.reasons for p in found.parts] == [[], ["cahl: decoding.call_tokens"]]


# --- which models --------------------------------------------------------------------------------


def test_models_are_paired_by_name_or_as_they_are_named(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    written(a, models=("base", "sft"), benchmarks=("bamboogle",))
    written(b, models=("sft", "cahl"), benchmarks=("bamboogle",))
    same = compare(a, b)
    assert [p.models for p in same.parts] == [("a: sft", "b: sft")]
    assert same.only == [
        "Only in a: model base, which is not compared.",
        "Only in b: model cahl, which is not compared.",
    ]
    named = compare(a, b, ("base", "cahl"))
    assert [p.models for p in named.parts] == [("a: base", "b: cahl")]
    within = compare(a, a, ("base", "sft"))
    assert within.parts[0].found is not None
    assert within.parts[0].found["difference"]["value"] != 0


def test_models_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    a, b = _pair(tmp_path)
    with pytest.raises(DataError, match="no model 'x' there\n  → models: sft"):
        compare(a, b, ("sft", "x"))
    with pytest.raises(DataError, match="3 models are named"):
        compare(a, b, ("a", "b", "c"))
    written(tmp_path / "c", models=("base", "cahl"), benchmarks=BENCHMARKS)
    with pytest.raises(
        DataError, match="no model has the same name on both sides: sft; base, cahl"
    ):
        compare(a, tmp_path / "c")


def test_without_a_common_benchmark_nothing_is_compared(tmp_path: Path) -> None:
    a, b = _pair(tmp_path, benchmarks=("bfcl_v3_multi_turn",))
    with pytest.raises(DataError, match="have no benchmark in common"):
        compare(a, b)


# --- pages ---------------------------------------------------------------------------------------


def test_the_comparison_is_written_as_markdown_and_html(tmp_path: Path) -> None:
    written(tmp_path / "a", models=("sft",), benchmarks=BENCHMARKS, config=CONFIG, share=0.3)
    a, b = tmp_path / "a", tmp_path / "b"
    written(b, models=("cahl",), benchmarks=BENCHMARKS, config=CONFIG, share=0.3)
    text = compare_reports(a / "results.json", b, out=tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"compare.md", "compare.html"}
    markdown = (tmp_path / "out/compare.md").read_text(encoding="utf-8")
    html = (tmp_path / "out/compare.html").read_text(encoding="utf-8")
    part = compare(a, b).parts[0]
    assert part.found is not None
    shown = f"{part.found['difference']['value'] * 100:+.1f}"
    for found in (text, markdown, html):
        assert shown in found
        assert part.better[0].title in found
    assert len(part.better) > FLIPS
    assert all(fold.title in html for fold in [*part.better, *part.worse])


def test_texts_of_models_stay_texts(tmp_path: Path) -> None:
    a, b = _pair(tmp_path, models=("cahl",))
    for path in b.rglob("*.jsonl"):
        path.write_text(path.read_text().replace("what is", "</pre><script>alert(1)</script>"))
    html = render_page("Comparison", blocks(compare(a, b)))
    assert html.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in html
