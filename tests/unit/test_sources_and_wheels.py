"""Fetching: mirrors, checksums, offline errors, safe unzipping. No network is used."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from cahl_core.config import Settings
from cahl_core.datasets import fetch, wheels
from cahl_core.datasets.adapters import READERS
from cahl_core.datasets.sources import (
    COMMIT,
    Origin,
    Source,
    load_sources,
    pick,
    read_origin,
    require_use,
)
from cahl_core.datasets.weights import check_model, copy_model
from cahl_core.errors import (
    ChecksumError,
    ConfigError,
    DataError,
    LicenceError,
    ModelError,
    SourceError,
)
from cahl_core.stage import StageRun

REPOSITORY = Path(__file__).parents[2]
WHEEL = "demo-1.0-py3-none-any.whl"


def make_wheel(path: Path, members: dict[str, str]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source(sha256: str, members: dict[str, str] | None = None) -> Source:
    return Source(
        name="demo", kind="data", description="d", licence="MIT", fetcher="pypi", format="nestful",
        package="demo==1.0", file=WHEEL, sha256=sha256, members=members or {},
    )  # fmt: skip


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip fails as on a machine without network, in a moment."""
    script = "import sys; print('Connection refused', file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr(wheels, "_installer", lambda: [sys.executable, "-c", script])


SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*( AND [A-Za-z0-9][A-Za-z0-9.-]*)*")


def test_the_shipped_sources_are_complete() -> None:
    sources = load_sources(REPOSITORY)
    assert {"smollm2-135m-instruct", "complexfuncbench", "nestful", "bfcl-v3"} <= set(sources)
    for entry in sources.values():
        assert SPDX.fullmatch(entry.licence), entry.name
        assert entry.description and entry.citation, entry.name
        sums = [entry.sha256, *entry.members.values(), *entry.files.values()]
        sums += entry.records.files.values() if entry.records else ()
        assert all(re.fullmatch("[0-9a-f]{64}", total) for total in sums if total), entry.name
        # what a fetch gives is fixed: by a sum of the wheel, or by a commit
        pinned = entry.sha256 if entry.fetcher == "pypi" else COMMIT.fullmatch(entry.revision or "")
        assert pinned, entry.name


def test_every_data_set_has_a_reader() -> None:
    for entry in load_sources(REPOSITORY).values():
        assert entry.kind != "data" or entry.format in READERS, entry.name


def test_the_licences_that_forbid_commercial_use_say_so() -> None:
    for entry in load_sources(REPOSITORY).values():
        assert ("commercial" in entry.permits) == ("NC" not in entry.licence), entry.name
        assert entry.share_alike == ("-SA-" in entry.licence), entry.name


def test_test_sets_are_marked() -> None:
    tests = {name for name, entry in load_sources(REPOSITORY).items() if entry.test_only}
    assert tests == {"api_bank", "api_bank_raw", "bamboogle", "bfcl-v3", "bfcl-v4", "open_qa_eval",
                     "rlla_test"}  # fmt: skip


def test_a_licence_that_forbids_the_use_stops_with_one_sentence() -> None:
    entry = load_sources(REPOSITORY)["apigen_mt"]
    require_use(entry, "research", "train")
    with pytest.raises(LicenceError) as error:
        require_use(entry, "commercial", "train")
    said = error.value.what
    assert "\n" not in said
    for part in ("'apigen_mt'", "CC-BY-NC-4.0", "research use only", "training for commercial use"):
        assert part in said
    assert "fetch.use" in error.value.hint


def test_a_test_set_is_refused_for_training_only() -> None:
    entry = load_sources(REPOSITORY)["api_bank"]
    require_use(entry, "commercial", "evaluate")
    with pytest.raises(LicenceError, match=r"'api_bank'.*test set") as error:
        require_use(entry, "research", "train")
    assert "prepare.sources" in error.value.hint


def test_fetch_asks_for_the_licence_before_it_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch_into", lambda *_: pytest.fail("fetched"))
    (tmp_path / "data").mkdir()
    shutil.copy(REPOSITORY / "data" / "sources.yaml", tmp_path / "data")
    names = ["seal_tools", "apigen_mt"]
    settings = Settings.model_validate({"fetch": {"sources": names, "use": "commercial"}})
    with pytest.raises(LicenceError, match="apigen_mt"):
        fetch.run(StageRun("fetch", tmp_path, settings))


def test_numbers_in_file_names_count_up() -> None:
    files = list(load_sources(REPOSITORY)["sgd"].files)
    assert files[:3] == ["schema.json", "dialogues_001.json", "dialogues_002.json"]
    assert (files[-1], len(files)) == ("dialogues_127.json", 128)


