"""Chat templates: the backbone's own where it has one, ours where not, and what data must not write.

What a template accepts is found by rendering short probes: some refuse or drop a system turn, some
insist on alternating turns, some leave a thinking block open, some write today's date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cahl_core.errors import ModelError
from cahl_core.protocol.markers import REPLACEMENT, Markers, literal_markers, neutralise
from cahl_core.protocol.parsing import TAGS, THINK_CLOSE, THINK_OPEN

Turn = dict[str, str]

CHATML = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

MAX_FOLDS = 8

# Prompts must not depend on the day: a model is trained and asked on different ones. Some templates
# take the day as an argument, others ask for it; the macro hides the function they ask.
DAY = "26 Jul 2024"
SAME_DAY = (
    "{%- macro strftime_now(format) -%}"
    "{{ '2024-07-26' if '-' in format else '26 Jul 2024' }}"
    "{%- endmacro -%}"
)

_SYSTEM, _USER, _ANSWER, _AGAIN = "Sentinela", "Sentinelb", "Sentinelc", "Sentineld"


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """What is known of a tokenizer's template.

    Attributes:
        template: ours where the tokenizer has none, its own made independent of the day where it asks
            for that, else ``None``.
        takes_system: a system turn is written; if not, its text leads the first user turn.
        takes_repeats: two user turns may follow one another; if not, they become one.
        special: the tokenizer's own markers, apart from our tags.
        markers: all that data must not write.
        normaliser: what the tokenizer does to text before it looks for tokens, if anything.
    """

    template: str | None
    takes_system: bool
    takes_repeats: bool
    special: tuple[str, ...]
    markers: Markers
    normaliser: Any


def dialect_of(tokenizer: Any) -> Dialect:
    """The dialect of a tokenizer, found once for each state of its tokens and template."""
    template = getattr(tokenizer, "chat_template", None)
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    return _dialect(tokenizer, size, template if isinstance(template, str) else str(template))


def templated(tokenizer: Any, system: str, turns: Sequence[Turn]) -> str:
    """The prompt of a conversation, up to where the model's own text begins.

    Raises:
        ModelError: the template refuses even a system text and alternating turns.
    """
    dialect = dialect_of(tokenizer)
    text = _prompt(tokenizer, dialect, _arranged(dialect, system, turns))
    # only the template can have opened this block: data and our instructions cannot
    if text.rfind(THINK_OPEN) > text.rfind(THINK_CLOSE):
        text = _without_thinking(text)
    return text


def _without_thinking(text: str) -> str:
    return f"{text.rstrip()}\n\n{THINK_CLOSE}\n\n"


def _prompt(tokenizer: Any, dialect: Dialect, arranged: Sequence[Turn]) -> str:
    try:
        text = _rendered(tokenizer, dialect.template, arranged)
    except Exception as error:  # templates raise whatever their authors chose
        raise ModelError(
            f"the backbone's chat template refuses a prompt: {error}",
            "use an instruction-tuned backbone, or correct chat_template.jinja in its directory",
        ) from error
    return text


def conversation(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The prompt of a conversation that has its own instructions, as the model's makers template it.

    Nothing of ours is added and our tags are left as they are; only the tokenizer's special tokens are
    kept out of what is said. A tool's turn is a user's where the template knows no tool.

    Raises:
        ModelError: the template refuses the conversation.
    """
    dialect = dialect_of(tokenizer)
    said = [_turn(t["role"], neutralise(t["content"], dialect.special)) for t in turns]
    if any(t["role"] == "tool" for t in said) and not _takes_tool(tokenizer, dialect.template):
        said = [_turn("user", t["content"]) if t["role"] == "tool" else t for t in said]
    leads = bool(said) and said[0]["role"] == "system"
    system = said[0]["content"] if leads else None
    text = _prompt(tokenizer, dialect, _arranged(dialect, system, said[leads:]))
    return _without_thinking(text) if text.rstrip().endswith(THINK_OPEN) else text


