"""Which attempts are shown with their texts: right and wrong ones, and items on which models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.evaluation.report.document import Fold, Folds

BEST, WORST, FLIPS = 2, 4, 10
TEXT_CHARS = 3000

Lines = Sequence[Mapping[str, Any]]


def cut(text: str, limit: int = TEXT_CHARS) -> str:
    """The text, its middle left out where it is long; says how much.

    >>> cut("abcdefgh", 4)
    'ab\\n[… 4 characters left out …]\\ngh'
    """
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def example(line: Mapping[str, Any], label: str = "") -> str:
    """The text of one attempt with its verdict."""
    verdict = f"score {line['correct']:g}, {line['outcome']}"
    if line.get("error_type") or line.get("error"):
        verdict += f"; {line.get('error_type')}: {line.get('error')}"
    head = [f"=== {label}"] if label else []
    return cut("\n".join([*head, str(line.get("example", "")), f"→ {verdict}"]))


def examples(model: str, lines: Lines) -> Folds:
    """Right attempts with the most calls, and wrong ones of different kinds, the most frequent first."""
    right = sorted((x for x in lines if x["correct"] >= 1), key=lambda x: -x.get("attempted", 0))
    found = [_fold(model, "right", line) for line in right[:BEST]]
    found += [_fold(model, "wrong", line) for line in worst(lines)]
    return Folds(found, brief=2, searchable=True)


def worst(lines: Lines, count: int = WORST) -> list[Mapping[str, Any]]:
    """Wrong attempts, one of each kind of error in turn, lowest scores first within a kind."""
    kinds: dict[Any, list[Mapping[str, Any]]] = {}
    for line in sorted((x for x in lines if x["correct"] < 1), key=lambda x: x["correct"]):
        kinds.setdefault((line["outcome"], line.get("error_type")), []).append(line)
    queues = sorted(kinds.values(), key=lambda own: -len(own))
    depth = max(map(len, queues), default=0)
    return [q[i] for i in range(depth) for q in queues if i < len(q)][:count]


def _fold(model: str, kind: str, line: Mapping[str, Any]) -> Fold:
    tags = [model, kind, line["category"], line.get("error_type") or line["outcome"]]
    return Fold(name_of(line), example(line), tags)


def name_of(line: Mapping[str, Any]) -> str:
    """The item, and its sample where it is not the first."""
    return str(line["id"]) + (f" #{line['sample']}" if line.get("sample") else "")


# --- items that changed --------------------------------------------------------------------------


def flips(one: Lines, other: Lines, names: tuple[str, str]) -> tuple[list[Fold], list[Fold]]:
    """Items that the second model got better, and worse, than the first: both texts beside each other.

    An item's samples are averaged; the shown texts are of its first sample.
    """
    first, second = _by_id(one), _by_id(other)
    better: list[tuple[float, Fold]] = []
    worse: list[tuple[float, Fold]] = []
    for id_, own in first.items():
        if id_ not in second:
            continue
        change = _mean(second[id_]) - _mean(own)
        if change:
            found = better if change > 0 else worse
            found.append((-abs(change), _flip(own[0], second[id_][0], names, change)))
    return _largest_first(better), _largest_first(worse)


def _largest_first(changes: list[tuple[float, Fold]]) -> list[Fold]:
    return [fold for _, fold in sorted(changes, key=lambda pair: pair[0])]


def _flip(
    one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, str], change: float
) -> Fold:
    text = "\n\n".join(example(line, name) for line, name in zip((one, other), names, strict=True))
    tags = [str(one["category"]), f"{change:+.2g}", f"{one['outcome']} → {other['outcome']}"]
    return Fold(str(one["id"]), text, tags)


def _by_id(lines: Lines) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["id"], []).append(line)
    return found


def _mean(lines: Lines) -> float:
    return sum(float(x["correct"]) for x in lines) / len(lines)