GIT = "kind: data, description: d, licence: MIT, fetcher: git, format: qa, repo: o/r"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f"{GIT}, revision: main, files: [a]", "40 hex digits"),
        (f"{GIT}, revision: {'0a' * 20}", "needs files"),
        (f"{GIT}, revision: {'0a' * 20}, files: [../a]", "must stay inside"),
        (f"{GIT}, revision: {'0a' * 20}, files: [/a]", "must stay inside"),
        (f"{GIT}, revision: {'0a' * 20}, files: [a], folder: ../b", "must stay inside"),
        (f"{GIT}, revision: {'0a' * 20}, files: [a], permits: []", "permits"),
        (f"{GIT}, revision: {'0a' * 20}, files: [a], permits: [fun]", "permits"),
        (f"{GIT}, revision: {'0a' * 20}, files: [a], formt: qa", "formt"),
    ],
)
def test_malformed_entries_are_named(tmp_path: Path, entry: str, said: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sources.yaml").write_text(f"a: {{{entry}}}\n")
    with pytest.raises(ConfigError, match=said) as error:
        load_sources(tmp_path)
    assert "entry 'a'" in str(error.value)


def test_a_name_that_leaves_data_raw_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text = f"../a: {{{GIT}, revision: {'0a' * 20}, files: [a]}}\n"
    (tmp_path / "data" / "sources.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"entry '\.\./a': name"):
        load_sources(tmp_path)


def test_a_folder_of_an_older_fetch_is_upstream_in_the_declared_format(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "raw" / "nestful"
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "data" / "sources.yaml", tmp_path / "data")
    origin = read_origin(folder)
    assert (origin.source, origin.form, origin.format) == ("nestful", "upstream", "nestful")


def test_an_origin_is_read_as_it_was_written(tmp_path: Path) -> None:
    origin = Origin(
        "a", "records", "tool-tasks", "MIT", 'Öz: "x" # y', "1.0", {"b": "c: d", "a": "x"}
    )
    assert origin.to_yaml().index("a: x") < origin.to_yaml().index("b: ")
    (tmp_path / "SOURCE.yaml").write_text(origin.to_yaml(), encoding="utf-8")
    assert read_origin(tmp_path) == origin


@pytest.mark.parametrize("text", ["[]", "form: x", "a: [", "source: a\nform: other\nfiles: {}", ""])
def test_a_damaged_origin_says_to_fetch_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "SOURCE.yaml").write_text(text)
    with pytest.raises(DataError, match="cahl data fetch"):
        read_origin(tmp_path)


def test_an_unknown_source_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nestful'"):
        pick(load_sources(REPOSITORY), "nestfull", ("data",))


def test_an_entry_without_what_its_fetcher_needs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    entry = "a: {kind: data, description: d, licence: MIT, fetcher: pypi, format: nestful}\n"
    (tmp_path / "data" / "sources.yaml").write_text(entry)
    with pytest.raises(ConfigError, match=r"entry 'a'.*package, file, sha256"):
        load_sources(tmp_path)


@pytest.mark.parametrize("folder", [".", "demo"])
def test_the_mirror_is_used_in_both_layouts(tmp_path: Path, folder: str, offline: None) -> None:
    (tmp_path / "mirror" / folder).mkdir(parents=True)
    path = tmp_path / "mirror" / folder / WHEEL
    digest = make_wheel(path, {"a.txt": "1"})
    lines: list[str] = []
    mirrors = [tmp_path / "mirror"]
    found = wheels.obtain_wheel(source(digest), tmp_path / "down", mirrors, 0, lines.append)
    assert found.samefile(path)
    assert "mirror" in lines[0]


def test_a_wrong_sum_in_the_mirror_names_both_sums_and_the_file(tmp_path: Path) -> None:
    digest = make_wheel(tmp_path / WHEEL, {"a.txt": "1"})
    with pytest.raises(ChecksumError) as error:
        wheels.obtain_wheel(source("0" * 64), tmp_path / "down", [tmp_path], 0, print)
    assert digest in str(error.value)
    assert "0" * 64 in str(error.value)
    assert str(tmp_path / WHEEL) in str(error.value)


def test_a_damaged_cached_file_is_set_aside_and_not_used(tmp_path: Path, offline: None) -> None:
    cached = tmp_path / WHEEL
    cached.write_bytes(b"half a download")
    with pytest.raises(SourceError):
        wheels.obtain_wheel(source("0" * 64), tmp_path, [], 0, print)
    assert not cached.exists()
    assert (tmp_path / f"{WHEEL}.rejected").read_bytes() == b"half a download"


def test_offline_without_mirror_says_what_from_where_and_how(tmp_path: Path, offline: None) -> None:
    with pytest.raises(SourceError) as error:
        wheels.obtain_wheel(source("0" * 64), tmp_path / "down", [], 0, print)
    for part in (
        "'demo'",
        "demo==1.0",
        "PyPI",
        "Connection refused",
        "CAHL_MIRROR",
        f"DIR/{WHEEL}",
    ):
        assert part in str(error.value)
    assert list((tmp_path / "down").iterdir()) == []


def test_a_download_with_a_wrong_sum_is_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / WHEEL, {"a.txt": "1"})
    copy = (
        "import sys, shutil, pathlib; d = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1]); "
        f"d.mkdir(); shutil.copy({str(tmp_path / WHEEL)!r}, d)"
    )
    monkeypatch.setattr(wheels, "_installer", lambda: [sys.executable, "-c", copy])
    with pytest.raises(ChecksumError):
        wheels.obtain_wheel(source("0" * 64), tmp_path / "down", [], 0, print)
    assert [p.name for p in (tmp_path / "down").iterdir()] == [f"{WHEEL}.rejected"]


