"""Generation: each distinct prompt prefix is encoded once, all its samples share that one cache.

Rows are batched by length under a token budget; prompts that are done leave the batch. Every sample
draws from a generator of its own seed, so results depend neither on batch size nor on order (up to the
rounding of batched matrix products).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cahl_core.errors import PromptTooLongError
from cahl_core.policy.attention import PAD, packed_inputs
from cahl_core.policy.backbone import Policy
from cahl_core.policy.decoder import DecodeModel
from cahl_core.policy.head import Head
from cahl_core.policy.packing import pack
from cahl_core.policy.prefix_attention import PrefixState, passthrough_mask

COMPACT_BELOW = 0.7  # rebuild the batch when fewer than this share of its rows is alive
TAIL_TOKENS = 16  # a stop string never spans more tokens than this


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation.

    ``logprobs`` are of the sampled tokens at the sampling temperature (1 when greedy).
    ``finished`` is False where ``max_tokens`` cut the text. ``version`` counts the updates behind the
    weights it was sampled with, where a server says so. ``void``: its tokens are not known for certain
    (a server's), so it may enter no loss.
    """

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finished: bool
    version: int | None = None
    void: bool = False


@dataclass(slots=True)
class _Sample:
    prompt: int
    seed: str
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    uniforms: Tensor | None = None
    done: bool = False
    finished: bool = False


class Engine:
    """Generates with the adapters of a `Policy`."""

    def __init__(
        self, policy: Policy, *, batch_tokens: int = 32768, row_tokens: int = 2048
    ) -> None:
        self.policy = policy
        self.batch_tokens = batch_tokens
        self.row_tokens = row_tokens
        self.prefilled_tokens = 0
        self.decoded_tokens = 0
        self._decoder = DecodeModel(policy)
        self._merged: str | None = None
        self._fresh = False
        config = self._decoder.model.generation_config
        ends = config.eos_token_id if config.eos_token_id is not None else []
        self._ends = {ends} if isinstance(ends, int) else set(ends)
        if policy.tokenizer.eos_token_id is not None:
            self._ends.add(policy.tokenizer.eos_token_id)

    def weights_changed(self) -> None:
        """To be called after an update: the next generation merges the adapter anew."""
        self._fresh = False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        role: str,
        *,
        samples: int = 1,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[str] | None = None,
        stop: Sequence[str] = (),
        openings: Sequence[str] = (),
        on_finished: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """``samples`` completions of every prompt, in the order given.

        Args:
            role: adapter name; a policy without adapters generates with the backbone.
            temperature: 0 is greedy.
            seeds: one string per prompt; sample ``i`` draws from ``seed/i``.
            stop: texts whose appearance ends a completion (kept in it).
            openings: if given, a completion that can no longer begin with one of them ends there,
                unfinished: whatever followed, it would be outside the grammar.
            on_finished: told how many prompts each batch completed.

        Raises:
            PromptTooLongError: a prompt and ``max_tokens`` do not fit ``max_context``.
        """
        self._check(prompts, max_tokens)
        name = role if self.policy.adapters else None
        if not self._fresh or self._merged != name:
            self._decoder.refresh(name)
            self._merged, self._fresh = name, True
        names = seeds or [str(i) for i in range(len(prompts))]
        results: list[list[Completion]] = [[] for _ in prompts]
        for batch in self._batches(prompts, samples, max_tokens):
            rows = [_Sample(p, f"{names[p]}/{i}") for p in batch for i in range(samples)]
            self._run(prompts, batch, rows, max_tokens, temperature, stop, openings)
            for row in rows:
                text = self.policy.tokenizer.decode(self._strip_end(row.ids))
                results[row.prompt].append(Completion(row.ids, row.logprobs, text, row.finished))
            if on_finished:
                on_finished(len(batch))
        return results

    def _check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        limit = self.policy.settings.max_context
        for index, prompt in enumerate(prompts):
            if len(prompt) + max_tokens > limit:
                raise PromptTooLongError(
                    f"prompt {index} has {len(prompt)} tokens; with {max_tokens} to generate that "
                    f"exceeds model.max_context={limit}",
                    "shorten the request or the tool list, or raise model.max_context",
                )

    def _batches(
        self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int
    ) -> Iterator[list[int]]:
        """Prompts of similar length, each batch's cached tokens within the budget."""
        batch: list[int] = []
        for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
            cached = (len(batch) + 1) * (len(prompts[index]) + samples * max_tokens)
            if batch and cached > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _strip_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self._ends else ids

    @torch.no_grad()
    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        batch: list[int],
        rows: list[_Sample],
        max_tokens: int,
        temperature: float,
        stop: Sequence[str],
        openings: Sequence[str],
    ) -> None:
        samples = len(rows) // len(batch)
        if temperature > 0:
            for row in rows:
                row.uniforms = _uniforms(row.seed, max_tokens)
        state, logits = self._prefill([prompts[p] for p in batch], samples, max_tokens)
        logits = logits.repeat_interleave(samples, dim=0)
        depth = torch.tensor([len(prompts[r.prompt]) for r in rows], device=self.policy.device)
        live = rows
        for step in range(max_tokens):
            tokens, logprobs = _choose(logits, live, step, temperature)
            last = step == max_tokens - 1
            self._record(live, tokens.tolist(), logprobs.tolist(), stop, openings, last)
            alive = sum(not r.done for r in live)
            if not alive:
                return
            if alive < COMPACT_BELOW * len(live):
                keep = self._compact(state, live)
                if keep is not None:
                    live = [live[i] for i in keep.tolist()]
                    tokens, depth = tokens[keep], depth[keep]
            state.length += 1
            logits = self._step(tokens, depth + step, state)

    def _record(
        self,
        rows: list[_Sample],
        tokens: list[int],
        logprobs: list[float],
        stop: Sequence[str],
        openings: Sequence[str],
        last: bool,
    ) -> None:
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if row.done:
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            self.decoded_tokens += 1
            row.finished = token in self._ends or self._stopped(row.ids, stop)
            row.done = row.finished or last or self._strayed(row.ids, openings)

    def _strayed(self, ids: list[int], openings: Sequence[str]) -> bool:
        if not openings or len(ids) > TAIL_TOKENS:
            return False
        text: str = self.policy.tokenizer.decode(ids).lstrip()
        return not any(text.startswith(o) or o.startswith(text) for o in openings)

    def _stopped(self, ids: list[int], stop: Sequence[str]) -> bool:
        if not stop:
            return False
        tail: str = self.policy.tokenizer.decode(ids[-TAIL_TOKENS:])
        return any(s in tail for s in stop)

    def _prefill(
        self, prompts: list[Sequence[int]], samples: int, max_tokens: int
    ) -> tuple[PrefixState, Tensor]:
        """Encodes the prompts' distinct prefixes once; returns caches and last-token logits."""
        from transformers import DynamicCache

        self._decoder.prefill_attention()
        model, device = self._decoder.model, self.policy.device
        longest = max(map(len, prompts))
        state: PrefixState | None = None
        logits: list[Tensor] = [torch.empty(0)] * len(prompts)
        for row in pack(prompts, self.row_tokens):
            cache: Any = DynamicCache()  # of the config's kind it would drop what left the window
            hidden = model.base_model(
                **packed_inputs(row, device), past_key_values=cache, use_cache=True
            ).last_hidden_state[0]
            self.prefilled_tokens += len(row)
            if state is None:
                state = _empty_state(cache, len(prompts), samples, longest, max_tokens)
            for index, path in zip(row.indices, row.paths, strict=True):
                where = torch.from_numpy(path).to(device)
                for layer, kv in enumerate(cache.layers):
                    state.keys[layer][index, :, : len(path)] = kv.keys[0, :, where]
                    state.values[layer][index, :, : len(path)] = kv.values[0, :, where]
                state.bias[index, :, :, len(path) :] = float("-inf")
                logits[index] = hidden[path[-1]]
        assert state is not None
        return state, Head.of(model).logits(torch.stack(logits))

    def _step(self, tokens: Tensor, positions: Tensor, state: PrefixState) -> Tensor:
        self._decoder.decode_attention()
        model = self._decoder.model
        hidden = model.base_model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            attention_mask=passthrough_mask(tokens.device),
            use_cache=False,
            prefix_state=state,
        ).last_hidden_state[:, 0]
        return Head.of(model).logits(hidden)

    def _compact(self, state: PrefixState, rows: list[_Sample]) -> Tensor | None:
        """Drops finished prompts, and finished samples where every prompt can spare as many."""
        samples = state.samples
        groups = [rows[i : i + samples] for i in range(0, len(rows), samples)]
        kept = [i for i, group in enumerate(groups) if not all(r.done for r in group)]
        width = max(sum(not r.done for r in groups[i]) for i in kept)
        if len(kept) * width == len(rows):
            return None
        chosen = []
        for i in kept:
            order = sorted(range(samples), key=lambda j: (groups[i][j].done, j))
            chosen += [i * samples + j for j in sorted(order[:width])]
        keep = torch.tensor(chosen, device=self.policy.device)
        state.select(torch.tensor(kept, device=self.policy.device), keep)
        return keep


