"""Fetching over a real HTTP server that misbehaves, from mirrors, and from the user's own files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.datasets.fetchers import Context, fetch_into, git
from cahl_core.datasets.fetchers import download as downloads
from cahl_core.datasets.fetchers.download import download
from cahl_core.datasets.sources import ORIGIN_FILE, Source, load_sources, read_origin
from cahl_core.errors import ChecksumError, SourceError

ROOT = Path(__file__).parents[2]
MIRROR = ROOT.parent / "shared" / "data"
CONTENT = bytes(range(256)) * 40
BUSY = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Files by path, what goes wrong in the next requests for each, and the requests that came."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.faults: dict[str, list[Any]] = {}
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def do_HEAD(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        self.files.clear()
        self.headers.clear()
        self.faults.clear()
        self.requests.clear()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path, handler.headers.get("Range")
        self.requests.append((path, wanted))
        faults = self.faults.get(path)
        fault = faults.pop(0) if faults else None
        if isinstance(fault, HTTPStatus):
            handler.send_error(fault)
            return
        if path not in self.files:
            path = path.partition("?")[0]
        if path not in self.files:
            handler.send_error(404)
            return
        content = b"<html>sorry</html>" if fault == "wrong bytes" else self.files[path]
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and fault != "ignores range" else 0
        if start >= len(content) > 0 and wanted:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            start = 0 if fault == "other range" else start
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:]
        for name, value in self.headers.get(path, {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        handler.wfile.write(body[:fault] if isinstance(fault, int) else body)  # a number: cut there


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    running.reset()
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.0)
    for name, place in (("RAW", "/raw"), ("API", "/api"), ("MEDIA", "/media")):
        monkeypatch.setattr(git, name, running.url + place)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return running


def total(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def get(server: Server, target: Path, retries: int = 3, expected: str | None = None) -> Path:
    return download(f"{server.url}/f", target, name="demo", retries=retries, expected=expected)


def test_a_cut_download_goes_on_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.files["/f"], server.faults["/f"] = CONTENT, [4000]  # cut there
    assert get(server, tmp_path / "f", expected=total(CONTENT)).read_bytes() == CONTENT
    assert server.requests == [("/f", None), ("/f", "bytes=4000-")]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_the_next_run_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.files["/f"], server.faults["/f"] = CONTENT, [3000, 500]
    with pytest.raises(SourceError, match="2 attempts, 3500 bytes so far"):
        get(server, tmp_path / "f", retries=1)
    assert [p.name for p in tmp_path.iterdir()] == ["f.partial"]
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.requests[-1] == ("/f", "bytes=3500-")


@pytest.mark.parametrize("fault", ["ignores range", "other range"])
def test_a_server_that_cannot_go_on_starts_again(
    server: Server, tmp_path: Path, fault: str
) -> None:
    server.files["/f"], server.faults["/f"] = CONTENT, [4000, fault]
    assert get(server, tmp_path / "f").read_bytes() == CONTENT


@given(cuts=st.lists(st.one_of(st.integers(0, 399), st.sampled_from([*BUSY, "ignores range"])),
                     max_size=6))  # fmt: skip
def test_any_sequence_of_faults_gives_the_same_bytes(running: Server, cuts: list[Any]) -> None:
    import tempfile

    content = CONTENT[:400]
    running.reset()
    running.files["/f"], running.faults["/f"] = content, list(cuts)
    previous, downloads.BACKOFF_SECONDS = downloads.BACKOFF_SECONDS, 0.0
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = get(running, Path(folder) / "f", retries=len(cuts), expected=total(content))
            assert found.read_bytes() == content
    finally:
        downloads.BACKOFF_SECONDS = previous


def test_all_bytes_of_an_earlier_run_are_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = CONTENT
    (tmp_path / "f.partial").write_bytes(CONTENT)
    assert get(server, tmp_path / "f", expected=total(CONTENT)).read_bytes() == CONTENT
    assert server.requests == [("/f", f"bytes={len(CONTENT)}-")]


def test_bytes_of_another_file_are_thrown_away(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = CONTENT
    (tmp_path / "f.partial").write_bytes(CONTENT * 2)
    assert get(server, tmp_path / "f").read_bytes() == CONTENT


def test_a_file_with_another_sum_is_set_aside_with_both_sums(
    server: Server, tmp_path: Path
) -> None:
    server.files["/f"], server.faults["/f"] = CONTENT, ["wrong bytes"]
    with pytest.raises(ChecksumError) as error:
        get(server, tmp_path / "f", expected=total(CONTENT))
    assert total(CONTENT) in str(error.value)
    assert total(b"<html>sorry</html>") in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["f.rejected"]
    assert get(server, tmp_path / "f", expected=total(CONTENT)).read_bytes() == CONTENT


def test_a_missing_file_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="answers 404"):
        get(server, tmp_path / "f")
    assert len(server.requests) == 1


@pytest.mark.parametrize(("retries", "enough"), [(2, True), (1, False)])
def test_a_busy_server_is_asked_again_as_often_as_set(
    server: Server, tmp_path: Path, retries: int, enough: bool
) -> None:
    server.files["/f"], server.faults["/f"] = CONTENT, list(BUSY)
    if enough:
        assert get(server, tmp_path / "f", retries).read_bytes() == CONTENT
    else:
        with pytest.raises(SourceError, match="429"):
            get(server, tmp_path / "f", retries)
    assert len(server.requests) == retries + 1


def test_waiting_grows_between_attempts_and_has_a_bound(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 1.0)
    monkeypatch.setattr(downloads, "BACKOFF_MOST", 5.0)
    monkeypatch.setattr("time.sleep", waited.append)
    server.files["/f"], server.faults["/f"] = CONTENT, [BUSY[0]] * 4
    get(server, tmp_path / "f", retries=4)
    assert waited == [1, 2, 4, 5]


def test_a_large_download_shows_how_far_it_is(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytes(5 * downloads.MIB)
    server.files["/f"], server.faults["/f"] = content, [3 * downloads.MIB + 5]
    assert get(server, tmp_path / "f", expected=total(content)).stat().st_size == len(content)
    assert "demo (MiB): 5/5" in capsys.readouterr().err
    resumed = re.findall(r"\d+", server.requests[-1][1] or "")
    assert int(resumed[0]) > 3 * downloads.MIB - downloads.BLOCK


def test_compressed_bytes_are_not_taken_for_plain_ones(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = gzip.compress(CONTENT)
    server.headers["/f"] = {"Content-Encoding": "gzip"}
    with pytest.raises(SourceError, match="plain bytes were asked for"):
        get(server, tmp_path / "f")


def repository(**fields: Any) -> Source:
    entry = {
        "name": "demo", "kind": "data", "description": "d", "licence": "MIT", "fetcher": "git",
        "format": "nestools", "repo": "o/r", "revision": COMMIT, "folder": "data",
        "files": ["a.jsonl", "deep/b.json"],
    }  # fmt: skip
    return Source.model_validate(entry | fields)


def context(root: Path, *mirrors: Path, lines: list[str] | None = None) -> Context:
    log = print if lines is None else lines.append
    return Context(root, tuple(mirrors), 1, log)


def put(server: Server, name: str, content: bytes = CONTENT) -> None:
    server.files[f"/raw/o/r/{COMMIT}/data/{name}"] = content


def fetched(source: Source, where: Context, target: Path) -> dict[str, bytes]:
    target.mkdir(parents=True)
    fetch_into(source, target, where)
    return {
        str(p.relative_to(target)): p.read_bytes()
        for p in sorted(target.rglob("*"))
        if p.is_file() and p.name != ORIGIN_FILE
    }


def test_files_of_a_repository_come_with_their_sums(server: Server, tmp_path: Path) -> None:
    put(server, "a.jsonl")
    put(server, "deep/b.json", b"[]")
    files = fetched(repository(), context(tmp_path), tmp_path / "out")
    assert files == {"a.jsonl": CONTENT, "deep/b.json": b"[]"}
    origin = read_origin(tmp_path / "out")
    assert (origin.source, origin.form, origin.format) == ("demo", "upstream", "nestools")
    assert origin.revision == COMMIT
    assert origin.files == {"a.jsonl": total(CONTENT), "deep/b.json": total(b"[]")}
    text = (tmp_path / "out" / ORIGIN_FILE).read_text()
    assert str(tmp_path) not in text


def test_nothing_is_downloaded_twice_and_the_bytes_are_the_same(
    server: Server, tmp_path: Path
) -> None:
    put(server, "a.jsonl")
    put(server, "deep/b.json", b"[]")
    fetched(repository(), context(tmp_path), tmp_path / "one")
    server.requests.clear()
    fetched(repository(), context(tmp_path), tmp_path / "two")
    assert server.requests == []
    one, two = ((tmp_path / n / ORIGIN_FILE).read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_pattern_takes_what_the_repository_lists(server: Server, tmp_path: Path) -> None:
    listing = [{"name": n, "type": "file"} for n in ("x.json", "y.json", "z.py")]
    listing.append({"name": "w.json", "type": "dir"})
    server.files[f"/api/o/r/contents/data/sub?ref={COMMIT}"] = json.dumps(listing).encode()
    put(server, "sub/x.json", b"1")
    put(server, "sub/y.json", b"2")
    source = repository(files=["sub/*.json"])
    files = fetched(source, context(tmp_path), tmp_path / "out")
    assert files == {"sub/x.json": b"1", "sub/y.json": b"2"}


def test_a_git_lfs_pointer_is_followed_and_its_sum_checked(server: Server, tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{total(CONTENT)}\nsize 9\n"
    put(server, "a.jsonl", pointer.encode())
    media = f"/media/o/r/{COMMIT}/data/a.jsonl"
    server.files[media], server.faults[media] = CONTENT, ["wrong bytes"]
    source = repository(files=["a.jsonl"])
    with pytest.raises(ChecksumError):
        fetched(source, context(tmp_path), tmp_path / "bad")
    assert fetched(source, context(tmp_path), tmp_path / "out") == {"a.jsonl": CONTENT}


def test_a_wrong_file_of_a_repository_is_set_aside(server: Server, tmp_path: Path) -> None:
    put(server, "a.jsonl", b"other")
    source = repository(files={"a.jsonl": total(CONTENT)})
    with pytest.raises(ChecksumError, match=total(b"other")):
        fetched(source, context(tmp_path), tmp_path / "out")
    cache = tmp_path / ".cahl/downloads/git/o/r" / COMMIT / "data"
    assert [p.name for p in cache.iterdir()] == ["a.jsonl.rejected"]


def test_offline_the_error_says_what_to_put_where(server: Server, tmp_path: Path) -> None:
    server.faults[f"/raw/o/r/{COMMIT}/data/a.jsonl"] = [BUSY[0]] * 9
    source = repository(records={"folder": "mine", "files": {"train.jsonl": "0" * 64}})
    with pytest.raises(SourceError) as error:
        fetched(source, context(tmp_path), tmp_path / "out")
    for part in ("'demo'", "o/r", COMMIT, "503", "git clone", "CAHL_MIRROR=DIR", "DIR/demo/<file>",
                 "DIR/mine/train.jsonl"):  # fmt: skip
        assert part in str(error.value)


def test_a_mirrors_upstream_files_then_its_records_then_the_network(
    server: Server, tmp_path: Path
) -> None:
    put(server, "a.jsonl", b"network")
    record = b'{"id": "r"}\n'
    source = repository(
        files=["a.jsonl"], records={"folder": "mine", "files": {"train.jsonl": total(record)}}
    )
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    where = context(tmp_path, mirror)
    assert fetched(source, where, tmp_path / "1") == {"a.jsonl": b"network"}
    (mirror / "mine").mkdir()
    (mirror / "mine" / "train.jsonl").write_bytes(record)
    (mirror / "mine" / "other.jsonl").write_bytes(b"of another source")
    assert fetched(source, where, tmp_path / "2") == {"train.jsonl": record}
    origin = read_origin(tmp_path / "2")
    assert (origin.form, origin.format) == ("records", "tool-tasks")
    (mirror / "demo").mkdir()
    (mirror / "demo" / "a.jsonl").write_bytes(b"mirror")
    assert fetched(source, where, tmp_path / "3") == {"a.jsonl": b"mirror"}
    assert read_origin(tmp_path / "3").form == "upstream"


def test_wrong_records_in_a_mirror_are_an_error_and_not_replaced(
    server: Server, tmp_path: Path
) -> None:
    put(server, "a.jsonl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_bytes(b"changed")
    source = repository(records={"folder": "mine", "files": {"train.jsonl": "0" * 64}})
    with pytest.raises(ChecksumError, match=total(b"changed")):
        fetched(source, context(tmp_path, tmp_path), tmp_path / "out")
    assert server.requests == []


def test_half_a_mirror_is_not_used_and_said(server: Server, tmp_path: Path) -> None:
    put(server, "a.jsonl", b"network")
    put(server, "deep/b.json", b"network")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "a.jsonl").write_bytes(b"mirror")
    lines: list[str] = []
    files = fetched(repository(), context(tmp_path, tmp_path, lines=lines), tmp_path / "out")
    assert set(files.values()) == {b"network"}
    assert any("lacks deep/b.json" in line for line in lines)


def test_the_top_of_a_mirror_counts_only_for_files_with_a_sum(
    server: Server, tmp_path: Path
) -> None:
    put(server, "a.jsonl", b"network")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "a.jsonl").write_bytes(b"mirror")
    where = context(tmp_path, mirror)
    assert fetched(repository(files=["a.jsonl"]), where, tmp_path / "1") == {"a.jsonl": b"network"}
    known = repository(files={"a.jsonl": total(b"mirror")})
    assert fetched(known, where, tmp_path / "2") == {"a.jsonl": b"mirror"}


PROGRAM = """
import json, sys
from pathlib import Path
from cahl_core.datasets.fetchers import Context, fetch_into
from cahl_core.datasets.sources import Source
from cahl_core.errors import SourceError
root = Path(sys.argv[1])
(root / "out").mkdir()
try:
    source = Source.model_validate(json.loads(sys.argv[2]))
    print(json.dumps(fetch_into(source, root / "out", Context(root, (), 1, print)).revision))
