"""What the prepared data consist of: counts by source, shape and language, as numbers and as tables.

cahl data stats [SOURCE ...]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.datasets.splits import DEV, SPLITS, TRAIN, UNSEEN
from cahl_core.errors import ConfigError, StageInputError
from cahl_core.files import digest, read_json
from cahl_core.tables import show_table

if TYPE_CHECKING:
    import pandas as pd

TASKS = Path("data") / "prepared" / "tasks.parquet"
STATISTICS = Path("reports") / "data" / "statistics.json"
SHAPES = ("n_steps", "n_calls", "depth", "parallel", "n_tools", "n_messages")
LENGTHS = ("planner_tokens", "executor_tokens", "plan_tokens", "execution_tokens")
TOKEN_BINS = (0, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
SINGLE = 11  # up to here each number has a bin of its own
COUNT_BINS = (*range(SINGLE + 2), 16, 24, 32, 64, 128)  # each up to the next, the last without end
CLASSIFIED = 300  # requests per source whose language is told
SURE = 0.2
TOP_TOOLS = 20
FORM = 1  # of the statistics; drift is told only between equal ones
Counts = dict[str, int]


def summarise(
    tasks: pd.DataFrame, sources: Mapping[str, Any], contamination: Mapping[str, Any]
) -> dict[str, Any]:
    """All statistics as JSON values; the same data give the same values.

    Args:
        tasks: the rows of ``tasks.parquet`` (`cahl_core.datasets.facts`).
        sources: per source its records, tasks, kept, held_out and quarantined by rule.
        contamination: the content of ``contamination.json``.
    """
    return {
        "form": FORM,
        "tasks": len(tasks),
        "splits": {split: int((tasks["split"] == split).sum()) for split in SPLITS},
        "kinds": _counts(tasks["kind"]),
        "sources": {
            name: {**counts, **_of_source(tasks[tasks["source"] == name])}
            for name, counts in sources.items()
        },
        "shapes": {name: _binned(tasks[name]) for name in SHAPES},
        "lengths": {name: lengths(tasks[name]) for name in LENGTHS},
        "tools": _tools(tasks),
        "languages": languages(tasks),
        "contamination": {
            name: {
                key: found[key] for key in ("questions", "exact", "ten_gram", "tool_names_shared")
            }
            for name, found in contamination["benchmarks"].items()
        },
    }


def _of_source(tasks: pd.DataFrame) -> dict[str, Any]:
    return {
        "written": {split: int((tasks["split"] == split).sum()) for split in SPLITS},
        "kinds": _counts(tasks["kind"]),
        "shapes": {name: _binned(tasks[name]) for name in SHAPES},
        "lengths": {name: lengths(tasks[name]) for name in LENGTHS},
    }


def _counts(values: pd.Series[Any]) -> Counts:
    found = Counter(str(v) for v in values)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _binned(values: pd.Series[int]) -> Counts:
    """Counts of whole numbers by `COUNT_BINS`, in order; ``16+`` holds 16 to 23."""
    found = Counter(max(b for b in COUNT_BINS if b <= int(v)) for v in values)
    return {f"{n}+" if n > SINGLE else str(n): found[n] for n in sorted(found)}


def lengths(values: pd.Series[int]) -> dict[str, Any]:
    """Median, 95th percentile, maximum, and a histogram over `TOKEN_BINS` (the last bin is open)."""
    if not len(values):
        return {"p50": 0, "p95": 0, "max": 0, "histogram": {}}
    ordered = sorted(int(v) for v in values)
    found = Counter(max(b for b in TOKEN_BINS if b <= v) for v in ordered)
    return {
        "p50": ordered[len(ordered) // 2],
        "p95": ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)],
        "max": ordered[-1],
        "histogram": {str(b): found[b] for b in TOKEN_BINS if found[b]},
    }


def _tools(tasks: pd.DataFrame) -> dict[str, Any]:
    gold: Counter[str] = Counter()
    names: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, called in zip(tasks["split"], tasks["gold_tools"], strict=True):
        gold.update(called)
        names[split].update(called)
    new = names[UNSEEN] | names[DEV]
    return {
        "distinct_gold": len(gold),
        "names": sorted(gold),
        "most_called": dict(sorted(gold.items(), key=lambda i: (-i[1], i[0]))[:TOP_TOOLS]),
        "dev_tools_unseen_in_training": round(len(new - names[TRAIN]) / max(len(new), 1), 4),
    }


def languages(tasks: pd.DataFrame) -> dict[str, Any]:
    """Languages of the requests by ``py3langid``, at most `CLASSIFIED` of each source, by digest.

    ``und`` is what its model gives less than `SURE` of its probability to ("Yes." could be anything).
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=SURE
    )
    found: dict[str, Counts] = {}
    for source, own in tasks[tasks["kind"] == "original"].groupby("source", sort=True):
        texts = sorted((t for t in own["request"] if t), key=lambda t: digest([source, t]))
        codes = Counter(str(identifier.classify(text)[0]) for text in texts[:CLASSIFIED])
        found[str(source)] = dict(sorted(codes.items(), key=lambda i: (-i[1], i[0])))
    total: Counter[str] = Counter()
    for counts in found.values():
        total.update(counts)
    return {
        "classified": sum(total.values()),
        "all": dict(sorted(total.items(), key=lambda i: (-i[1], i[0]))),
        "by_source": found,
    }


