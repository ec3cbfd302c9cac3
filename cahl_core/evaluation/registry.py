"""The benchmarks by name, made from settings; nothing is read before a benchmark is asked for items."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.errors import CahlError, ConfigError
from cahl_core.evaluate_config import BENCHMARKS
from cahl_core.evaluation.core import Benchmark, Closes

if TYPE_CHECKING:
    from cahl_core.evaluation.judge import Judge


RAW = Path("data/raw")
V3, V4 = RAW / "bfcl-v3", RAW / "bfcl-v4"
ASKS = {
    "bfcl_v3": "calls of one turn, irrelevance, relevance",
    "bfcl_v3_multi_turn": "calls over turns, judged by the simulators' state",
    "bfcl_v4": "calls of one turn, irrelevance, relevance",
    "bfcl_v4_multi_turn": "calls over turns, judged by the simulators' state",
    "bfcl_v4_memory_kv": "answers from a key-value memory the model filled itself",
    "bfcl_v4_memory_rec_sum": "answers from a summary the model wrote itself",
    "bfcl_v4_format_sensitivity": "200 items in 26 prompt formats; not for planner and executor",
    "bfcl_v3_official_prompt": "BFCL's own prompt and decoder, Python; not for planner and executor",
    "bfcl_v4_official_prompt": "BFCL's own prompt and decoder, Python; not for planner and executor",
    "api_bank": "one call per dialogue (ToolRL's 597 items)",
    "bamboogle": "two-hop questions, with or without search",
    "hotpotqa": "two-hop questions, with or without search",
    "2wiki": "two-hop questions, with or without search",
    "musique": "two- to four-hop questions, with or without search",
    "complexfuncbench": "chained calls: plans, steps, whole tasks",
    "nestful": "nested calls: plans, steps, whole tasks",
}


def benchmarks_of(root: Path, settings: Settings) -> list[Benchmark]:
    """Those of ``evaluate.benchmarks``, in that order."""
    return [benchmark(name, root, settings) for name in settings.evaluate.benchmarks]


def benchmark(name: str, root: Path, settings: Settings) -> Benchmark:
    """The benchmark ``name`` (a value of `evaluate_config.BENCHMARKS`) on the project's data."""
    return _FACTORIES[name](root, settings)


def overview(root: Path, settings: Settings) -> list[list[str]]:
    """Name, items, what is asked for, and whether the data are there, of every benchmark."""
    rows = []
    for name in BENCHMARKS:
        try:
            found = benchmark(name, root, settings)
            rows.append([name, str(len(found.items())), ASKS[name], "here"])
            if isinstance(found, Closes):
                found.close()
        except CahlError as error:
            rows.append([name, "–", ASKS[name], error.hint or error.what])
    return rows


def _single_turn(version: str) -> Callable[[Path, Settings], Benchmark]:
    def make(root: Path, settings: Settings) -> Benchmark:
        from cahl_core.evaluation.bfcl.single import BfclSingleTurn

        wheel = root / (V3 if version == "v3" else V4)
        return BfclSingleTurn(wheel, settings.evaluate.checker_timeout, version)  # type: ignore[arg-type]

    return make


def _multi_turn(version: str) -> Callable[[Path, Settings], Benchmark]:
    def make(root: Path, settings: Settings) -> Benchmark:
        from cahl_core.evaluation.bfcl_multi_turn import BfclMultiTurn

        wheel = root / (V3 if version == "v3" else V4)
        return BfclMultiTurn(version, wheel, settings.evaluate.checker_timeout)  # type: ignore[arg-type]

    return make


def _memory(backend: str) -> Callable[[Path, Settings], Benchmark]:
    def make(root: Path, settings: Settings) -> Benchmark:
        from cahl_core.evaluation.bfcl_memory import BfclMemory

        return BfclMemory(backend, root / V4, settings.evaluate.checker_timeout)  # type: ignore[arg-type]

    return make


def _format_sensitivity(root: Path, settings: Settings) -> Benchmark:
    from cahl_core.evaluation.bfcl.prompted import BfclFormatSensitivity

    return BfclFormatSensitivity(root / V4, settings.evaluate.checker_timeout)


