"""The files of ``data/prepared``: splits as JSON Lines or Parquet shards, facts, quarantine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.datasets.assemble import Splits
from cahl_core.datasets.facts import COLUMNS
from cahl_core.datasets.intake import Intake
from cahl_core.datasets.splits import SPLITS
from cahl_core.files import write_jsonl

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

BATCH = 10_000
LISTS = ("gold_tools", "offered_tools")
TEXTS = ("id", "source", "split", "kind", "request", "text_digest")
FLAGS = ("gold_tools_offered", "plan_is_gold", "targets_parse")
SHARES = ("weight", "gold_planner_reward", "gold_executor_reward")
EXAMPLES = 3


def write_splits(folder: Path, splits: Splits, shard_rows: int) -> None:
    """``<split>.jsonl``, or ``<split>-00000-of-00020.parquet`` … beyond ``shard_rows`` tasks.

    A Parquet row holds id, source, the curriculum columns and the whole record as JSON (``record``),
    so that `datasets.load_dataset("parquet", …)` can filter without reading records.
    """
    for split in SPLITS:
        numbers = splits.order[split]
        if len(numbers) <= shard_rows:
            path = folder / f"{split}.jsonl"
            with path.open("wb") as out:
                out.writelines(splits.tasks.line(n) for n in numbers)
            continue
        shards = math.ceil(len(numbers) / shard_rows)
        for shard in range(shards):
            part = numbers[shard * shard_rows : (shard + 1) * shard_rows]
            _write_shard(folder / f"{split}-{shard:05}-of-{shards:05}.parquet", splits, part)


def _write_shard(path: Path, splits: Splits, numbers: list[int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("id", "source", "kind", "n_steps", "depth", "n_tools")
    kinds = [(n, pa.string() if n in TEXTS else pa.int64()) for n in names]
    schema = pa.schema([*kinds, ("weight", pa.float64()), ("record", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(numbers), BATCH):
            rows = []
            for number in numbers[start : start + BATCH]:
                fact = splits.facts.value(number)
                record = splits.tasks.line(number).decode("utf-8").rstrip("\n")
                row = {name: fact[name] for name in names}
                rows.append({**row, "weight": fact["weight"], "record": record})
            writer.write_table(pa.Table.from_pylist(rows, schema))


def write_facts(folder: Path, splits: Splits) -> pd.DataFrame:
    """``tasks.parquet``, one row of facts for every task of every split; returns it as a frame."""
    import pandas as pd
    import pyarrow.parquet as pq

    path = folder / "tasks.parquet"
    with pq.ParquetWriter(path, _schema(), compression="zstd") as writer:
        for batch in _batches(splits):
            writer.write_table(batch)
    # texts and lists stay Arrow's: as Python objects a million rows would take gigabytes
    return pq.read_table(path).to_pandas(types_mapper=pd.ArrowDtype)


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds: dict[str, Any] = dict.fromkeys(COLUMNS, pa.int64())
    kinds |= dict.fromkeys(TEXTS, pa.string())
    kinds |= dict.fromkeys(LISTS, pa.list_(pa.string()))
    kinds |= dict.fromkeys(FLAGS, pa.bool_())
    kinds |= dict.fromkeys(SHARES, pa.float64())
    return pa.schema(list(kinds.items()))


def _batches(splits: Splits) -> Iterator[pa.Table]:
    import pyarrow as pa

    for split in SPLITS:
        numbers = splits.order[split]
        for start in range(0, len(numbers), BATCH):
            rows = [
                {**splits.facts.value(n), "split": split} for n in numbers[start : start + BATCH]
            ]
            yield pa.Table.from_pylist(rows, _schema())


def raw_frame(found: Intake) -> pd.DataFrame:
    """One row per source record: source, id, rule (``""`` if any of its prompts was kept), held_out."""
    import pandas as pd

    return pd.DataFrame(found.raw, columns=["source", "id", "rule", "held_out", "chars"])


def write_quarantine(folder: Path, found: Intake) -> None:
    """``quarantine.jsonl``: source, id, rule, detail and excerpt of everything set aside."""
    write_jsonl(folder / "quarantine.jsonl", (q.to_json() for q in found.quarantined))


def examples(found: Intake) -> list[dict[str, str]]:
    """Up to three quarantined records of every source and rule, for the report."""
    seen: Counter[tuple[str, str]] = Counter()
    shown = []
    for aside in found.quarantined:
        seen[aside.source, aside.rule] += 1
        if seen[aside.source, aside.rule] <= EXAMPLES:
            shown.append(aside.to_json())
    return shown


def offered_tools(splits: Splits) -> set[str]:
    """The tool names that training prompts show."""
    return {
        name
        for number in splits.order["train"]
        for name in splits.facts.value(number)["offered_tools"]
    }


def kinds(splits: Splits, split: str) -> dict[str, int]:
    """Tasks of a split by kind."""
    found = Counter(str(splits.facts.value(n)["kind"]) for n in splits.order[split])
    return dict(sorted(found.items()))
