"""An adapter is loaded on the backbone it was trained on, not on one of the same shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_project import file_sums, small_settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from cahl_core.errors import ModelError
from cahl_core.policy.backbone import Policy


def _policy(folder: Path, **model: Any) -> Policy:
    return Policy.load(folder, None, small_settings(model).model)


@pytest.fixture(scope="module")
def tuned(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone after a little fine-tuning: same shapes, slightly other weights."""
    folder = tmp_path_factory.mktemp("tuned")
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1.02)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tiny_backbone: Path, tmp_path: Path) -> Path:
    policy = _policy(tiny_backbone)
    policy.new_adapter("planner", 0)
    policy.save_adapter("planner", tmp_path / "adapter")
    return tmp_path / "adapter"


def _without_fingerprint(adapter: Path, name: str | None) -> None:
    """As other programs write adapters."""
    (adapter / "backbone.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    (adapter / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_loads_on_its_own_backbone_in_any_precision(
    tiny_backbone: Path, adapter: Path, dtype: str
) -> None:
    policy = _policy(tiny_backbone, dtype=dtype, backbone="the/same-under-another-name")
    policy.add_adapter("planner", adapter)
    policy.add_adapter("again", adapter)  # adapters that are there do not change the fingerprint


def test_a_backbone_of_equal_shapes_is_another_one(tuned: Path, adapter: Path) -> None:
    with pytest.raises(ModelError, match="trained on other weights") as raised:
        _policy(tuned).add_adapter("planner", adapter)
    assert "model.check_adapters=false" in str(raised.value)
    _policy(tuned, check_adapters=False).add_adapter("planner", adapter)


@pytest.mark.parametrize("name", ["Owner/tiny", "Owner/Tiny", "/models/tiny/", None, ""])
def test_without_a_fingerprint_the_same_name_will_do(
    tiny_backbone: Path, adapter: Path, name: str | None
) -> None:
    _without_fingerprint(adapter, name)
    _policy(tiny_backbone).add_adapter("planner", adapter)


def test_without_a_fingerprint_another_name_is_refused(tiny_backbone: Path, adapter: Path) -> None:
    _without_fingerprint(adapter, "Owner/tiny-chat")
    with pytest.raises(ModelError, match="belongs to Owner/tiny-chat"):
        _policy(tiny_backbone).add_adapter("planner", adapter)
    _policy(tiny_backbone, check_adapters=False).add_adapter("planner", adapter)


def test_saving_twice_writes_the_same_bytes(tiny_backbone: Path, tmp_path: Path) -> None:
    policy = _policy(tiny_backbone)
    policy.new_adapter("planner", 0)
    for name in ("first", "second"):
        policy.save_adapter("planner", tmp_path / name)
    assert file_sums(tmp_path / "first") == file_sums(tmp_path / "second")