def _empty_state(
    cache: Any, prompts: int, samples: int, longest: int, max_tokens: int
) -> PrefixState:
    keys, values, own_keys, own_values = [], [], [], []
    longest += -longest % PAD
    for layer in cache.layers:
        _, heads, _, width = layer.keys.shape
        keys.append(layer.keys.new_zeros(prompts, heads, longest, width))
        values.append(layer.values.new_zeros(prompts, heads, longest, layer.values.shape[3]))
        own_keys.append(layer.keys.new_zeros(prompts * samples, heads, max_tokens, width))
        own_values.append(
            layer.values.new_zeros(prompts * samples, heads, max_tokens, layer.values.shape[3])
        )
    bias = keys[0].new_zeros(prompts, 1, 1, longest)
    return PrefixState(keys, values, bias, own_keys, own_values)


def _uniforms(seed: str, count: int) -> Tensor:
    """The draws of one sample: uniform in [0, 1), determined by its seed alone."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little") >> 1
    return torch.rand(count, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def _choose(
    logits: Tensor, rows: list[_Sample], step: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Next token and its log-probability per row, ``[B]`` each."""
    logp = torch.log_softmax(logits / temperature if temperature > 0 else logits, dim=1)
    if temperature > 0:
        draws = torch.stack([r.uniforms[step] for r in rows if r.uniforms is not None])
        cumulative = logp.exp().cumsum(dim=1)
        point = draws.to(logits.device, torch.float32)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, point, right=True)[:, 0]
        tokens = tokens.clamp_(max=logits.shape[1] - 1)
    else:
        tokens = logp.argmax(dim=1)
    return tokens, logp.gather(1, tokens[:, None])[:, 0]
