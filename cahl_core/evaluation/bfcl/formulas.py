"""The averages of the official leaderboards, as functions of accuracies by category.

Everything is in the unit of what is put in (shares or percentage points). Formulas and eras are those of
the package's own code and of the gorilla repository's history:

- *v3 with exec* (2024-09 to 2025-04), the columns of ToolRL's table: non-live is a mean of nine, four of
  them executed categories for which no package has a checker any more. Only for published rows.
- *v3 without exec* (2025-04 to 2025-07): non-live is a mean of five, irrelevance among them; live is
  weighed by items and holds live_irrelevance and live_relevance.
- *v4*: neither non-live nor live holds irrelevance, which is a column of its own; the overall score needs
  agentic categories, two of which need a network. `v4_nonagentic` is what is left, scaled to 100 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Accuracies = Mapping[str, float]

MULTI_TURN = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE = ("irrelevance", "live_irrelevance")
RELEVANCE = ("live_relevance",)
MANY = ("multiple", "parallel", "parallel_multiple")


@dataclass(frozen=True, slots=True)
class Edition:
    """What a version of the benchmark calls its categories.

    Attributes:
        simple: Python, Java and JavaScript, which share one part of the non-live average.
    """

    name: str
    prefix: str
    simple: tuple[str, str, str]

    @property
    def non_live_ast(self) -> tuple[str, ...]:
        return (*self.simple, *MANY)

    @property
    def ast(self) -> tuple[str, ...]:
        return (*self.non_live_ast, *LIVE_AST)

    @property
    def single_turn(self) -> tuple[str, ...]:
        return (*self.ast, *IRRELEVANCE, *RELEVANCE)


V3 = Edition("v3", "BFCL_v3", ("simple", "java", "javascript"))
V4 = Edition("v4", "BFCL_v4", ("simple_python", "simple_java", "simple_javascript"))
EDITIONS = {e.name: e for e in (V3, V4)}


def mean(values: Sequence[float]) -> float:
    """The unweighted mean.

    >>> mean([1, 0, 0.5])
    0.5
    """
    return sum(values) / len(values)


def weighted(accuracy: Accuracies, counts: Mapping[str, int], names: Sequence[str]) -> float:
    """The mean over the items of categories.

    >>> weighted({"a": 1.0, "b": 0.0}, {"a": 30, "b": 10}, ["a", "b"])
    0.75
    """
    return sum(accuracy[n] * counts[n] for n in names) / sum(counts[n] for n in names)


def non_live_parts(edition: Edition, accuracy: Accuracies) -> list[float]:
    """The four parts of non-live AST: simple (mean of three languages), multiple, parallel, both."""
    return [mean([accuracy[n] for n in edition.simple]), *(accuracy[n] for n in MANY)]


def columns(edition: Edition, accuracy: Accuracies, counts: Mapping[str, int]) -> dict[str, float]:
    """The leaderboard's columns of single-turn categories, those alone whose categories are all there.

    Args:
        accuracy: of whole categories.
        counts: items of each of them.

    Returns:
        ``non_live_ast``, ``non_live``, ``live_ast``, ``live``, ``irrelevance``, ``relevance``. In v3
        ``non_live`` and ``live`` hold irrelevance, in v4 they are ``non_live_ast`` and ``live_ast``.
    """
    inside = () if edition is V4 else ("irrelevance",)
    live = LIVE_AST if edition is V4 else (*LIVE_AST, "live_irrelevance", "live_relevance")

    def non_live(names: Sequence[str]) -> float:
        apart = [accuracy[n] for n in names if n in IRRELEVANCE]
        return mean([*non_live_parts(edition, accuracy), *apart])

    def by_items(names: Sequence[str]) -> float:
        return weighted(accuracy, counts, names)

    def unweighted(names: Sequence[str]) -> float:
        return mean([accuracy[n] for n in names])

    table: dict[str, tuple[Sequence[str], Callable[[Sequence[str]], float]]] = {
        "non_live_ast": (edition.non_live_ast, non_live),
        "non_live": ((*edition.non_live_ast, *inside), non_live),
        "live_ast": (LIVE_AST, by_items),
        "live": (live, by_items),
        "irrelevance": (IRRELEVANCE, unweighted),
        "relevance": (RELEVANCE, unweighted),
    }
    return {
        column: formula(names)
        for column, (names, formula) in table.items()
        if all(n in accuracy for n in names)
    }


def multi_turn(accuracy: Accuracies) -> float | None:
    """The multi-turn column: the mean of four categories; ``None`` unless all are there."""
    if any(n not in accuracy for n in MULTI_TURN):
        return None
    return mean([accuracy[n] for n in MULTI_TURN])


def overall_v3_no_exec(columns: Accuracies, multi_turn: float) -> float:
    """The v3 overall score since 2025-04-09: (non-live + live + multi-turn) / 3.

    Args:
        columns: of `columns` for v3, ``non_live`` and ``live`` among them.

    Raises:
        KeyError: a column is not there, as its categories were not evaluated whole.
    """
    return mean([columns["non_live"], columns["live"], multi_turn])


def non_live_with_exec(
    ast: Sequence[float], executed: Sequence[float], irrelevance: float
) -> float:
    """Non-live until 2025-04-09: the mean of nine.

    Args:
        ast: simple, multiple, parallel, parallel_multiple.
        executed: the same four as executed; the first is the mean of exec_simple and rest.
    """
    if len(ast) != 4 or len(executed) != 4:
        raise ValueError(f"four AST and four executed parts make the mean, not {len(ast)} and "
                         f"{len(executed)}")  # fmt: skip
    return mean([*ast, *executed, irrelevance])


def overall_v3_with_exec(non_live: float, live: float, multi_turn: float) -> float:
    """The v3 overall score until 2025-04-09, with ``non_live`` of `non_live_with_exec`."""
    return mean([non_live, live, multi_turn])


def v4_nonagentic(columns: Accuracies, multi_turn: float) -> float:
    """What v4 weighs 60 %, scaled to 100 %: (non-live + live + irrelevance + 3 multi-turn) / 6.

    Our name and not an official score: the official overall has 40 % agentic categories, some of which
    need a network.

    Args:
        columns: of `columns` for v4: ``non_live``, ``live`` and ``irrelevance``.
    """
    return (columns["non_live"] + columns["live"] + columns["irrelevance"] + 3 * multi_turn) / 6


def agentic(web_search: float, memory: float) -> float:
    """The agentic column of v4: the mean of the means over both web_search and the three memories."""
    return mean([web_search, memory])


def overall_v4(columns: Accuracies, multi_turn: float, agentic: float) -> float:
    """The v4 overall score, to check published rows with: 60 % `v4_nonagentic`, 40 % agentic."""
    return 0.6 * v4_nonagentic(columns, multi_turn) + 0.4 * agentic