def _official_prompt(version: str) -> Callable[[Path, Settings], Benchmark]:
    def make(root: Path, settings: Settings) -> Benchmark:
        from cahl_core.evaluation.bfcl.prompted import BfclOfficialPrompt

        wheel = root / (V3 if version == "v3" else V4)
        return BfclOfficialPrompt(wheel, settings.evaluate.checker_timeout, version)  # type: ignore[arg-type]

    return make


def _api_bank(root: Path, settings: Settings) -> Benchmark:
    from cahl_core.evaluation.api_bank import ApiBank

    return ApiBank(root / RAW / "api_bank")


def _questions(name: str) -> Callable[[Path, Settings], Benchmark]:
    def make(root: Path, settings: Settings) -> Benchmark:
        from cahl_core.environments.search import Limits
        from cahl_core.evaluation.qa import SETS, QuestionAnswering

        search = settings.evaluate.search
        return QuestionAnswering(
            name,
            root / RAW / SETS[name].source,
            backend=_backend(root, settings),
            limits=Limits(top_k=search.top_k, passage_chars=search.passage_chars),
            judge=_judge(root, settings),
        )

    return make


def _backend(root: Path, settings: Settings) -> Any:
    """What searches are answered by, as ``evaluate.search`` says; ``None`` is closed-book."""
    search = settings.evaluate.search
    if search.backend == "closed_book":
        return None
    if search.backend == "local":
        return _local(root / search.corpus)
    from cahl_core.environments import web_search

    if search.backend == "wikipedia":
        return web_search.Wikipedia(search.url or web_search.WIKIPEDIA)
    if search.backend == "searxng":
        return web_search.SearXng(_needed(search.url, "searxng", "https://searx.example.org"))
    key = os.environ.get(search.key_env)
    return web_search.Serper(key, **({"url": search.url} if search.url else {}))


@cache
def _local(corpus: Path) -> Any:
    """One index for all question sets."""
    from cahl_core.environments.search import LocalBm25

    return LocalBm25(corpus)


def _needed(url: str | None, backend: str, example: str) -> str:
    if url is None:
        raise ConfigError(
            f"evaluate.search.backend={backend} needs evaluate.search.url", f"such as {example}"
        )
    return url


def _judge(root: Path, settings: Settings) -> Judge | None:
    judge = settings.evaluate.judge
    if judge.url is None:
        return None
    from cahl_core.evaluation.judge import Judge

    kept = root / ".cahl/evaluate/judge.jsonl"
    named = judge.key_env if os.environ.get(judge.key_env) else None  # many judges need no key
    return Judge(judge.url, judge.model, kept, key_env=named)


def _chained(name: str) -> Callable[[Path, Settings], Benchmark]:
    def make(root: Path, settings: Settings) -> Benchmark:
        from cahl_core.evaluation.chained_sources import source_benchmark

        return source_benchmark(root, settings, name)

    return make


def task_benchmark(
    root: Path,
    settings: Settings,
    file: Path,
    *,
    strict: bool = False,
    format: str | None = None,
    forced: bool = True,
) -> Benchmark:
    """The tasks of a user's file; arguments as of `chained_sources.file_benchmark`.

    Raises:
        DataError, ConfigError: the file cannot be read, or holds nothing that can be scored.
    """
    from cahl_core.evaluation.chained_sources import file_benchmark

    return file_benchmark(root, settings, file, strict=strict, format=format, forced=forced)


_FACTORIES: dict[str, Callable[[Path, Settings], Benchmark]] = {
    "bfcl_v3": _single_turn("v3"),
    "bfcl_v3_multi_turn": _multi_turn("v3"),
    "bfcl_v4": _single_turn("v4"),
    "bfcl_v4_multi_turn": _multi_turn("v4"),
    "bfcl_v4_memory_kv": _memory("kv"),
    "bfcl_v4_memory_rec_sum": _memory("rec_sum"),
    "bfcl_v3_official_prompt": _official_prompt("v3"),
    "bfcl_v4_official_prompt": _official_prompt("v4"),
    "bfcl_v4_format_sensitivity": _format_sensitivity,
    "api_bank": _api_bank,
    "bamboogle": _questions("bamboogle"),
    "hotpotqa": _questions("hotpotqa"),
    "2wiki": _questions("2wiki"),
    "musique": _questions("musique"),
    "complexfuncbench": _chained("complexfuncbench"),
    "nestful": _chained("nestful"),
}