def test_a_good_download_is_cached_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = make_wheel(tmp_path / WHEEL, {"a.txt": "1"})
    copy = (
        "import sys, shutil, pathlib; d = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1]); "
        f"d.mkdir(); shutil.copy({str(tmp_path / WHEEL)!r}, d)"
    )
    monkeypatch.setattr(wheels, "_installer", lambda: [sys.executable, "-c", copy])
    first = wheels.obtain_wheel(source(digest), tmp_path / "down", [], 0, print)
    monkeypatch.setattr(wheels, "_installer", lambda: pytest.fail("downloaded twice"))
    assert wheels.obtain_wheel(source(digest), tmp_path / "down", [], 0, print) == first


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "a\\..\\b"])
def test_members_that_leave_the_target_are_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / WHEEL
    digest = make_wheel(wheel, {"good.txt": "1", name: "2"})
    with pytest.raises(SourceError, match="outside the target"):
        wheels.unpack(wheel, source(digest), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match="is a link"):
        wheels.unpack(wheel, source("0" * 64), tmp_path / "out")


def test_declared_members_are_checked_and_put_flat(tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    digest = make_wheel(wheel, {"x/y/a.txt": "1", "b.txt": "2"})
    good = hashlib.sha256(b"1").hexdigest()
    wheels.unpack(wheel, source(digest, {"x/y/a.txt": good}), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.txt"]
    with pytest.raises(ChecksumError):
        wheels.unpack(wheel, source(digest, {"x/y/a.txt": "0" * 64}), tmp_path / "bad")
    with pytest.raises(SourceError, match="no member 'gone'"):
        wheels.unpack(wheel, source(digest, {"gone": good}), tmp_path / "bad")


def test_a_file_that_is_not_a_wheel_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_text("<html>503</html>")
    with pytest.raises(SourceError, match="is not a wheel"):
        wheels.unpack(tmp_path / WHEEL, source("0" * 64), tmp_path / "out")


def make_model(
    folder: Path, config: str = '{"_name_or_path": "/home/me", "model_type": "x"}'
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    for name in ("model.safetensors", "tokenizer.json", "pytorch_model.bin", "modeling.py"):
        (folder / name).write_text("{}")
    return folder


def test_a_local_backbone_is_copied_without_code_pickles_or_paths(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    copy_model(make_model(tmp_path / "model"), tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "/home/me" not in (tmp_path / "out" / "config.json").read_text()


def test_backbones_that_need_code_or_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="own Python code"):
        check_model(make_model(tmp_path / "code", '{"auto_map": {"AutoModel": "m.M"}}'))
    pickled = make_model(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pickled.*pytorch_model\.bin"):
        check_model(pickled)


def test_pip_resumes_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, version in {"pip 25.1.1 from x": (25, 1), "pip 23.2 from": (23, 2), "": (0,)}.items():
        script = [sys.executable, "-c", f"print({said!r})"]
        assert wheels._version(script) == version


def test_fetch_leaves_the_old_data_in_place_when_a_source_fails(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    make_wheel(tmp_path / "mirror" / WHEEL, {"a.txt": "1"})
    (tmp_path / "data" / "raw" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "demo" / "old").write_text("kept")
    entry = (
        "demo: {kind: data, description: d, licence: MIT, fetcher: pypi, format: nestful, "
        f'package: demo==1.0, file: {WHEEL}, sha256: "{"0" * 64}"}}\n'
    )
    (tmp_path / "data" / "sources.yaml").write_text(entry)
    settings = Settings.model_validate({"fetch": {"sources": ["demo"], "mirror": "mirror"}})
    with pytest.raises(ChecksumError):
        fetch.run(StageRun("fetch", tmp_path, settings))
    assert [p.name for p in (tmp_path / "data" / "raw").iterdir()] == ["demo"]
    assert (tmp_path / "data" / "raw" / "demo" / "old").read_text() == "kept"


def test_a_mirror_that_does_not_exist_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAHL_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"CAHL_MIRROR.*not a directory"):
        fetch.mirrors(StageRun("fetch", tmp_path, Settings()))