except SourceError as error:
    print(f"{type(error).__name__}: {error}")
"""


def from_hub(server: Server, root: Path, **fields: Any) -> str:
    """What a process with the real hub client says; the client takes its address when imported."""
    entry = {
        "name": "demo", "kind": "data", "description": "d", "licence": "MIT",
        "fetcher": "huggingface", "format": "xlam", "repo": "o/r", "revision": "main",
        "files": ["data.json"],
    } | fields  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(root), json.dumps(entry)]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0",
                   "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def put_on_hub(server: Server) -> None:
    info = {"id": "o/r", "sha": COMMIT, "siblings": [], "private": False, "gated": False}
    tree = [
        {"type": "file", "oid": "a" * 40, "size": len(CONTENT), "path": name}
        for name in ("data.json", "loader.py")
    ]
    server.files["/api/datasets/o/r/revision/main"] = json.dumps(info).encode()
    server.files[f"/api/datasets/o/r/tree/{COMMIT}"] = json.dumps(tree).encode()
    path = f"/datasets/o/r/resolve/{COMMIT}/data.json"
    server.files[path] = CONTENT
    server.headers[path] = {"ETag": f'"{"e" * 40}"', "X-Repo-Commit": COMMIT}


def test_a_data_set_of_the_hub_comes_with_the_commit_that_was_found(
    server: Server, tmp_path: Path
) -> None:
    put_on_hub(server)
    said = from_hub(server, tmp_path)
    assert "can move; pin a commit" in said
    assert f'"{COMMIT}"' in said
    origin = read_origin(tmp_path / "out")
    assert origin.revision == COMMIT
    assert origin.files == {"data.json": total(CONTENT)}  # and no loader.py


def test_a_changed_file_of_the_hub_is_a_checksum_error(server: Server, tmp_path: Path) -> None:
    put_on_hub(server)
    said = from_hub(server, tmp_path, files={"data.json": "0" * 64})
    assert "ChecksumError" in said
    assert total(CONTENT) in said
    (tmp_path / "out").rmdir()
    assert f'"{COMMIT}"' in from_hub(server, tmp_path, files={"data.json": total(CONTENT)})
    assert list(tmp_path.rglob("*.rejected"))


def test_a_data_set_that_cannot_be_had_says_how_to_get_it(server: Server, tmp_path: Path) -> None:
    said = from_hub(server, tmp_path, gated=True)
    assert "SourceError" in said
    for part in ("accept the terms", "HF_TOKEN", "hf download --repo-type dataset o/r data.json",
                 "DIR/demo"):  # fmt: skip
        assert part in said


def own(path: Path, **fields: Any) -> Source:
    entry = {"name": "mine", "kind": "data", "description": "d", "licence": "MIT",
             "fetcher": "path", "format": "openai-messages", "path": str(path)}  # fmt: skip
    return Source.model_validate(entry | fields)


def test_ones_own_file_folder_and_archive(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.jsonl").write_bytes(b"{}\n")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(folder / "deep" / "a.jsonl", "deep/a.jsonl")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(folder / "deep", "deep")
    for number, name in enumerate(("folder", "x.zip", "x.tar.gz")):
        files = fetched(own(tmp_path / name), context(tmp_path), tmp_path / str(number))
        assert files == {"deep/a.jsonl": b"{}\n"}
    single = fetched(own(folder / "deep" / "a.jsonl"), context(tmp_path), tmp_path / "single")
    assert single == {"a.jsonl": b"{}\n"}


def test_ones_own_changed_file_is_a_checksum_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    with pytest.raises(ChecksumError, match="declared sha256 0000"):
        fetched(own(tmp_path / "a.jsonl", sha256="0" * 64), context(tmp_path), tmp_path / "out")


def test_a_link_in_ones_own_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="symbolic link"):
        fetched(own(tmp_path / "folder"), context(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.tar.gz"])
def test_a_truncated_gzip_is_refused_whatever_it_holds(tmp_path: Path, name: str) -> None:
    lines = b'{"id": "x"}\n' * 5000
    (tmp_path / "train.jsonl").write_bytes(lines)
    if name.endswith("tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            archive.add(tmp_path / "train.jsonl", "train.jsonl")
    else:
        (tmp_path / name).write_bytes(gzip.compress(lines))
    whole = (tmp_path / name).read_bytes()
    assert fetched(own(tmp_path / name), context(tmp_path), tmp_path / "whole")
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(SourceError, match="damaged or ends early"):
        fetched(own(tmp_path / name), context(tmp_path), tmp_path / "cut")


def test_an_empty_folder_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="has no file"):
        fetched(own(tmp_path / "empty"), context(tmp_path), tmp_path / "out")


needs_mirror = pytest.mark.skipif(
    not MIRROR.is_dir(), reason="../shared/data is not here: the mirror of real records"
)
MIRRORED = [name for name, source in load_sources(ROOT).items() if source.records]


@needs_mirror
@pytest.mark.parametrize("name", MIRRORED)
def test_every_mirrored_source_comes_from_the_real_mirror(tmp_path: Path, name: str) -> None:
    source = load_sources(ROOT)[name]
    assert source.records is not None
    files = fetched(source, context(tmp_path, MIRROR), tmp_path / "out")
    origin = read_origin(tmp_path / "out")
    assert origin.files == {n: total(content) for n, content in files.items()}
    if source.records.files:
        assert origin.form == "records"
        assert origin.files == source.records.files
    else:
        assert (origin.form, len(files)) == ("upstream", 284)
    assert not os.access(tmp_path / ".cahl", os.F_OK)


@needs_mirror
def test_every_folder_of_the_mirror_is_declared() -> None:
    folders = {p.name for p in MIRROR.iterdir() if p.is_dir()}
    records = [s.records.folder for s in load_sources(ROOT).values() if s.records]
    assert folders == {Path(folder).parts[0] for folder in records}


@needs_mirror
def test_every_record_file_of_the_mirror_is_declared() -> None:
    declared = {
        f"{s.records.folder}/{name}"
        for s in load_sources(ROOT).values()
        if s.records
        for name in s.records.files
    }
    there = {str(p.relative_to(MIRROR)) for p in MIRROR.glob("*/*.jsonl")}
    assert there - declared == {"api_bank/level-3-tasks.jsonl"}  # a view of level-3.jsonl
    assert declared <= there
