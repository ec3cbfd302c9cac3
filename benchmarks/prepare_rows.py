"""How preparation scales: synthetic rows in Parquet shards through ``cahl prepare``.

    .venv/bin/python benchmarks/prepare_rows.py --rows 1000000

Makes the rows (seeded), runs the stage in a process of its own in a temporary project, and prints JSON:
rows, kept, seconds by phase, rows per second, and the largest memory of all its processes together
(proportional set size, sampled twice a second). Needs a fetched backbone (`make pipeline`, `cahl fetch`).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]
SHARD = 50_000
TOOLS = 500
PLACES = ["Oslo", "Lima", "Ghent", "Osaka", "Perth", "Leeds", "Hanoi", "Bergen", "Denver", "Prague"]
WORDS = [f"{a}{b}" for a in ("blue", "green", "old", "long", "quiet", "north", "small", "deep")
         for b in ("harbour", "river", "stone", "field", "light", "market", "bridge", "tower")]  # fmt: skip


def tool(number: int) -> dict[str, Any]:
    verb = ("find", "book", "check", "list", "order")[number % 5]
    noun = WORDS[number % len(WORDS)]
    properties = {
        "place": {"type": "string", "description": "City the request is about"},
        "count": {"type": "integer", "description": "How many are wanted"},
        "note": {"type": "string"},
    }
    return {
        "name": f"{verb}_{noun}_{number}",
        "description": f"{verb.capitalize()} the {noun} entries of a city.",
        "parameters": {"type": "object", "properties": properties, "required": ["place", "count"]},
        "returns": {"type": "object", "properties": {"id": {"type": "string"}}},
    }


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Requests of one or two calls over one to three tools; every fiftieth repeats an earlier one."""
    generator = random.Random(seed)
    tools = [tool(n) for n in range(TOOLS)]
    earlier: list[dict[str, Any]] = []
    for number in range(count):
        if number % 50 == 49:
            yield {**generator.choice(earlier), "id": f"row-{number}"}
            continue
        offered = generator.sample(tools, generator.randint(1, 3))
        wanted = offered[: generator.randint(1, min(2, len(offered)))]
        calls, said = [], []
        for k, chosen in enumerate(wanted):
            place, amount = generator.choice(PLACES), generator.randint(1, 999)
            note = " ".join(generator.choices(WORDS, k=4))
            arguments: dict[str, Any] = {"place": place, "count": amount}
            if k and generator.random() < 0.3:
                arguments["note"] = f"$var{k}.id$"
            else:
                arguments["note"] = note
            calls.append([{"name": chosen["name"], "arguments": arguments}])
            said.append(f"{chosen['description'][:-1]} {place}, {amount} of them, note {note}")
        record = {
            "id": f"row-{number}", "source": "rows", "tools": offered, "answers": calls,
            "messages": [{"role": "user", "content": "; then ".join(said) + "."}], "meta": {},
        }  # fmt: skip
        if len(earlier) < 5000:
            earlier.append(record)
        yield record


def write_shards(folder: Path, count: int, seed: int) -> int:
    """Writes the shards; returns their size in bytes."""
    schema = pa.schema([("record", pa.string())])
    pending: list[str] = []
    shard = 0
    folder.mkdir(parents=True)
    for record in rows(count, seed):
        pending.append(json.dumps(record))
        if len(pending) == SHARD:
            pq.write_table(pa.table([pending], schema=schema), folder / f"{shard:05}.parquet")
            pending, shard = [], shard + 1
    if pending:
        pq.write_table(pa.table([pending], schema=schema), folder / f"{shard:05}.parquet")
    return sum(f.stat().st_size for f in folder.iterdir())


def project(folder: Path) -> None:
    """A project whose one source is the rows."""
    source = {"kind": "data", "description": "synthetic rows", "licence": "Apache-2.0",
              "fetcher": "path", "format": "tool-tasks", "path": "rows"}  # fmt: skip
    (folder / "data").mkdir()
    (folder / "data/sources.yaml").write_text(yaml.safe_dump({"rows": source}))
    (folder / "data/backbone").symlink_to(ROOT / "data/backbone")
    (folder / "configs").mkdir()
    prepare = {
        "sources": ["rows"], "decontaminate": [], "max_prompt_tokens": 2048, "dev_tasks": 1000,
        "single_step_share": 0.0, "parallel_share": 0.0, "irrelevance_share": 0.0,
    }  # fmt: skip
    model = {"backbone": "smollm2-135m-instruct", "max_context": 4096}
    (folder / "configs/rows.yaml").write_text(yaml.safe_dump({"model": model, "prepare": prepare}))
    (folder / "params.yaml").write_text("profile: rows\n")


def watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Keeps the largest sum of the memory of the process and its children in ``peak[0]``."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for each in [root, *root.children(recursive=True)]:
                total += each.memory_full_info().pss
        except psutil.Error:
            continue
        peak[0] = max(peak[0], total)
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(folder)
        size = write_shards(folder / "data/raw/rows", arguments.rows, arguments.seed)
        command = [sys.executable, "-m", "cahl_core.cli", "prepare", "--root", str(folder)]
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT)
        peak = [0]
        watcher = threading.Thread(target=watch, args=(process, peak))
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        watcher.join()
        if code:
            raise SystemExit(f"cahl prepare ended with {code}")
        metrics = json.loads((folder / "metrics/prepare.json").read_text())
        record = json.loads((folder / ".cahl/stages/prepare.json").read_text())
        print(json.dumps({
            "rows": arguments.rows,
            "input_mib": round(size / 2**20, 1),
            "counts": metrics["sources"]["rows"],
            "seconds": round(seconds, 1),
            "phases": record.get("phases"),
            "rows_per_second": round(arguments.rows / seconds),
            "peak_mib_all_processes": round(peak[0] / 2**20),
        }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
