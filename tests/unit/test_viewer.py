"""The HTML page of traces: safe with any text, whole in one file, honest about what it leaves out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_trees import GOLD_PLAN, flat_tree, good_tree, plan_node, task
from typer.testing import CliRunner

from cahl_core.cli import app
from cahl_core.config import validate
from cahl_core.records import Message
from cahl_core.traces.record import TraceWriter, trace_record
from cahl_core.traces.viewer import embedded, index_row, write_html
from cahl_core.training.credit import set_advantages
from cahl_core.training.distributed import Workers
from cahl_core.training.tree import Tree

SETTINGS = validate({})
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = (
    "</script><script>document.title='owned'</script><!--<img src=x onerror=alert(1)>\u2028{{data}}"
)


class Page(HTMLParser):
    """What a browser's parser sees: elements, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._within: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = dict(attrs).get("id") or "code" if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._within = None

    def handle_data(self, data: str) -> None:
        if self._within:
            self.scripts[self._within] = self.scripts.get(self._within, "") + data


def _hostile() -> Tree:
    asked = task(9, id=HOSTILE, source=HOSTILE, messages=(Message("user", HOSTILE),))
    return Tree(
        asked, [plan_node(asked, HOSTILE, []), plan_node(asked, GOLD_PLAN, [[HOSTILE]] * 2)]
    )


def _records(*trees: Tree) -> list[dict[str, Any]]:
    set_advantages(trees, SETTINGS, Workers())
    return [trace_record(tree, step, SETTINGS) for step, tree in enumerate(trees)]


@given(st.text())
def test_embedded_json_says_the_same_and_begins_no_markup(text: str) -> None:
    value = {text: [text, HOSTILE]}
    assert json.loads(embedded(value)) == value
    assert not set("<>&\u2028\u2029") & set(embedded(value))


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    records = _records(_hostile(), good_tree())
    write_html(records, tmp_path / "p.html", title=HOSTILE)
    page = Page((tmp_path / "p.html").read_text())
    assert list(page.scripts) == ["r0", "r1", "index", "code"]
    assert json.loads(page.scripts["r0"]) == records[0]
    assert [tag for tag, _ in page.elements if tag == "img"] == []


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    write_html(_records(good_tree()), tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    page = Page(text)
    assert not [a for _, a in page.elements if set(a) & {"src", "href", "action", "onclick"}]
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy is not None and "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://", text)
    assert "innerHTML" not in text


def test_the_list_knows_what_it_filters_by() -> None:
    good, flat = (index_row(r) for r in _records(good_tree(), flat_tree()))
    assert (good["plans"], good["best"], good["planner_unparsed"]) == (2, 2.375, 1)
    assert good["executor"] == pytest.approx(9.5 / 4)
    assert (good["planner_flat"], good["executor_flat"], good["executor_groups"]) == (0, 1, 2)
    assert good["tools"] == ["book", "find"]
    assert "book a hotel in rome, number 1." in good["text"]
    assert (flat["plans"], flat["mean"], flat["best"], flat["planner_best"]) == (0, None, 2.5, None)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    records, out = _records(*(good_tree(n) for n in range(5))), tmp_path / "p.html"
    size = len(embedded(records[0]))
    assert write_html(records, out) == f"{out}: 5 trees"
    said = write_html(records, out, matching=9)
    assert said.endswith("5 trees. Left out: 4 more that match (--limit).")
    assert write_html(records, out, limit=3).endswith(
        "3 trees. Left out: 2 more that match (--limit)."
    )
    said = write_html(records, out, max_bytes=3 * size)
    assert said.endswith("3 trees. Left out: 2 more that match, the page would be too large.")
    assert said.rpartition(". ")[2] in out.read_text()
    assert write_html(records, out, max_bytes=1).startswith(f"{out}: 1 tree")  # never an empty page


def test_inspect_writes_the_page(tmp_path: Path) -> None:
    TraceWriter(tmp_path).write(0, [good_tree(1), flat_tree(2)], SETTINGS)
    out = tmp_path / "p.html"
    done = CliRunner().invoke(app, ["inspect", str(tmp_path), "--html", str(out), "--limit", "1"])
    assert done.exit_code == 0
    assert "1 tree. Left out: 1 more that matches (--limit)." in done.stderr
    assert json.loads(Page(out.read_text()).scripts["index"])[0]["task"] == "t1"


# --- in a browser --------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page")


def _opened(page: Path, fragment: str = "", script: str = "") -> str:
    """The page's DOM after its script ran; ``script`` is run in it afterwards."""
    if script:  # allowed by removing the policy, which other tests look at
        text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
        page = page.with_name("driven.html")
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        "--virtual-time-budget=5000", f"--user-data-dir={page.parent / 'chromium'}",
        f"{page.as_uri()}{fragment}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


@needs_browser
def test_a_browser_shows_texts_as_texts_and_opens_what_the_address_names(tmp_path: Path) -> None:
    write_html(_records(good_tree(), _hostile()), tmp_path / "p.html")
    dom = _opened(tmp_path / "p.html", "#1")
    assert "<title>CAHL rollout traces</title>" in dom  # the hostile script did not run
    body = dom[dom.index('id="detail"') : dom.index("<footer>")]
    assert "&lt;/script&gt;&lt;script&gt;document.title='owned'" in body
    assert "<img" not in body
    assert '<tr aria-selected="true">' in dom
    assert "2 trees" in dom


@needs_browser
def test_a_browser_filters_sorts_and_says_when_nothing_is_left(tmp_path: Path) -> None:
    write_html(_records(*(good_tree(n) for n in range(450)), flat_tree(7)), tmp_path / "p.html")
    script = """
    const $ = (id) => document.getElementById(id), out = [];
    const say = () => out.push($('counts').textContent + ' | ' + $('rows').children.length);
    const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event('input', {bubbles: true})); };
    const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', {key}));
    say();
    set('search', 'number 44'); say();
    set('search', 'nowhere'); say(); out.push($('empty').textContent);
    press('Escape'); set('min', '2.4'); say();
    press('Escape'); set('role', 'executor'); set('min', '2.4'); say();
    press('Escape'); $('unparsed').checked = true; set('step-from', '448'); say();
    press('Escape'); set('tool', 'find'); set('step-to', '2'); press('j'); press('j'); press('j');
    out.push([...$('rows').children].map((r) => r.getAttribute('aria-selected')).join());
    $('head').querySelectorAll('button')[3].click(); out.push($('rows').children[0].textContent);
    press('Escape'); press('o');
    out.push([...$('detail').querySelectorAll('details')].every((d) => d.open) + ' ' + $('detail').querySelectorAll('details').length);
    document.title = out.join('\\n');
    """  # noqa: E501
    dom = _opened(tmp_path / "p.html", script=script)
    said = dom[dom.index("<title>") + 7 : dom.index("</title>")].split("\n")
    assert said[:3] == ["451 trees | 200", "14 of 451 trees | 14", "0 of 451 trees | 0"]
    assert said[3] == "No tree matches: the filters hide all 451."
    assert said[4:7] == [
        "1 of 451 trees | 1",
        "451 trees | 451",  # the chosen tree, the last one, stays chosen and in sight
        "2 of 451 trees | 2",
    ]
    assert said[7] == "false,false,true"
    assert said[8].startswith("0t0")
    assert said[9] == "true 6"


@needs_browser
def test_an_empty_page_says_so(tmp_path: Path) -> None:
    write_html([], tmp_path / "p.html")
    assert "This page was written from no trees" in _opened(tmp_path / "p.html")