def clean(tokenizer: Any, text: str) -> str:
    """``text`` such that, inside a prompt, it opens and closes neither a role nor a tag."""
    dialect = dialect_of(tokenizer)
    text = dialect.markers.neutralise(text)
    return text if dialect.normaliser is None else _unfolded(dialect, text)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a prompt's text; nothing is added to it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@lru_cache(maxsize=8)
def _dialect(tokenizer: Any, size: int, template: str) -> Dialect:
    own = None if getattr(tokenizer, "chat_template", None) else CHATML
    if own is None and "strftime_now" in template:
        own = SAME_DAY + str(tokenizer.get_chat_template())
    takes_system = _keeps(tokenizer, own, [("system", _SYSTEM), ("user", _USER)])
    takes_repeats = _keeps(
        tokenizer, own, [("user", _USER), ("user", _AGAIN), ("assistant", _ANSWER)]
    ) and _keeps(tokenizer, own, [("assistant", _ANSWER), ("user", _USER)])
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {str(t) for t in added} | {str(t) for t in tokenizer.all_special_tokens}
    special = tuple(sorted({t for t in names if t.strip()} - set(TAGS)))
    literals = literal_markers(_literals(tokenizer, own, takes_system), special)
    normaliser = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    texts = [*special, *literals, *TAGS]
    if normaliser is not None:
        texts += [normaliser.normalize_str(text) for text in texts]
    return Dialect(own, takes_system, takes_repeats, special, Markers(texts), normaliser)


def _rendered(tokenizer: Any, template: str | None, turns: Sequence[Turn]) -> str:
    options = {} if template is None else {"chat_template": template}
    text: str = tokenizer.apply_chat_template(
        list(turns),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string=DAY,
        **options,
    )
    return text


def _keeps(tokenizer: Any, template: str | None, turns: Sequence[tuple[str, str]]) -> bool:
    """Whether the template writes every one of these turns, once."""
    try:
        text = _rendered(tokenizer, template, [_turn(*turn) for turn in turns])
    except Exception:  # whatever it raises, it refuses
        return False
    return all(text.count(content) == 1 for _, content in turns)


def _takes_tool(tokenizer: Any, template: str | None) -> bool:
    turns = [("user", _USER), ("assistant", _ANSWER), ("tool", _AGAIN)]
    return _keeps(tokenizer, template, turns)


def _literals(tokenizer: Any, template: str | None, takes_system: bool) -> list[str]:
    """The constant parts of a rendered conversation."""
    turns = [("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)]
    turns = [("system", _SYSTEM), *turns] if takes_system else turns
    try:
        text = _rendered(tokenizer, template, [_turn(*turn) for turn in turns])
    except Exception:  # `templated` says so with the real prompt
        return []
    for _, content in turns:
        text = text.replace(content, "\0")
    return text.split("\0")


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _arranged(dialect: Dialect, system: str | None, turns: Sequence[Turn]) -> list[Turn]:
    """The turns in an order and with roles that the template accepts; no text is left out."""
    lead = [] if system is None else [_turn("system", system)]
    if dialect.takes_system and dialect.takes_repeats:
        return [*lead, *turns]
    if not dialect.takes_system and system is not None:
        turns, lead = [_turn("user", system), *turns], []
    else:
        if turns and turns[0]["role"] == "assistant":
            turns = [_turn("user", "(the conversation begins with an answer)"), *turns]
    merged: list[Turn] = []
    for turn in turns:
        leads = len(merged) == 1 and not dialect.takes_system and system is not None
        if merged and (leads or not dialect.takes_repeats) and merged[-1]["role"] == turn["role"]:
            merged[-1] = _turn(turn["role"], f"{merged[-1]['content']}\n\n{turn['content']}")
        else:
            merged.append(turn)
    return lead + merged


def _unfolded(dialect: Dialect, text: str) -> str:
    """Breaks up what becomes a marker only through the tokenizer's own normalisation.

    Such text is replaced by its normal form, which the tokenizer would have made of it anyway.
    """
    for _ in range(MAX_FOLDS):
        folded = dialect.normaliser.normalize_str(text)
        neutral = dialect.markers.neutralise(folded)
        if neutral == folded:
            return text
        text = neutral
    return REPLACEMENT  # the normaliser takes out whatever is put in
