"""Fixtures shared by all tests: offline settings, a tiny random backbone, a project directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# a busy machine is not a failing property
settings.register_profile("cahl", deadline=None)
settings.load_profile("cahl")

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges: every byte is a token, so any text has one reading."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[1], eos_token=special[2], unk_token=special[0]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)


def make_model(
    folder: Path, seed: int = 0, architecture: str = "llama", positions: int = 4096
) -> None:
    """A two-layer random model with grouped-query attention, in float32."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = CONFIG_MAPPING[architecture](
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # far from uniform, so that argmax and log-probabilities can differ
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("backbone")
    make_tokenizer(folder)
    make_model(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project: settings and declarations, no data."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "sources.yaml", tmp_path / "data" / "sources.yaml")
    return tmp_path


@pytest.fixture(scope="session")
def bfcl_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real BFCL v3 package (`fetched_wheel`)."""
    return fetched_wheel("bfcl-v3", tmp_path_factory)


@pytest.fixture(scope="session")
def bfcl_v4_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real BFCL v4 package (`fetched_wheel`)."""
    return fetched_wheel("bfcl-v4", tmp_path_factory)


def fetched_wheel(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's copy if fetched, else downloaded once, else a visible skip."""
    from cahl_core.datasets.sources import load_sources
    from cahl_core.datasets.wheels import obtain_wheel, unpack
    from cahl_core.errors import SourceError

    fetched = ROOT / "data" / "raw" / name
    if (fetched / "bfcl_eval").is_dir():
        return fetched
    source = load_sources(ROOT)[name]
    scratch = tmp_path_factory.mktemp(name)
    mirrors = [Path(m) for m in [os.environ.get("CAHL_MIRROR")] if m]
    try:
        wheel = obtain_wheel(source, scratch / "downloads", mirrors, 1, print)
    except SourceError as error:
        pytest.skip(f"the BFCL package cannot be had: {error.what}")
    target = scratch / "data" / "raw" / name
    target.mkdir(parents=True)
    unpack(wheel, source, target)
    return target
