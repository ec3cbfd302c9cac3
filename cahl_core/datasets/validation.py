"""``cahl data validate``: what preparation would say of a file or source, without preparing it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.datasets.adapters import READERS, ReadLimits, Record
from cahl_core.datasets.checks import LIMITS, RULES
from cahl_core.datasets.contamination import Benchmarks, read_benchmarks, source_format
from cahl_core.datasets.intake import Counts, Intake
from cahl_core.datasets.judge import Judge
from cahl_core.datasets.parallel import processes
from cahl_core.datasets.prompts import NoMeter, PromptMeter
from cahl_core.datasets.raw import read_file, read_raw
from cahl_core.datasets.sources import load_sources, pick
from cahl_core.datasets.store import LineStore
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.tables import show_table

EXAMPLES = 3
# the key of a record that tells its format; the first that is there decides
TELLING = (
    ("answers", "messages", "tool-tasks"),
    ("messages", "", "openai-messages"),
    ("conversations", "", "sharegpt"),
    ("query", "answers", "xlam"),
    ("chat", "", "glaive"),
    ("question", "", "qa"),
)


def command(root: Path, settings: Settings, target: str, format: str | None, as_json: bool) -> None:
    """Prints how many records hold, and every broken rule with examples.

    Args:
        target: a source of ``data/sources.yaml`` that is fetched, or a file or folder.
        format: of a file or folder; ``None`` recognises it from its first record.

    Raises:
        DataError: a record broke a rule other than a limit of length (after printing).
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores = [stack.enter_context(LineStore(scratch / name)) for name in "abc"]
        found, notes = judged(root, settings, target, format, stores)
        report = summary(found, notes)
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _show(report)
    if report["faulty"]:
        raise DataError(
            f"{report['faulty']} of {report['prompts']} prompts break a rule",
            "correct the records named above; docs/data.md explains every rule",
        )


def judged(
    root: Path, settings: Settings, target: str, format: str | None, stores: list[LineStore]
) -> tuple[Intake, list[str]]:
    """Every record of the target with its rule, and what could not be checked here."""
    name, records = _records(root, settings, target, format)
    meter, benchmarks, notes = _instruments(root, settings)
    found = Intake(stores[0], stores[1], stores[2])
    found.counts[name] = Counts()
    with processes(Judge(meter, benchmarks, settings), 1) as judge:
        for chunk, signatures in judge(records):
            found.add(chunk, signatures)
    found.remove_near_duplicates(settings.prepare.near_duplicate)
    found.reconcile()
    return found, notes


def _instruments(
    root: Path, settings: Settings
) -> tuple[PromptMeter | NoMeter, Benchmarks, list[str]]:
    notes = []
    known = load_sources(root)
    tests = [pick(known, n, ("benchmark", "data")) for n in settings.prepare.decontaminate]
    benchmarks, unchecked = read_benchmarks(root, tests)
    notes += [f"overlap with {name}" for name in unchecked]
    try:
        meter: PromptMeter | NoMeter = PromptMeter.load(
            root / "data" / "backbone", settings.model, settings.prepare
        )
    except StageInputError:
        meter = NoMeter()
        notes.append("prompt lengths (no backbone is fetched)")
    return meter, benchmarks, notes


def _records(
    root: Path, settings: Settings, target: str, format: str | None
) -> tuple[str, Iterator[Record]]:
    limits = ReadLimits(settings.prepare.max_result_chars, settings.prepare.max_text_chars)
    path = Path(target)
    known = load_sources(root)
    if target in known and not path.exists():
        source = known[target]
        folder = root / "data" / "raw" / source.name
        if not folder.is_dir():
            raise StageInputError(f"{folder} does not exist", f"run `cahl data fetch {target}`")
        return target, _reader(source_format(folder, source))(folder, target, limits)
    if not path.exists():
        raise ConfigError(
            f"'{target}' is neither a file, a folder nor a source of data/sources.yaml",
            f"sources there: {', '.join(sorted(known))}",
        )
    chosen = format or recognise(path, settings.prepare.max_text_chars)
    return path.stem, _read_path(path, chosen, limits)


def _reader(format: str) -> Any:
    if format not in READERS:
        raise ConfigError(
            f"format '{format}' is not one of task records", f"formats: {', '.join(READERS)}"
        )
    return READERS[format]


def _read_path(path: Path, format: str, limits: ReadLimits) -> Iterator[Record]:
    if path.is_dir():
        yield from _reader(format)(path, path.name, limits)
        return
    with tempfile.TemporaryDirectory() as folder:  # readers take folders
        (Path(folder) / path.name).symlink_to(path.absolute())
        yield from _reader(format)(Path(folder), path.stem, limits)


def recognise(path: Path, max_chars: int) -> str:
    """The format of a file or folder by the keys of its first readable record.

    Raises:
        ConfigError: no record tells.
    """
    raw = read_raw(path, max_chars) if path.is_dir() else read_file(path, path.name, max_chars)
    for record in raw:
        if not isinstance(record.value, dict):
            continue
        for key, beside, format in TELLING:
            if key in record.value and (not beside or beside in record.value):
                return format
        break
    raise ConfigError(
        f"{path}: the format cannot be told from the first record",
        f"give --format, one of {', '.join(READERS)}",
    )


def summary(found: Intake, notes: list[str]) -> dict[str, Any]:
    """Counts and examples as JSON values."""
    counts = next(iter(found.counts.values()))
    rules = {
        rule: {
            "count": count,
            "meaning": RULES[rule],
            "limit": rule in LIMITS,
            "examples": [
                {"id": q.id, "detail": q.detail} for q in found.quarantined if q.rule == rule
            ][:EXAMPLES],
        }
        for rule, count in counts.quarantined.most_common()
    }
    return {
        "records": counts.records,
        "prompts": counts.tasks,
        "kept": counts.kept,
        "faulty": sum(n for rule, n in counts.quarantined.items() if rule not in LIMITS),
        "rules": rules,
        "not_checked": notes,
    }


def _show(report: dict[str, Any]) -> None:
    print(
        f"{report['records']} records, {report['prompts']} prompts: {report['kept']} hold, "
        f"{report['faulty']} break a rule, "
        f"{report['prompts'] - report['kept'] - report['faulty']} are beyond a limit"
    )
    rows = [
        [rule, str(found["count"]), found["meaning"], f"{e['id']}: {e['detail']}"]
        for rule, found in report["rules"].items()
        for e in found["examples"][:1]
    ]
    if rows:
        show_table(["rule", "prompts", "meaning", "first"], rows)
    for note in report["not_checked"]:
        print(f"not checked: {note}")