# --- cahl data stats -----------------------------------------------------------------------------


def command(root: Path, settings: Settings, names: list[str], as_json: bool) -> None:
    """Prints the statistics of the prepared data, of the named sources only where any are named.

    Raises:
        StageInputError: nothing is prepared; ConfigError: a name is not among the sources prepared.
    """
    path = root / STATISTICS
    if not path.exists():
        raise StageInputError(
            f"{path} does not exist", f"run `cahl prepare --profile {settings.profile}` first"
        )
    found = read_json(path)
    if unknown := sorted(set(names) - set(found["sources"])):
        raise ConfigError(
            f"source '{unknown[0]}' is not among the prepared ones",
            f"prepared: {', '.join(found['sources'])}",
        )
    chosen = {n: s for n, s in found["sources"].items() if not names or n in names}
    if as_json:
        print(json.dumps({**found, "sources": chosen}, ensure_ascii=False, indent=2))
        return
    _show_sources(chosen)
    _show_shapes(chosen)
    _show_quarantine(chosen)
    if not names:
        _show_whole(found)


def _show_sources(sources: Mapping[str, Any]) -> None:
    columns = ("records", "tasks", "kept", "held_out")
    rows = [
        [
            name,
            *(f"{s[c]:,}" for c in columns),
            f"{sum(s['quarantined'].values()):,}",
            *(f"{s['written'][split]:,}" for split in SPLITS),
            str(s["lengths"]["planner_tokens"]["p50"]),
            str(s["lengths"]["planner_tokens"]["p95"]),
        ]
        for name, s in sources.items()
    ]
    header = ["source", "records", "prompts", "kept", "held out", "quarantined", "train", "dev",
              "unseen tools", "tokens p50", "p95"]  # fmt: skip
    show_table(header, [*rows, _total(rows)], "Sources (train and dev hold derived tasks too)")


def _total(rows: Sequence[Sequence[str]]) -> list[str]:
    sums = [sum(int(row[i].replace(",", "")) for row in rows) for i in range(1, 9)]
    return ["all", *(f"{n:,}" for n in sums), "–", "–"]


def _show_shapes(sources: Mapping[str, Any]) -> None:
    for shape, title in (
        ("n_steps", "Gold steps per task"),
        ("depth", "Depth of the dependencies (1: no call needs another's result)"),
        ("n_tools", "Tools offered per task"),
    ):
        keys = sorted(
            {k for s in sources.values() for k in s["shapes"][shape]},
            key=lambda k: int(k.strip("+")),
        )
        rows = [
            [name, *(str(s["shapes"][shape].get(key, "–")) for key in keys)]
            for name, s in sources.items()
        ]
        print()
        show_table(["source", *keys], rows, title)


def _show_quarantine(sources: Mapping[str, Any]) -> None:
    from cahl_core.datasets.checks import RULES

    names = [n for n, s in sources.items() if s["quarantined"]]
    rules = [r for r in RULES if any(r in sources[n]["quarantined"] for n in names)]
    if not rules:
        return
    rows = [
        [rule, *(str(sources[n]["quarantined"].get(rule, "–")) for n in names)] for rule in rules
    ]
    print()
    show_table(["rule", *names], rows, "Set aside, by rule (data/prepared/quarantine.jsonl)")


def _show_whole(found: Mapping[str, Any]) -> None:
    print()
    rows = [
        [name, *(str(c[k]) for k in ("questions", "exact", "ten_gram", "tool_names_shared"))]
        for name, c in found["contamination"].items()
    ]
    show_table(
        ["test set", "questions", "equal", "ten words", "tool names shared"],
        rows,
        "Contamination: records set aside, and tool names that training shares",
    )
    print()
    show_table(
        ["kind", "tasks"], [[k, f"{n:,}"] for k, n in found["kinds"].items()], "Kinds of tasks"
    )
    told = found["languages"]
    shares = ", ".join(f"{code} {n}" for code, n in list(told["all"].items())[:8])
    print(f"\nLanguages of {told['classified']} sampled requests: {shares}")
    tools = found["tools"]
    print(
        f"Tools called: {tools['distinct_gold']:,} distinct; "
        f"{tools['dev_tools_unseen_in_training']:.1%} of the dev tools are called in no training task"
    )
