"""The toy world's backbone: a tiny random Llama whose tokens are whole pieces of our grammar.

Tool names, values and goals are tokens, and so is whatever stands between them in the prompts and
texts that `cahl_core.protocol` writes: a plan or a call is five tokens long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cahl_core.config import Settings, validate
from cahl_core.policy.backbone import ROLES
from cahl_core.records import ToolTask
from cahl_core.training.examples import examples

SPECIAL = ("<|unknown|>", "<|im_start|>", "<|im_end|>")
HEAD_SCALE = 3.0
ARMS = {"low_only": "low_only", "single_level": "single_level"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_backbone(
    folder: Path, tasks: Sequence[ToolTask], words: Sequence[str], form: str, seed: int
) -> None:
    """Writes tokenizer and weights.

    Args:
        tasks: their prompts and targets are what the vocabulary covers.
        words: what the tasks differ in; each is a token.
        form: ``model.form``, which decides on the texts.
    """
    settings = validate({"model": {"form": form}, "train": {"arm": ARMS.get(form, "joint")}})
    texts = _texts(tasks, settings)
    split = re.compile("|".join(map(re.escape, SPECIAL))).split
    # what every prompt of a role says is one token, so the words that differ weigh more
    constant = [
        p for group in texts.values() for p in set.intersection(*(set(split(t)) for t in group))
    ]
    units = sorted({*constant, *words} - {""}, key=lambda u: (-len(u), u))
    pattern = re.compile("(" + "|".join(map(re.escape, (*SPECIAL, *units))) + ")")
    pieces = dict.fromkeys(
        p for group in texts.values() for t in group for p in pattern.split(t) if p
    )
    vocabulary = {p: i for i, p in enumerate(dict.fromkeys((*SPECIAL, *words, *pieces)))}
    _write_tokenizer(folder, vocabulary, units)
    _write_weights(folder, len(vocabulary), seed)


def _texts(tasks: Sequence[ToolTask], settings: Settings) -> dict[str, list[str]]:
    """All prompts and targets, read back through a tokenizer of bytes, which loses nothing."""
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    model = models.BPE(vocab=vocabulary, merges=[])
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = _tokenizer(model, splitter, decoders.ByteLevel())
    texts: dict[str, list[str]] = {}
    for task in tasks:
        for role in ROLES:
            for example in examples(tokenizer, task, role, settings):
                texts.setdefault(f"{role} prompt", []).append(tokenizer.decode(example.prompt))
                texts.setdefault(f"{role} target", []).append(tokenizer.decode(example.target))
    return texts


def _tokenizer(model: Any, splitter: Any, decoder: Any) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(model)
    raw.pre_tokenizer, raw.decoder = splitter, decoder
    raw.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = 4096
    return tokenizer


def _write_tokenizer(folder: Path, vocabulary: dict[str, int], units: Sequence[str]) -> None:
    from tokenizers import Regex, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex("|".join(map(re.escape, units))), "isolated")
    model = models.WordLevel(vocabulary, unk_token=SPECIAL[0])
    _tokenizer(model, splitter, decoders.Fuse()).save_pretrained(folder)


def _write_weights(folder: Path, size: int, seed: int) -> None:
    """Two layers of random weights, large enough that hidden states tell tokens apart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # final hidden states have length 8: this lets them be sure of a token
        model.lm_head.weight.mul_(HEAD_SCALE)
    model.save_pretrained(folder)
