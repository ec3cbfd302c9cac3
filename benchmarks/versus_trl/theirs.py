"""The worker of the TRL arms: GRPOTrainer in TRL's own environment, steps on command (driver.py).

The trainer runs its own loop; a callback waits for the driver before every step. What is overridden
hands it prompts as token ids and puts marks between phases.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from worker import Channel, Meter, count_tokens, has_bf16, versions
from workload import Batch, Point, batches, reward

MANY = 2000  # more steps than a driver asks for


class Trainer(GRPOTrainer):
    """GRPOTrainer whose prompts are token ids; a prompt is written ``<number within its step>``."""

    meter: Meter
    batch: Batch
    forced: list[list[int]] | None = None
    seen: dict[str, Any]

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return [self.batch.prompts[int(p)] for p in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.forced is not None:
            return self.forced, None
        with self.meter.phase("generation"):
            out = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        lengths = {len(ids) for ids in out[0]}
        if lengths != {self.batch.tokens} or len(out[0]) != self.batch.rows:
            raise RuntimeError(f"completions of {sorted(lengths)} tokens, {len(out[0])} of them")
        return out

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self.meter.phase("scoring"):
            out = super()._generate_and_score_completions(inputs)
        self.seen = {"advantages": out["advantages"].tolist()}
        if out.get("old_per_token_logps") is not None:
            raise RuntimeError("old log-probabilities were computed, which these settings avoid")
        return out


class Steps(TrainerCallback):
    """Begins a step when told to, and reports it."""

    def __init__(self, worker: Theirs) -> None:
        self.worker = worker

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.worker.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.worker.report()


class Theirs:
    """One trainer of one role."""

    def __init__(self, spec: dict[str, Any], channel: Channel) -> None:
        self.spec, self.channel, self.meter = spec, channel, Meter()
        self.point = Point(**spec["point"])
        self.chosen = spec["settings"]
        self.low = spec["dtype"] == "bfloat16" or (spec["dtype"] == "auto" and has_bf16())
        self.command: dict[str, Any] = {}
        self.norms: list[float] = []
        self.update: Any = None
        model = self._model()
        self.vocabulary = model.config.vocab_size
        count_tokens(type(model.get_base_model().base_model), self.meter)
        self.trainer = self._trainer(model)
        self.trainer.meter = self.meter
        self._watch_norm()

    def _batch(self, index: int) -> Batch:
        return batches(self.point, self.vocabulary, index)[self.spec["role"]]

    def _model(self) -> Any:
        dtype = torch.bfloat16 if self.low and self.chosen["weights"] == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(
            self.spec["backbone"], dtype=dtype, attn_implementation=self.chosen["attention"]
        )
        return PeftModel.from_pretrained(model, self.spec["adapter"], is_trainable=True)

    def _trainer(self, model: Any) -> Trainer:
        first = self._batch(0)
        tokenizer = AutoTokenizer.from_pretrained(self.spec["backbone"])
        names = [str(i) for _ in range(MANY) for i in range(len(first.prompts))]
        return Trainer(
            model=model,
            args=self._arguments(first),
            reward_funcs=_reward,
            train_dataset=Dataset.from_dict({"prompt": names}),
            processing_class=tokenizer,
            callbacks=[Steps(self)],
        )

    def _arguments(self, batch: Batch) -> GRPOConfig:
        micro = math.gcd(self.chosen["micro_batch"], batch.rows)
        continuous = self.spec["arm"] == "trl_continuous"
        # forced lengths: `generate` trims at an end token, so it must not be drawn; the other
        # path does not trim, and knows no minimal length
        forced = {"eos_token_id": -1} if continuous else {"min_new_tokens": batch.tokens}
        return GRPOConfig(
            output_dir=tempfile.mkdtemp(prefix="versus-trl-"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch.rows // micro,
            num_generations=batch.samples,
            max_completion_length=batch.tokens,
            generation_kwargs={**forced, **self.chosen["generation"]},
            use_transformers_continuous_batching=continuous,
            transformers_continuous_batching_config=self._cache(batch),
            temperature=1.0,
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.2,
            loss_type=self.spec["loss"],
            num_iterations=1,
            shuffle_dataset=False,
            disable_dropout=True,
            gradient_checkpointing=self.chosen["checkpointing"],
            torch_compile=self.chosen["compile"],
            bf16=self.low and self.chosen["autocast"],
            learning_rate=self.spec["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_beta2=0.99,
            max_grad_norm=self.spec.get("grad_clip", 1.0),
            max_steps=MANY,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        )

    def _cache(self, batch: Batch) -> dict[str, Any]:
        """A cache sized for the batch, and a prefill of one prompt at a time, whose full pages the
        other samples of the prompt then share."""
        if "max_memory_percent" in self.chosen["continuous"]:  # transformers sizes it
            return dict(self.chosen["continuous"])
        longest = max(map(len, batch.prompts))
        chosen = {"page_size": 32, "max_batch_tokens": max(longest, batch.rows)}
        chosen |= self.chosen["continuous"]
        pages = -(-(longest + batch.tokens) // chosen["page_size"])
        return {"num_blocks": batch.rows * pages} | chosen

    def _watch_norm(self) -> None:
        original = self.trainer.accelerator.clip_grad_norm_

        def clip(*args: Any, **kwargs: Any) -> Any:
            norm = original(*args, **kwargs)
            self.norms.append(float(norm))
            if "file" in self.command:
                self._save_gradients()
            return norm

        self.trainer.accelerator.clip_grad_norm_ = clip

    def _save_gradients(self) -> None:
        grads = {
            name.replace(".default.", "."): parameter.grad.float().clone()
            for name, parameter in self.trainer.model.named_parameters()
            if parameter.grad is not None
        }
        save_file(grads, self.command["file"])

    def wait(self) -> None:
        """Blocks until the driver wants a step."""
        self.command = self.channel.receive()
        if self.command["do"] == "quit":
            raise SystemExit(0)
        self.trainer.batch = self._batch(self.command["index"])
        self.trainer.forced = self.command.get("completions")
        self.norms.clear()
        self.meter.clear()
        self.update = self.meter.phase("update")
        self.update.__enter__()

    def report(self) -> None:
        """Sends what the step took; what is neither generation nor scoring is the update."""
        self.update.__exit__(None, None, None)
        batch = self.trainer.batch
        message = {
            **self.meter.report(),
            "sampled": batch.rows * batch.tokens,
            "trained": batch.rows * batch.tokens,
            "norms": {self.spec["role"]: self.norms[-1]},
        }
        if self.trainer.forced is not None:
            message |= {"norm": self.norms[-1], "advantages": self.trainer.seen["advantages"]}
        self.channel.send(message)


def _reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [reward(ids) for ids in completion_ids]


def main() -> None:
    """Serves steps until the driver ends."""
    channel = Channel()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    worker = Theirs(json.loads(sys.argv[1]), channel)
    ready = {"ready": True, "versions": versions(), "threads": torch.get_num_threads()}
    channel.send(ready | {"dtype": str(worker.trainer.model.dtype), "settings": worker.chosen})
    worker.trainer.train()


if __name__ == "__main__":
    main()
