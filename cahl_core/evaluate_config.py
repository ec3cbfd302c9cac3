"""Settings of evaluation: which models, which benchmarks, how much of them, how texts are drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from cahl_core.train_config import Natural, Positive, Section

BENCHMARKS = (
    "bfcl_v3", "bfcl_v3_multi_turn", "bfcl_v4", "bfcl_v4_multi_turn", "bfcl_v4_memory_kv",
    "bfcl_v4_memory_rec_sum", "bfcl_v3_official_prompt", "bfcl_v4_official_prompt",
    "bfcl_v4_format_sensitivity", "api_bank", "bamboogle", "hotpotqa",
    "2wiki", "musique", "complexfuncbench", "nestful",
)  # fmt: skip


Split = Literal["held_back", "test", "dev", "not_trained", "all"]


class SearchSettings(Section):
    """How questions are searched for (Bamboogle, HotpotQA, 2Wiki, MuSiQue)."""

    backend: Literal["closed_book", "local", "wikipedia", "searxng", "serper"] = Field(
        "closed_book",
        description="closed_book: no tool; local: BM25 over `corpus`; the others need a network",
    )
    corpus: str = Field(
        "data/raw/search_corpus/corpus.jsonl", description="passages of the local backend"
    )
    url: str | None = Field(None, description="of the SearXNG instance, or of another API's host")
    key_env: str = Field("SERPER_API_KEY", description="environment variable with Serper's key")
    top_k: Positive = Field(3, description="passages shown per search")
    passage_chars: Positive = Field(600, description="characters of a passage that are shown")


class JudgeSettings(Section):
    """A model behind an OpenAI-compatible URL that says whether an answer means the gold one."""

    url: str | None = Field(None, description="None: no judge")
    model: str = ""
    key_env: str = Field("JUDGE_API_KEY", description="environment variable with its key")

    @model_validator(mode="after")
    def _named(self) -> JudgeSettings:
        if self.url and not self.model:
            raise ValueError("evaluate.judge.model is empty: name the model that judges")
        return self


class EvaluateSettings(Section):
    """Models on benchmarks, each with its official checker or stated protocol."""

    models: tuple[str, ...] = Field(
        ("base", "sft", "cahl"),
        description="base, sft, cahl, hf:<folder or hub id>, models:/name@alias, or the URL of an "
        "OpenAI-compatible server (docs/evaluation.md)",
    )
    benchmarks: tuple[str, ...] = Field(
        ("bfcl_v3",), description=f"of {', '.join(BENCHMARKS)}; order is that of the report"
    )
    sample: dict[str, Natural] = Field(
        default_factory=lambda: {
            "bfcl_v3/simple": 40,
            "bfcl_v3/multiple": 20,
            "bfcl_v3/parallel": 16,
            "bfcl_v3/parallel_multiple": 16,
            "bfcl_v3/live_simple": 16,
            "bfcl_v3/live_multiple": 16,
            "bfcl_v3/irrelevance": 16,
        },
        description="benchmark/category or benchmark → items of the fixed sample; a benchmark that "
        "is not named here is taken whole",
    )
    full: bool = Field(False, description="every item of every benchmark instead of the sample")
    samples: Positive = Field(
        1, description="per item, for pass@k; more than one needs temperature"
    )
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    plan_tokens: Positive = 256
    call_tokens: Positive = 192
    dev_tasks: Natural = Field(32, description="prepared dev tasks for reward and validity")
    batch_size: Positive = Field(64, description="attempts that are decoded together")
    checker_timeout: Positive = Field(300, description="seconds for one request to a checker")
    chained_split: Split = Field(
        "not_trained", description="records of complexfuncbench and nestful that are evaluated"
    )
    search: SearchSettings = SearchSettings()
    judge: JudgeSettings = JudgeSettings()

    @field_validator("benchmarks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [n for n in names if n not in BENCHMARKS]:
            raise ValueError(f"no such benchmark: {', '.join(unknown)}; of {', '.join(BENCHMARKS)}")
        return names

    @field_validator("sample")
    @classmethod
    def _of_a_benchmark(cls, sample: dict[str, int]) -> dict[str, int]:
        if unknown := [k for k in sample if k.partition("/")[0] not in BENCHMARKS]:
            raise ValueError(
                f"{', '.join(unknown)}: keys are benchmark or benchmark/category, such as "
                f"bfcl_v3/simple; benchmarks: {', '.join(BENCHMARKS)}"
            )
        return sample

    @model_validator(mode="after")
    def _drawn(self) -> EvaluateSettings:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"evaluate.samples={self.samples} with evaluate.temperature=0 gives the same text "
                "each time; set a temperature, 0.7 for instance"
            )
        return self
