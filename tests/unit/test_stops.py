"""Generation ends where the closing tag is written, however the tag falls into tokens."""

from __future__ import annotations

from typing import Any

import pytest
from chat_styles import CHATML, IM
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.policy.sampling import Endings
from cahl_core.protocol.forms import openings, stops

STOPS = ("</plan>", "</tool_call>", "</response>")


def _tokenizer() -> Any:
    """Bytes, every piece of the closing tags, and pieces that run over their ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {s[i:j] for s in STOPS for i in range(len(s)) for j in range(i + 1, len(s) + 1)}
    pieces |= {'"}' + s[:3] for s in STOPS} | {s[-4:] + "ĊĊ" for s in STOPS} | {"></"}
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys([*IM, *alphabet, *sorted(pieces)]))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(IM))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=IM[0], eos_token=IM[1], unk_token=IM[0]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


TOKENIZER = _tokenizer()
PIECES = [t for t in TOKENIZER.get_vocab() if any(c in "</>" for c in t) and t not in IM]


def _written(parts: list[str]) -> list[int]:
    vocabulary = TOKENIZER.get_vocab()
    ids: list[int] = []
    for part in parts:
        known = [vocabulary[part]] if part in vocabulary else None
        ids += known or TOKENIZER(part, add_special_tokens=False)["input_ids"]
    return ids


parts = st.lists(
    st.sampled_from(PIECES) | st.sampled_from(["é", "東京", "\U0001f600", "x", " "]), max_size=30
)


@given(parts, st.sampled_from([STOPS[:1], STOPS[1:], STOPS[2:]]))
def test_a_text_stops_at_the_token_that_completes_its_tag(
    written: list[str], stop: tuple[str, ...]
) -> None:
    ids = _written(written)
    for end in range(1, len(ids) + 1):
        complete = any(s in TOKENIZER.decode(ids[:end]) for s in stop)
        assert Endings(TOKENIZER, set(), stop, ()).finished(ids[:end]) == complete
        if complete:
            return


@pytest.mark.parametrize("tag", STOPS)
@given(st.data())
def test_every_split_of_a_tag_is_seen(tag: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tag) - 1))))
    split = [tag[i:j] for i, j in zip([0, *cuts], [*cuts, len(tag)], strict=True)]
    before = data.draw(st.sampled_from(["", "é", '{"a": "東', "\U0001f600" * 9]))
    ids = _written([before, *split])
    endings = Endings(TOKENIZER, set(), (tag,), ())
    assert endings.finished(ids)
    assert len(ids) == 1 or not endings.finished(ids[:-1])


@pytest.mark.parametrize(
    ("form", "role", "text", "strays"),
    [
        ("hierarchical", "planner", "<pl", False),
        ("hierarchical", "planner", "\n <plan>[", False),
        ("hierarchical", "planner", "Sure", True),
        ("hierarchical", "planner", "<tool_call>", True),
        ("hierarchical", "executor", "<think>é", False),
        ("low_only", "executor", "<t", False),
        ("low_only", "executor", "<plan>", True),
        ("single_level", "executor", "<plan>", False),
        ("single_level", "executor", "<tool_call>", True),
        ("single_level", "executor", "", False),
    ],
)
def test_a_text_that_begins_outside_its_grammar_is_given_up(
    form: Any, role: Any, text: str, strays: bool
) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert Endings(TOKENIZER, set(), (), openings(form, role)).strayed(ids) == strays
    assert stops(form, role)
