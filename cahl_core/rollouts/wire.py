"""What is asked of ``/v1/completions``, and how its answer becomes `Completion`s.

Token ids are the only truth: they come from the server (``token_ids``, or tokens written as
``token_id:N``), and texts are decoded from them. Text is tokenised back only where the user allows it,
and only what comes out exactly the same counts; the rest is void.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.errors import RolloutServerError
from cahl_core.policy.engine import Completion
from cahl_core.rollouts.client import UnavailableError

ID_PREFIX = "token_id:"
START_VLLM = "vLLM from 0.10.2 on and `cahl serve-rollouts` return them (docs/rollout-servers.md)"


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt's samples as they are asked for; ``seed`` determines every draw."""

    prompt: Sequence[int]
    samples: int
    max_tokens: int
    temperature: float
    seed: str
    stop: Sequence[str]


@dataclass(frozen=True, slots=True)
class Reader:
    """What reading an answer needs: our tokenizer, the tokens that end a text, the version asked for."""

    tokenizer: Any
    ends: Collection[int]
    version: int | None = None
    retokenise: bool = False
    vocabulary: int = 0


def request_body(ask: Ask, model: str, ends: Collection[int], *, ours: bool) -> dict[str, Any]:
    """The request: all sampling parameters are given, so no default of the server takes effect.

    Args:
        ours: the server is `cahl serve-rollouts`, which draws from the seed's text as `Engine` does.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(ask.prompt),
        "n": ask.samples,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed_number(ask.seed),
        "stop": list(ask.stop),
        "include_stop_str_in_output": True,
        "stop_token_ids": sorted(ends),
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if ours:
        body["seed_text"] = ask.seed
    return body


def seed_number(text: str) -> int:
    """A seed as servers take it: 62 bits of the text's digest, so that adding an index stays in range."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 2


def read_completions(
    answer: Mapping[str, Any], ask: Ask, reader: Reader, url: str
) -> list[Completion]:
    """The ``ask.samples`` completions of an answer, in the order of their indices.

    Raises:
        UnavailableError: the answer is not whole. RolloutServerError: it lacks what training needs.
    """
    choices = {c.get("index"): c for c in answer["choices"] if isinstance(c, dict)}
    if sorted(choices, key=str) != sorted(range(ask.samples), key=str):
        raise UnavailableError(f"{url}: asked for {ask.samples} samples, got {len(choices)}")
    return [_completion(choices[i], ask, reader, url) for i in range(ask.samples)]


def _completion(choice: Mapping[str, Any], ask: Ask, reader: Reader, url: str) -> Completion:
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise UnavailableError(f"{url}: a sample ended with finish_reason {reason!r}")
    read = choice.get("prompt_token_ids")
    if read is not None and list(read) != list(ask.prompt):
        raise RolloutServerError(
            f"{url} changed a prompt: it read {len(read)} tokens instead of {len(ask.prompt)}",
            "switch off truncation and added special tokens on the server",
        )
    logprobs = _logprobs(choice, url)
    ids = _token_ids(choice, reader, url)
    if ids is None:
        return Completion([], [], "", False, reader.version, void=True)
    if len(ids) != len(logprobs):
        raise RolloutServerError(
            f"{url} returned {len(logprobs)} log-probabilities for {len(ids)} tokens",
            "switch off speculative or reasoning post-processing on the server",
        )
    if reader.vocabulary and any(not 0 <= i < reader.vocabulary for i in ids):
        raise RolloutServerError(
            f"{url} returned token {max(ids)}; our backbone has {reader.vocabulary} tokens",
            "it serves another backbone than data/backbone",
        )
    text = reader.tokenizer.decode(ids[:-1] if ids and ids[-1] in reader.ends else ids)
    return Completion(ids, logprobs, text, reason == "stop", reader.version)


def _logprobs(choice: Mapping[str, Any], url: str) -> list[float]:
    found = (choice.get("logprobs") or {}).get("token_logprobs")
    if found is None or any(not isinstance(x, int | float) or math.isnan(x) for x in found):
        raise RolloutServerError(
            f"{url} returns no log-probabilities of the sampled tokens; training needs them to "
            "correct for what the server's weights and arithmetic differ by",
            START_VLLM,
        )
    return [float(x) for x in found]


def _token_ids(choice: Mapping[str, Any], reader: Reader, url: str) -> list[int] | None:
    """``None`` where the ids are not known for certain."""
    ids = choice.get("token_ids")
    if ids is not None:
        return [int(i) for i in ids]
    tokens = choice["logprobs"].get("tokens")
    if tokens is not None and all(str(t).startswith(ID_PREFIX) for t in tokens):
        return [int(str(t).removeprefix(ID_PREFIX)) for t in tokens]
    if not reader.retokenise:
        raise RolloutServerError(
            f"{url} returns no token ids; a text that is tokenised back may differ from what was "
            "sampled",
            f"{START_VLLM}; train.rollouts.retokenise=true takes what tokenises back exactly",
        )
    return _tokenised_back(choice, tokens, reader)


def _tokenised_back(
    choice: Mapping[str, Any], tokens: Sequence[str] | None, reader: Reader
) -> list[int] | None:
    """The ids of the text, if they decode to it, and to the server's own tokens one by one."""
    text, count = str(choice.get("text", "")), len(choice["logprobs"]["token_logprobs"])
    ids: list[int] = reader.tokenizer.encode(text, add_special_tokens=False)
    if choice.get("finish_reason") == "stop" and len(ids) == count - 1 and reader.ends:
        end = reader.tokenizer.eos_token_id
        ids = [*ids, end if end in reader.ends else min(reader.ends)]
    body = ids[:-1] if ids and ids[-1] in reader.ends else ids
    same = len(ids) == count and reader.tokenizer.decode(body) == text
    if same and tokens is not None:
        same = [reader.tokenizer.decode([i]) for i in body] == list(tokens)[: len(body)]
    return ids if same else None
