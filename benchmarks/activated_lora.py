"""Activated LoRA against plain LoRA: what adapting only the answers costs in quality, and saves.

    .venv/bin/python benchmarks/activated_lora.py [--steps 30] [--dev 16] [--repeats 5]

Activated: prompts go through the frozen backbone, without gradients, and the adapter acts from the
assistant's header on. So keys and values of prompts are the same for planner, executor and their
references, and stay valid over updates. Quality: supervised fine-tuning on data/prepared with the same
rows, steps and seeds in both arms, step by step in turn; loss on held-out tasks per role. Time: one
policy update (prompt 1000, 8 completions of 64 tokens), forward and backward, in turn, in processor
seconds (set OMP_NUM_THREADS=1), which other load on the machine changes little. Needs data/backbone
(`cahl fetch`) and data/prepared (`cahl prepare`). Writes benchmarks/results/activated_lora.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from cahl_core.config import Settings, SftSettings
from cahl_core.files import write_json
from cahl_core.policy.attention import PACKED, PackedRuns, packed_attention
from cahl_core.policy.backbone import Policy
from cahl_core.policy.head import Head
from cahl_core.policy.head_logprobs import head_logprobs
from cahl_core.policy.logprobs import packed_rows, row_logprobs
from cahl_core.policy.packing import Packed
from cahl_core.policy.prefix_attention import passthrough_mask
from cahl_core.policy.tiles import Tile, spans_of
from cahl_core.policy.tree_attention import SIZE, Part, TreeAttention
from cahl_core.training.data import load_split
from cahl_core.training.examples import batches, examples, rows_of
from cahl_core.training.sft import schedule
from cahl_core.training.trainee import Trainee

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/activated_lora.json"
ACTIVATED = "benchmark_activated"
ARMS = ("plain", "activated")
ROLES = ("planner", "executor")


@dataclass
class Split:
    """A packed row as its prompts (not adapted) and the rest; keys stand prompts first."""

    row: Packed
    prompts: np.ndarray
    answers: np.ndarray
    parts: list[Part] = field(default_factory=list)
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    first_pass: bool = True

    @classmethod
    def of(cls, row: Packed, prompt_lengths: Sequence[int], header: int, dtype: torch.dtype) -> Any:
        active = np.zeros(len(row), dtype=bool)
        for index, path in zip(row.indices, row.paths, strict=True):
            active[path[max(0, prompt_lengths[index] - header) :]] = True
        for position in range(len(row)):  # below an adapted token everything is adapted
            parent = row.parents[position]
            active[position] |= parent >= 0 and active[parent]
        split = cls(row, np.flatnonzero(~active), np.flatnonzero(active))
        visible = row.mask()[split.answers][:, np.concatenate([split.prompts, split.answers])]
        for start in range(0, len(split.answers), SIZE):
            stop = min(start + SIZE, len(split.answers))
            block = visible[start:stop]
            keys = np.flatnonzero(block.any(axis=0))
            block = block[:, keys]
            partly = np.flatnonzero(~block.all(axis=0))
            first = int(partly[0]) if len(partly) else len(keys)
            split.parts.append(Part.of(Tile(start, stop, spans_of(keys), block[:, first:]), dtype))
        return split

    @property
    def largest(self) -> int:
        return max((p.tile.stop - p.tile.start) * p.tile.keys for p in self.parts)

    def prompt_row(self) -> Packed:
        place = np.full(len(self.row) + 1, -1)
        place[self.prompts] = np.arange(len(self.prompts))
        chosen = self.prompts
        parents = place[self.row.parents[chosen]]
        return Packed(self.row.input_ids[chosen], self.row.position_ids[chosen], parents, [], [])


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """First pass: prompts as a packed row, keys and values kept. Second pass: answers over both."""
    split: Split = kwargs.pop("split")
    if split.first_pass:
        split.kept.append((key[0], value[0]))
        return packed_attention(module, query, key, value, mask, **kwargs)
    prompt_keys, prompt_values = split.kept[int(module.layer_idx)]
    keys = torch.cat([prompt_keys, key[0]], dim=1)
    values = torch.cat([prompt_values, value[0]], dim=1)
    out = TreeAttention.apply(query[0], keys, values, split, kwargs["scaling"])
    return out[None], None


def hidden_activated(policy: Policy, split: Split) -> Tensor:
    """Hidden states of the answers' tokens."""
    prompt_row = split.prompt_row()
    policy.causal.config._attn_implementation = ACTIVATED
    try:
        with policy.autocast():
            with torch.no_grad(), policy.model.disable_adapter():
                _decode(policy, prompt_row.input_ids, prompt_row.position_ids, split, prompt_row)
            split.first_pass = False
            row, chosen = split.row, split.answers
            return _decode(policy, row.input_ids[chosen], row.position_ids[chosen], split, row)
    finally:
        policy.causal.config._attn_implementation = PACKED


