"""``cahl data`` as a user meets it, on the real mirror where it is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cahl_core import data_cli
from cahl_core.cli import app
from cahl_core.data_cli import readable
from cahl_core.datasets.sources import ORIGIN_FILE, load_sources, read_origin
from cahl_core.datasets.view import LINE, plain, render

ROOT = Path(__file__).parents[2]
MIRROR = ROOT.parent / "shared" / "data"

needs_mirror = pytest.mark.skipif(
    not MIRROR.is_dir(), reason="../shared/data is not here: the mirror of real records"
)


@pytest.fixture
def mirrored(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project that sees the real mirror."""
    monkeypatch.setenv("CAHL_MIRROR", str(MIRROR))
    return project


@pytest.fixture
def own(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one source of its own: two lines of JSON, one of them hostile."""
    monkeypatch.delenv("CAHL_MIRROR", raising=False)
    record = {
        "id": "x-1", "source": "mine",
        "messages": [{"role": "user", "content": "evil \x1b[31mred\u202e and\nlines " + "y" * 500}],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d",
                   "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}],
        "answers": [[{"name": "f", "arguments": {"a": "1"}}, {"name": "f", "arguments": {}}]],
        "plan": [{"task": "do it", "tool": "f", "arguments": {}}], "meta": {"answer": "done"},
    }  # fmt: skip
    (project / "mine.jsonl").write_text(json.dumps(record) + "\nnot json\n", encoding="utf-8")
    entry = ("mine: {kind: data, description: d, licence: MIT, fetcher: path, format: tool-tasks, "
             "path: mine.jsonl}\n")  # fmt: skip
    (project / "data" / "sources.yaml").write_text(entry)
    return project


def cahl(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments, "--root", str(project)])


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['cahl', 'data', '--help']\n"
        "from cahl_core.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'requests', 'yaml', 'torch', 'transformers', 'datasets',"
        " 'pandas', 'rich.table'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in ("list", "fetch", "show", "stats", "validate"):
        assert name in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@needs_mirror
def test_list_says_where_every_source_is(mirrored: Path) -> None:
    rows = json.loads(cahl(mirrored, "list", "--json").stdout)
    where = {row["name"]: (row["where"], row["form"]) for row in rows}
    assert list(where) == list(load_sources(ROOT))
    assert where["sgd"] == ("mirror", "records")
    assert where["api_bank_raw"] == ("mirror", "upstream")
    assert where["toolace"] == ("network", "upstream")
    sizes = {row["name"]: row["bytes"] for row in rows}
    assert sizes["sgd"] == (MIRROR / "sgd" / "train.jsonl").stat().st_size
    cahl(mirrored, "fetch", "sgd")
    rows = json.loads(cahl(mirrored, "list", "--json").stdout)
    assert {r["name"]: (r["where"], r["bytes"]) for r in rows}["sgd"] == ("fetched", sizes["sgd"])


def test_the_piped_table_is_aligned_and_plain(project: Path) -> None:
    lines = cahl(project, "list").stdout.splitlines()
    assert lines[0].split() == list(data_cli.HEADINGS)
    start = lines[0].index("fetcher")
    assert {line[start:].split()[0] for line in lines[1:]} == {"pypi", "git", "huggingface"}
    assert all("\x1b" not in line and line == line.rstrip() for line in lines)
    by_name = {line.split()[0]: line for line in lines[1:]}
    assert "research only" in by_name["apigen_mt"]
    assert "test only" in by_name["bfcl-v3"]
    assert "share-alike" in by_name["sgd"]


@needs_mirror
def test_fetch_leaves_the_other_sources_alone(mirrored: Path) -> None:
    raw = mirrored / "data" / "raw"
    assert cahl(mirrored, "fetch", "bamboogle").exit_code == 0
    before = {p: p.stat().st_mtime_ns for p in raw.rglob("*") if p.is_file()}
    assert cahl(mirrored, "fetch", "rlla", "rlla_test").exit_code == 0
    assert sorted(p.name for p in raw.iterdir()) == ["bamboogle", "rlla", "rlla_test"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert read_origin(raw / "rlla_test").form == "records"


@needs_mirror
def test_the_same_source_twice_gives_the_same_bytes(mirrored: Path) -> None:
    folder = mirrored / "data" / "raw" / "api_bank"
    found = []
    for _ in range(2):
        assert cahl(mirrored, "fetch", "api_bank").exit_code == 0
        found.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    assert found[0] == found[1]
    assert ORIGIN_FILE in found[0]


def test_fetch_of_an_unknown_source_names_the_nearest(project: Path) -> None:
    done = cahl(project, "fetch", "sea_tools")
    assert done.exit_code == 2
    assert "did you mean 'seal_tools'" in done.stderr


def test_fetch_refuses_what_the_licence_forbids(project: Path) -> None:
    done = cahl(project, "fetch", "apigen_mt", "--set", "fetch.use=commercial")
    assert done.exit_code == 3
    assert "CC-BY-NC-4.0" in done.stderr
    assert not (project / "data" / "raw").exists()


@needs_mirror
def test_show_gives_licence_citation_and_readable_records(mirrored: Path) -> None:
    text = cahl(mirrored, "show", "seal_tools", "-n", "2").stdout
    for part in ("Apache-2.0", "arXiv 2405.08355", "fairyshine/Seal-Tools", "in the mirror"):
        assert part in text
    blocks = text.strip().split("\n\n")
    assert len(blocks) == 3
    assert blocks[1].startswith("seal_tools-dev-easy-0\n")
    assert all("user" in block and "tools" in block and "step 1" in block for block in blocks[1:])


@needs_mirror
@pytest.mark.parametrize("name", ["sgd", "bamboogle", "search_corpus", "api_bank", "open_qa"])
def test_every_kind_of_record_can_be_shown(mirrored: Path, name: str) -> None:
    done = cahl(mirrored, "show", name, "-n", "1")
    assert done.exit_code == 0
    assert len(done.stdout.strip().split("\n\n")) == 2
    assert all(len(line) <= LINE + 20 for line in done.stdout.splitlines() if line[:1] == " ")


@needs_mirror
def test_show_finds_one_record_by_its_id(mirrored: Path) -> None:
    found = json.loads(cahl(mirrored, "show", "bamboogle", "--id", "bamboogle-7", "--json").stdout)
    assert [record["id"] for record in found["records"]] == ["bamboogle-7"]
    assert found["source"]["licence"] == "Apache-2.0 AND MIT"
    done = cahl(mirrored, "show", "bamboogle", "--id", "nope")
    assert done.exit_code == 4
    assert "no record 'nope' (125 read)" in done.stderr


def test_show_of_a_source_that_is_not_at_hand_says_how_to_get_it(project: Path) -> None:
    done = cahl(project, "show", "toolace")
    assert done.exit_code == 0
    assert "cahl data fetch toolace" in done.stdout


def test_shown_records_cannot_rule_the_terminal(own: Path) -> None:
    done = cahl(own, "show", "mine")
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    lines = done.stdout.splitlines()
    assert any("evil [31mred and lines" in line for line in lines)
    assert any("tools     1: f(a)" in line for line in lines)
    assert sum(line.strip().startswith("step 1") for line in lines) == 2
    assert any("plan 1    do it [f]" in line for line in lines)
    assert any("malformed" in line and "mine.jsonl:2" in line for line in lines)


def test_ones_own_source_is_listed_and_fetched(own: Path) -> None:
    assert "your path" in cahl(own, "list").stdout
    assert cahl(own, "fetch", "mine").exit_code == 0
    assert sorted(p.name for p in (own / "data/raw/mine").iterdir()) == [ORIGIN_FILE, "mine.jsonl"]


@pytest.mark.parametrize(
    ("command", "module", "given", "expected"),
    [
        ("stats", "statistics", ["a", "b", "--json"], (["a", "b"], True)),
        ("stats", "statistics", [], ([], False)),
        ("validate", "validation", ["x.jsonl", "--format", "qa"], ("x.jsonl", "qa", False)),
    ],
)
def test_stats_and_validate_are_handed_over(
    project: Path, monkeypatch: pytest.MonkeyPatch, command: str, module: str, given: list[str],
    expected: tuple[Any, ...],
) -> None:  # fmt: skip
    seen: list[Any] = []
    stub: Any = types.ModuleType(module)
    stub.command = lambda root, settings, *rest: seen.append((root, rest))
    monkeypatch.setitem(sys.modules, f"cahl_core.datasets.{module}", stub)
    assert cahl(project, command, *given).exit_code == 0
    assert seen == [(project, expected)]


def test_a_table_is_drawn_on_a_terminal(project: Path) -> None:
    import pty

    command = [sys.executable, "-m", "cahl_core.cli", "data", "list", "--root", str(project)]
    main, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm", "CAHL_MIRROR": ""}
    process = subprocess.Popen(command, cwd=ROOT, stdout=side, env=environment)
    os.close(side)
    text = b""
    try:
        while block := os.read(main, 4096):
            text += block
    except OSError:  # the other side is closed
        pass
    os.close(main)
    assert process.wait() == 0
    assert "┃" in text.decode()


def test_sizes_are_readable() -> None:
    assert [readable(n) for n in (0, 999, 1500, 92_871_040)] == ["?", "999 B", "1.5 kB", "92.9 MB"]


@pytest.mark.parametrize("record", [{"id": "a"}, {"id": "a", "malformed": "why"}, {}])
def test_odd_records_are_rendered_too(record: dict[str, Any]) -> None:
    assert render(record)


def test_plain_text_is_one_line() -> None:
    assert plain("a\n\tb\x00\u200e c") == "a b c"


def test_the_shipped_sources_are_copied_whole(project: Path) -> None:
    shutil.copy(ROOT / "data" / "sources.yaml", project / "data" / "sources.yaml")
    assert len(cahl(project, "list").stdout.splitlines()) == 1 + len(load_sources(ROOT))
