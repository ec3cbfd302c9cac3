"""Tokenizers with the chat templates that backbones come with, built offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Gemma's: no system turn, turns alternate, content is trimmed.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Role markers that are plain text, as in Zephyr, Llama 2 and Alpaca.
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}[INST] <<SYS>>\n{{ m['content'] }}\n<</SYS>>\n\n"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{% for m in messages %}### {{ m['role'] | title }}:\n{{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Style:
    """A tokenizer, and the texts that are role markers in its prompts."""

    tokenizer: Any
    roles: tuple[str, ...] = ()


def build(
    special: Sequence[str],
    template: str | None,
    *,
    ordinary: Sequence[str] = (),
    normalizer: Any = None,
) -> Any:
    """A byte-level tokenizer with these special tokens; ``ordinary`` ones are added but not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", *special, *ordinary, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    folds = normalizer is not None
    if folds:
        raw.normalizer = normalizer
    raw.add_special_tokens([AddedToken(t, normalized=folds) for t in special])
    raw.add_tokens([AddedToken(t, normalized=folds) for t in ordinary])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[0], eos_token=special[-1], unk_token="<unk>"
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _folding() -> Any:
    from tokenizers import Regex, normalizers

    drops = normalizers.Replace(Regex("[\u200b\u200d\ufeff]"), "")
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), drops])


IM = ("<|im_start|>", "<|im_end|>")
STYLES: dict[str, Callable[[], Style]] = {
    "chatml": lambda: Style(build(IM, CHATML)),
    "qwen": lambda: Style(build(IM, CHATML, ordinary=["<tool_call>", "</tool_call>", "<|fim|>"])),
    "gemma": lambda: Style(build(("<bos>", "<start_of_turn>", "<end_of_turn>"), GEMMA)),
    "folding": lambda: Style(build(IM, CHATML, normalizer=_folding())),
    "zephyr": lambda: Style(
        build(("<s>", "</s>"), ZEPHYR), ("<|system|>", "<|user|>", "<|assistant|>")
    ),
    "llama2": lambda: Style(
        build(("<s>", "</s>"), LLAMA2), ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
    ),
    "alpaca": lambda: Style(
        build(("<s>", "</s>"), ALPACA), ("### System:", "### User:", "### Assistant:")
    ),
    "no template": lambda: Style(build(("<s>", "</s>"), None), IM),
}


@lru_cache
def style(name: str) -> Style:
    """One of `STYLES`, built once."""
    return STYLES[name]()
