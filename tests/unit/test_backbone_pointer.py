"""Registered adapters find their backbone, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from cahl_core.errors import ModelError
from cahl_core.serving.backbone_pointer import find_backbone, weights_digest


def _backbone(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("CAHL_BACKBONE", raising=False)
    monkeypatch.delenv("CAHL_ROOT", raising=False)


def test_the_directory_told_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _backbone(tmp_path / "told")
    _backbone(tmp_path / "data/backbone")
    monkeypatch.setenv("CAHL_BACKBONE", str(wanted))
    assert find_backbone("b", weights_digest(wanted)) == wanted


@pytest.mark.parametrize("place", ["data/backbone", ".cahl/backbones/0123"])
def test_it_is_found_in_the_project_around(place: str, tmp_path: Path) -> None:
    wanted = _backbone(tmp_path / place)
    assert find_backbone("b", weights_digest(wanted)) == wanted


def test_it_is_found_from_the_root_named_and_from_the_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _backbone(tmp_path / "project/data/backbone")
    artifacts = tmp_path / "project/mlartifacts/m/agent"
    assert find_backbone("b", weights_digest(wanted), near=artifacts) == wanted
    monkeypatch.setenv("CAHL_ROOT", str(tmp_path / "project"))
    assert find_backbone("b", weights_digest(wanted)) == wanted


def test_other_weights_are_refused_with_both_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _backbone(tmp_path / "data/backbone", b"other weights")
    with pytest.raises(ModelError, match=rf"'b'(?s:.*)0000(?s:.*){weights_digest(other)}"):
        find_backbone("b", "0000")
    monkeypatch.setenv("CAHL_BACKBONE", str(other))
    with pytest.raises(ModelError, match=rf"0000(?s:.*){weights_digest(other)}"):
        find_backbone("b", "0000")


def test_other_weights_do_not_hide_the_right_ones(tmp_path: Path) -> None:
    _backbone(tmp_path / "elsewhere/data/backbone", b"other weights")
    wanted = _backbone(tmp_path / "data/backbone")
    assert find_backbone("b", weights_digest(wanted)) == wanted


def test_where_it_is_nowhere_the_variable_to_set_is_named() -> None:
    with pytest.raises(ModelError, match="CAHL_BACKBONE"):
        find_backbone("b", "0000")


def test_shards_have_one_digest(tmp_path: Path) -> None:
    folder = _backbone(tmp_path / "sharded")
    single = weights_digest(folder)
    (folder / "model-2.safetensors").write_bytes(b"more")
    assert weights_digest(folder) != single
