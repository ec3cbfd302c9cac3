"""Generation: each distinct prompt prefix is encoded once, all its samples share that one cache.

Rows are batched by length under a token budget; prompts that are done leave the batch. Every sample
draws from a generator of its own seed, so results depend neither on batch size nor on order (up to the
rounding of batched matrix products).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cahl_core.errors import MemoryLimitError, PromptTooLongError
from cahl_core.memory import is_out_of_memory, release_memory
from cahl_core.policy.backbone import Policy
from cahl_core.policy.batches import Job, Request, Sample, compact, make_jobs
from cahl_core.policy.decoder import DecodingModel, decoding_model
from cahl_core.policy.packing import Packed, pack
from cahl_core.policy.prefix_state import PrefixState
from cahl_core.policy.prefix_store import PrefixStore
from cahl_core.policy.sampling import Endings, choose, uniforms


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


class Engine:
    """Generates with the adapters of a `Policy`.

    Attributes:
        batch_tokens: cached tokens (prompts, and room for all samples) of one batch; halved when
            memory runs out.
        row_tokens: tokens of one packed row of prompts.
        keep_tokens: tokens whose keys and values are kept for later turns, per adapter.
        prefilled_tokens, decoded_tokens: encoded and sampled so far.
        seconds_prefill, seconds_decode: spent so far.
        notes: what the user should know, for the caller to show and clear.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        batch_tokens: int = 32768,
        row_tokens: int = 8192,
        keep_tokens: int = 32768,
    ) -> None:
        self.policy = policy
        self.keep_tokens = keep_tokens
        self.batch_tokens = batch_tokens
        self.row_tokens = row_tokens
        self.prefilled_tokens = self.decoded_tokens = 0
        self.seconds_prefill = self.seconds_decode = 0.0
        self.notes: list[str] = []
        self._model: DecodingModel | None = None
        self._stores: dict[str | None, PrefixStore] = {}
        self._merged: str | None = None
        self._fresh = False
        ends = policy.causal.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        if policy.tokenizer.eos_token_id is not None:
            self._ends.add(policy.tokenizer.eos_token_id)

    def weights_changed(self) -> None:
        """To be called after an update: the next generation merges the adapter anew."""
        self._fresh = False
        self._stores.clear()

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
        keep: bool = False,
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
            keep: these prompts' keys and values are kept, and those kept before are used: a next turn
                that repeats a prompt encodes only what it adds. `weights_changed` forgets them.

        Raises:
            PromptTooLongError: a prompt and ``max_tokens`` do not fit ``max_context``.
            MemoryLimitError: a single sample of a single prompt does not fit into memory.
        """
        self._check(prompts, max_tokens)
        names = seeds or [str(i) for i in range(len(prompts))]
        endings = Endings(self.policy.tokenizer, self._ends, stop, openings)
        request = Request(prompts, names, max_tokens, temperature, endings, keep)
        results: list[list[Completion]] = [[] for _ in prompts]
        jobs = deque(make_jobs(prompts, samples, max_tokens, self.batch_tokens))
        while jobs:
            job = jobs.popleft()
            rows = self._attempt(request, job, role)
            if rows is None:
                jobs.extendleft(reversed(job.halves() or ()))
                continue
            for row in rows:
                results[row.prompt].append(self._completion(row))
            if on_finished and job.samples.stop == samples:
                on_finished(len(job.prompts))
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

    def _completion(self, row: Sample) -> Completion:
        ids = row.ids[:-1] if row.ids and row.ids[-1] in self._ends else row.ids
        text = self.policy.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return Completion(row.ids, row.logprobs, text, row.finished)

    # --- a batch ----------------------------------------------------------------------------------

    def _attempt(self, request: Request, job: Job, role: str) -> list[Sample] | None:
        """The finished samples of a job; ``None`` where memory ran out and it should be halved."""
        try:
            return self._run(request, job, role)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if job.halves() is None:
                raise MemoryLimitError(
                    f"a prompt of {len(request.prompts[job.prompts[0]])} tokens with "
                    f"{request.max_tokens} to generate does not fit into memory alone",
                    "lower model.max_context or max_tokens, or use a smaller backbone",
                ) from error
            release_memory(self.policy.device, error)
        longest = max(len(request.prompts[p]) for p in job.prompts)
        cached = len(job.prompts) * (longest + len(job.samples) * request.max_tokens)
        self.batch_tokens = max(1, min(self.batch_tokens, cached) // 2)
        self.notes.append(
            f"generation ran out of memory with {len(job.prompts)} prompts of {len(job.samples)} "
            f"samples; batches now hold at most {self.batch_tokens} tokens"
        )
        return None

    def prepare(self) -> DecodingModel:
        """Makes the decoding model, which needs a backbone that is not sharded yet."""
        if self._model is None:
            self._model = decoding_model(self.policy)
        return self._model

    def _ready(self, role: str) -> DecodingModel:
        """The decoding model with the role's present weights."""
        name = role if self.policy.adapters else None
        model = self.prepare()
        if not self._fresh or self._merged != name:
            model.refresh(name)
            self._merged, self._fresh = name, True
        return model

    @torch.no_grad()
    def _run(self, request: Request, job: Job, role: str) -> list[Sample]:
        model, width = self._ready(role), len(job.samples)
        rows = [Sample(p, i, f"{request.names[p]}/{i}") for p in job.prompts for i in job.samples]
        started = time.perf_counter()
        state, logits = self._prefill(
            model, [request.prompts[p] for p in job.prompts], request, width
        )
        between = time.perf_counter()
        self._decode(model, request, rows, state, logits.repeat_interleave(width, dim=0))
        self.seconds_prefill += between - started
        self.seconds_decode += time.perf_counter() - between
        return rows

    def _prefill(
        self,
        model: DecodingModel,
        prompts: list[Sequence[int]],
        request: Request,
        samples: int,
    ) -> tuple[PrefixState, Tensor]:
        """Encodes the prompts' distinct prefixes once; returns caches and last-token logits."""
        device = self.policy.device
        state = PrefixState.empty(
            [len(p) for p in prompts], samples, request.max_tokens, device, self.policy.dtype
        )
        last: list[Tensor] = [torch.empty(0)] * len(prompts)
        for row in pack(prompts, self.row_tokens):
            encode = self._extend if request.keep else self._encode
            for index, hidden in zip(row.indices, encode(model, row, prompts, state), strict=True):
                last[index] = hidden
        return state, model.runner.logits(torch.stack(last))

    def _encode(
        self,
        model: DecodingModel,
        row: Packed,
        prompts: Sequence[Sequence[int]],
        state: PrefixState,
    ) -> list[Tensor]:
        """The hidden states of the last tokens of a row's prompts; their caches go into ``state``."""
        paths = [torch.from_numpy(path).to(self.policy.device) for path in row.paths]

        def sink(layer: int, keys: Tensor, values: Tensor) -> None:
            for index, path in zip(row.indices, paths, strict=True):
                state.write(layer, index, keys[:, path], values[:, path])

        hidden = model.runner.prefill(row, sink)
        self.prefilled_tokens += len(row)
        return [hidden[path[-1]] for path in row.paths]

    def _extend(
        self,
        model: DecodingModel,
        row: Packed,
        prompts: Sequence[Sequence[int]],
        state: PrefixState,
    ) -> list[Tensor]:
        """`_encode` of what the store does not hold; it holds the whole row afterwards."""
        store = self._stores.setdefault(self._merged, PrefixStore(self.keep_tokens))
        part = store.open(row, prompts, self.policy.device)
        hidden = model.runner.extend(part)
        self.prefilled_tokens += len(part.new)
        store.add(row, prompts, part.kept)
        for index, path in zip(row.indices, row.paths, strict=True):
            where = torch.from_numpy(path).to(self.policy.device)
            for layer, (keys, values) in enumerate(
                zip(part.kept.keys, part.kept.values, strict=True)
            ):
                state.write(layer, index, keys[:, where], values[:, where])
        places = np.searchsorted(part.new, [path[-1] for path in row.paths])
        return [hidden[place] for place in places]

    def _decode(
        self,
        model: DecodingModel,
        request: Request,
        rows: list[Sample],
        state: PrefixState,
        logits: Tensor,
    ) -> None:
        """Samples every row to its end."""
        draws = None
        if request.temperature > 0:
            draws = torch.stack([uniforms(row.seed, request.max_tokens) for row in rows], dim=1)
        depth = state.ends.repeat_interleave(state.samples)
        live = rows
        for step in range(request.max_tokens):
            own = None if draws is None else draws[step]
            tokens, logprobs = choose(logits, own, request.temperature)
            last = step == request.max_tokens - 1
            self._record(live, tokens.tolist(), logprobs.tolist(), request.endings, last)
            keep = compact(state, live)
            if keep is not None:
                if not keep:
                    return
                live = [live[i] for i in keep]
                kept = torch.tensor(keep, device=depth.device)
                tokens, depth = tokens[kept], depth[kept]
                draws = None if draws is None else draws[:, keep]
            state.advance()
            logits = model.runner.step(tokens, depth + step, state)

    def _record(
        self,
        rows: list[Sample],
        tokens: list[int],
        logprobs: list[float],
        endings: Endings,
        last: bool,
    ) -> None:
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if row.done:
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            self.decoded_tokens += 1
            row.finished = endings.finished(row.ids)
            row.done = row.finished or last or endings.strayed(row.ids)