def _decode(policy: Policy, ids: Any, positions: Any, split: Split, row: Packed) -> Tensor:
    output = policy.decoder(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        attention_mask=passthrough_mask(policy.device),
        packed_runs=PackedRuns.of(row, policy.device),
        split=split,
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def loss_of(
    policy: Policy, arm: str, row: Packed, lengths: Sequence[int], header: int
) -> tuple[Tensor, int]:
    """Summed negative log-likelihood of the completions, and their number of tokens."""
    if arm == "plain":
        scored = row_logprobs(policy, row, lengths)
        values = scored.values[torch.cat(scored.members)]
        return -values.sum(), len(values)
    split = Split.of(row, lengths, header, policy.dtype)
    hidden = hidden_activated(policy, split)
    place = np.full(len(row), -1)
    place[split.answers] = np.arange(len(split.answers))
    paths = zip(row.indices, row.paths, strict=True)
    scored_positions = np.concatenate([path[lengths[index] :] for index, path in paths])
    before = torch.from_numpy(place[row.parents[scored_positions]])
    targets = torch.from_numpy(row.input_ids[scored_positions])
    values, _ = head_logprobs(hidden[before], Head.of(policy.causal), targets)
    return -values.sum(), len(values)


def header_length(policy: Policy) -> int:
    """Tokens of the assistant's header at the end of every prompt."""
    message, write = [{"role": "user", "content": "x"}], policy.tokenizer.apply_chat_template
    texts = [write(message, tokenize=False, add_generation_prompt=on) for on in (False, True)]
    return len(policy.tokenizer(texts[1][len(texts[0]) :], add_special_tokens=False)["input_ids"])


def quality(policy: Policy, settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Both arms through the same supervised course; losses, and seconds per step."""
    train = load_split(ROOT / "data/prepared", "train")
    dev = load_split(ROOT / "data/prepared", "dev")[: options.dev]
    header, sft, out = header_length(policy), settings.sft, {}
    for role in ROLES:
        trainees = {}
        for arm in ARMS:
            policy.new_adapter(f"{role}_{arm}", settings.seed)
            trainees[arm] = Trainee(policy, f"{role}_{arm}", sft.learning_rate, sft.grad_clip)
        stream = batches(policy.tokenizer, train, role, settings)
        losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for step in range(options.steps):
            batch = next(stream)
            for arm in ARMS:
                policy.activate(f"{role}_{arm}")
                started = time.process_time()
                tokens = sum(len(e[i].target) for row, e in batch for i in row.indices)
                value = 0.0
                for row, pending in batch:
                    loss, _ = loss_of(policy, arm, row, [len(e.prompt) for e in pending], header)
                    (loss / tokens).backward()
                    value += float(loss.detach()) / tokens
                trainees[arm].step(schedule(step, options.steps, sft.warmup_share))
                seconds[arm].append(time.process_time() - started)
                losses[arm].append(value)
            print(role, step, {arm: round(losses[arm][-1], 3) for arm in ARMS}, flush=True)
        groups = [examples(policy.tokenizer, task, role, settings) for task in dev]
        rows = list(rows_of(iter(groups), sft.row_tokens, settings.model.max_context))
        out[role] = {
            arm: {
                "dev_loss": _dev(policy, role, arm, rows, header),
                "losses": losses[arm],
                "seconds": seconds[arm],
            }
            for arm in ARMS
        }
        print(role, {arm: out[role][arm]["dev_loss"] for arm in ARMS}, flush=True)
    return out


@torch.no_grad()
def _dev(policy: Policy, role: str, arm: str, rows: Any, header: int) -> float:
    policy.activate(f"{role}_{arm}")
    total, count = 0.0, 0
    for row, pending in rows:
        loss, tokens = loss_of(policy, arm, row, [len(e.prompt) for e in pending], header)
        total, count = total + float(loss), count + tokens
    return total / count


def update_time(policy: Policy, repeats: int) -> dict[str, list[float]]:
    """Processor seconds of one update of a prompt with its samples."""
    torch.manual_seed(0)
    prompt = torch.randint(3, 40_000, (1000,)).tolist()
    completions = torch.randint(3, 40_000, (8, 64)).tolist()
    [row] = packed_rows([prompt] * 8, completions, 10**9)
    policy.activate("planner_plain")
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(repeats + 1):
        for arm in ARMS:
            started = time.process_time()
            loss, _ = loss_of(policy, arm, row, [1000] * 8, header_length(policy))
            loss.backward()
            if repeat:  # the first touches memory and compiles
                seconds[arm].append(time.process_time() - started)
    return seconds


def main() -> None:
    """Measures, prints, writes the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens-per-step", type=int, default=1024)
    parser.add_argument("--dev", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-time", action="store_true", help="keep the last run's quality")
    options = parser.parse_args()
    for needed in ("data/backbone/config.json", "data/prepared/train.jsonl"):
        if not (ROOT / needed).exists():
            sys.exit(f"no {needed}: run `cahl fetch` and `cahl prepare` first")
    tokens = options.tokens_per_step
    settings = Settings(sft=SftSettings(tokens_per_step=tokens, row_tokens=tokens))
    torch.manual_seed(0)
    policy = Policy.load(ROOT / "data/backbone", None, settings.model)
    transformers.AttentionInterface.register(ACTIVATED, attention)
    if options.only_time:
        policy.new_adapter("planner_plain", 0)
        kept = json.loads(RESULT.read_text())
        measured = kept["quality"]
        options.steps, options.tokens_per_step, options.dev = (
            kept["options"][k] for k in ("steps", "tokens_per_step", "dev")
        )
    else:
        measured = quality(policy, settings, options)
    result: dict[str, Any] = {
        "options": vars(options),
        "quality": measured,
    }
    result["update_seconds"] = update_time(policy, options.repeats)
    medians = {arm: statistics.median(s) for arm, s in result["update_seconds"].items()}
    result["update_ratio"] = medians["plain"] / medians["activated"]
    result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    result["machine"] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "load_average": os.getloadavg()[0],
        "dtype": str(policy.dtype),
    }
    write_json(RESULT, result)
    devs = {r: {a: result["quality"][r][a]["dev_loss"] for a in ARMS} for r in ROLES}
    print(json.dumps({"dev_loss": devs, "update_ratio": result["update_ratio"]}, indent=2))


if __name__ == "__main__":
    main()
