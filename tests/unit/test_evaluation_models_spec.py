"""How models are named: what is understood, what is refused with the words that are allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.errors import ConfigError
from cahl_core.evaluation.models_spec import (
    LABEL,
    EndpointOptions,
    HuggingFaceOptions,
    parse_model,
    parse_models,
)


@pytest.mark.parametrize(
    ("text", "kind", "place", "label"),
    [
        ("base", "project", "base", "base"),
        ("before=sft", "project", "sft", "before"),
        ("hf:org/Some-1B", "huggingface", "org/Some-1B", "Some-1B"),
        ("hf:org/Some-1B@v1.0", "huggingface", "org/Some-1B", "Some-1B-v1.0"),
        ("hf:/a/folder/", "huggingface", "/a/folder/", "folder"),
        ("hf:./x@y/z", "huggingface", "./x@y/z", "z"),
        ("hf:m?form=hierarchical", "huggingface", "m", "m-hierarchical"),
        ("hf:m?label=other", "huggingface", "m", "other"),
        ("hf:m?adapters=runs/one", "huggingface", "m", "m-one"),
        ("models:/cahl-agent@champion", "registry", "models:/cahl-agent@champion",
         "cahl-agent-champion"),
        ("models:/cahl-agent/12", "registry", "models:/cahl-agent/12", "cahl-agent-v12"),
        ("http://localhost:8000/v1", "endpoint", "http://localhost:8000", "localhost-8000"),
        ("https://h/openai/v1/?model=o%2Fm", "endpoint", "https://h/openai", "m"),
        ("x=https://h?model=m&form=native", "endpoint", "https://h", "x"),
    ],
)  # fmt: skip
def test_what_is_named(text: str, kind: str, place: str, label: str) -> None:
    spec = parse_model(text)
    assert (spec.kind, spec.place, spec.label) == (kind, place, label)


def test_options_are_read_and_checked() -> None:
    spec = parse_model("hf:o/m@abc?form=single_level&max_context=512&adapters=a%26b")
    assert spec.options == HuggingFaceOptions(
        form="single_level", max_context=512, adapters="a&b", revision="abc"
    )
    spec = parse_model("http://h:1/v1?key_env=MY_KEY&concurrency=2&omit=stop, seed&model=a+b")
    assert isinstance(spec.options, EndpointOptions)
    assert spec.options.omitted == ("stop", "seed")
    assert (spec.options.model, spec.options.form) == ("a+b", "native")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpt", "allowed: base, sft, cahl, hf:"),
        ("", "allowed: base"),
        ("hf:", "hf:ORGANISATION/NAME"),
        ("hf:m@", "names no model"),
        ("hf:m@r?revision=s", "revision is given twice"),
        ("hf:m?frm=x", "'frm' is no option here"),
        ("hf:m?form=flat", "allowed: hierarchical, low_only, single_level"),
        ("hf:m?form=native", "allowed: hierarchical, low_only, single_level"),
        ("hf:m?max_context=0", "max_context=0"),
        ("hf:m?form", "has no value"),
        ("hf:m?form=low_only&form=low_only", "given twice"),
        ("models:/x", "models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/x/latest", "models:/NAME@ALIAS"),
        ("models:/x/1?form=low_only", "'form' is no option here"),
        ("http://h/v2", "http\\(s\\)://HOST"),
        ("http://", "http\\(s\\)://HOST"),
        ("http://h?thinking=on", "allowed: server, off"),
        ("http://h?concurrency=many", "concurrency=many"),
        ("a b=base", "cannot name a model"),
        ("../x=base", "names no model"),
        (".hidden=base", "cannot name a model"),
        ("=base", "cannot name a model"),
        ("hf:m?label=", "cannot name a model"),
        ("http://[h/v1", "not a URL"),
        ("base=sft", "the project's own model"),
        ("Base=hf:m", "the project's own model"),
        ("a=hf:m?label=b", "named twice"),
    ],
)
def test_what_is_refused_says_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_model(text)


@pytest.mark.parametrize("text", ["https://u:sk-1@h/v1", "https://h/v1?key_env=sk-1"])
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="environment variable") as caught:
        parse_model(text)
    assert "sk-1" not in str(caught.value)


def test_models_of_one_name_need_another() -> None:
    assert [s.label for s in parse_models(["base", "hf:a/m", "hf:b/M2"])] == ["base", "m", "M2"]
    with pytest.raises(ConfigError, match="'hf:a/m' and 'hf:b/M' have one name"):
        parse_models(["hf:a/m", "hf:b/M"])  # one file on some systems
    assert len(parse_models(["hf:a/m", "other=hf:b/M"])) == 2


@given(
    st.text(alphabet="abh:/@?=&.%-_[ ü\n", max_size=30),
    st.sampled_from(["", "hf:", "http://h", "models:/"]),
)
def test_any_text_is_a_model_with_a_safe_name_or_an_error_of_ours(noise: str, start: str) -> None:
    try:
        spec = parse_model(start + noise)
    except ConfigError:
        return
    assert LABEL.fullmatch(spec.label)
