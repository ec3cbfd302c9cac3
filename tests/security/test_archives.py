"""Archives that nobody has vetted: what is refused, and that nothing is written then."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.datasets import archives
from cahl_core.datasets.archives import archive_kind, check_gzip, open_archive, unpack_archive
from cahl_core.errors import SourceError

FILES = {"a.jsonl": b'{"id": 1}\n' * 40, "deep/b.json": b"[]", "deep/c.txt": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in extra:
            archive.addfile(entry)
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    return make_zip(path, files) if path.suffix == ".zip" else make_tar(path, files)


KINDS = ["x.zip", "x.tar", "x.tar.gz"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("name", KINDS)
def test_files_come_out_as_they_went_in(tmp_path: Path, name: str) -> None:
    names = unpack_archive(make(tmp_path / name, FILES), tmp_path / "out")
    assert names == list(FILES)
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:evil", "..", "bad\x1b[31m", "a\n"],
)
def test_names_that_leave_the_target_or_rule_a_terminal_are_refused(
    tmp_path: Path, kind: str, name: str
) -> None:
    archive = make(tmp_path / kind, {"good": b"1", name: b"2"})
    with pytest.raises(SourceError, match=r"outside the target|no usable name") as error:
        unpack_archive(archive, tmp_path / "out")
    assert "\x1b" not in str(error.value)
    assert not (tmp_path / "out").exists()


@given(st.lists(st.sampled_from(["..", "a", "/", ".", "b", "\\", ""]), min_size=1, max_size=6))
def test_no_name_writes_outside_the_target(parts: list[str]) -> None:
    import tempfile

    name = "/".join(parts)
    with tempfile.TemporaryDirectory() as scratch:
        inside = Path(scratch) / "one" / "two" / "out"
        archive = make_tar(Path(scratch) / "x.tar", {name: b"1"})
        try:
            unpack_archive(archive, inside)
        except SourceError:
            assert not inside.exists()
            return
        written = [p for p in Path(scratch).rglob("*") if p.is_file() and p != archive]
        assert written
        assert all(inside in p.parents for p in written)


@pytest.mark.parametrize(
    ("first", "second"), [("Data.json", "data.json"), ("a", "a"), ("é", "e\u0301"), ("a", "./a")]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_one_file_system_takes_for_the_same_are_refused(
    tmp_path: Path, kind: str, first: str, second: str
) -> None:
    path = tmp_path / kind
    if kind == "x.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(first, "1")
            archive.writestr(second, "2")
    else:
        entry = tarfile.TarInfo(second)
        make_tar(path, {first: b"1"}, entry)
    with pytest.raises(SourceError, match="same name"):
        unpack_archive(path, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_through_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SourceError, match="lies below the file"):
        unpack_archive(make(tmp_path / kind, {"a": b"1", "A/b": b"2"}), tmp_path / "out")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_of_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("entry")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with pytest.raises(SourceError, match="is a link, a device"):
        unpack_archive(make_tar(tmp_path / "x.tar", {"a": b"1"}, entry), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_of_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        entry = zipfile.ZipInfo("entry")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(SourceError, match="is a link"):
        unpack_archive(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / kind, {"zeros": bytes(archives.RATIO_FREE_BYTES + 1)})
    assert archive.stat().st_size < 200_000
    with pytest.raises(SourceError, match="unpacks to more than 32 MiB"):
        unpack_archive(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_small_members_are_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(SourceError, match="4 members, 3 allowed"):
        unpack_archive(make_zip(tmp_path / "x.zip", dict.fromkeys("abcd", b"")), tmp_path / "out")


@pytest.mark.parametrize("size", [10, 60_000])
def test_a_member_that_misstates_its_size_is_not_written(tmp_path: Path, size: int) -> None:
    content = b"x" * 50_000
    path = make_zip(tmp_path / "x.zip", {"a": content})
    raw = path.read_bytes()
    stated = len(content).to_bytes(4, "little")
    path.write_bytes(raw.replace(stated, size.to_bytes(4, "little")))
    with pytest.raises(SourceError):
        unpack_archive(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_a_cut_archive_is_a_source_error(tmp_path: Path, kind: str, share: float) -> None:
    import random

    content = random.Random(0).randbytes(40_000)
    whole = make(tmp_path / kind, {"a": content, "b": content[::-1]}).read_bytes()
    path = tmp_path / kind
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SourceError, match=r"damaged or ends early|is not a zip, tar"):
        unpack_archive(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz"])
def test_a_tar_cut_between_two_members_is_noticed(tmp_path: Path, kind: str) -> None:
    whole = make_tar(tmp_path / "whole.tar", {"a": b"1" * 512, "b": b"2"}).read_bytes()
    cut = whole[:1024]  # the first member and nothing else
    (tmp_path / kind).write_bytes(gzip.compress(cut) if kind.endswith("gz") else cut)
    with pytest.raises(SourceError, match="end-of-archive"):
        unpack_archive(tmp_path / kind, tmp_path / "out")


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    import random

    path = make_zip(tmp_path / "x.zip", {"a": random.Random(1).randbytes(4000)})
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(SourceError, match="damaged or ends early"):
        unpack_archive(path, tmp_path / "out")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a": b"1"})
    raw = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + place] |= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(SourceError, match="encrypted"):
        unpack_archive(path, tmp_path / "out")


def test_a_truncated_gzip_is_a_source_error_and_a_whole_one_passes(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "x"}\n' * 1000))
    check_gzip(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match="damaged or ends early"):
        check_gzip(path)


def test_other_files_are_not_archives(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": b"{}\n", "b.gz": gzip.compress(b"{}"), "c": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert archive_kind(tmp_path / name) is None
    with pytest.raises(SourceError, match="is not a zip"), open_archive(tmp_path / "a.jsonl"):
        pass
