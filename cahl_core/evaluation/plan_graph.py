"""How far two graphs of calls are apart: exact edit distance with the mapping that gives it.

Nodes are calls, edges lead from a call to one that uses its result. A mapping sends every node of the
first graph to one of the second or to none (deleted); nodes of the second that nothing is sent to are
inserted. It costs what its nodes cost, plus every edge label that only one of two mapped pairs has.

The search goes depth first through the nodes of the first graph and leaves a branch whose cost so far,
plus a lower bound of the rest, is no better than the best mapping known. The bound is the cheapest
assignment of the nodes that are left: their substitution, their edges to nodes already mapped (exact),
and half of the difference between their edge labels among the rest (every such edge has two ends).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.int64]
Edges = Mapping[tuple[int, int], Counter[Hashable]]

# Of all bounds together, in cells of their matrices: some 3,000 bounds for two graphs of 12 nodes.
BUDGET = 2_000_000


@dataclass(frozen=True, slots=True)
class CallGraph:
    """Tool names, and for each (source, user) pair of nodes a multiset of edge labels."""

    labels: tuple[str, ...]
    edges: Edges = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Nodes and edge labels."""
        return len(self.labels) + sum(c.total() for c in self.edges.values())

    def plain(self) -> CallGraph:
        """The same graph with one unlabelled edge per pair."""
        return CallGraph(self.labels, {pair: Counter([None]) for pair in self.edges})


@dataclass(frozen=True, slots=True)
class Edit:
    """The cheapest mapping that was found.

    Attributes:
        mapping: for each node of the first graph its node of the second, or ``None``.
        exact: no mapping is cheaper. Otherwise the budget ran out: ``cost`` is that of a real mapping,
            so the least cost is at most this.
    """

    cost: int
    mapping: tuple[int | None, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Distance:
    """Edit distance, and its share of the most it can be for graphs of these sizes."""

    edits: int
    share: float
    exact: bool


def graph_distance(first: CallGraph, second: CallGraph, budget: int = BUDGET) -> Distance:
    """Least number of edits that make the graphs equal: node or edge added, removed, node renamed.

    ``share`` divides by ``max(nodes) + edges + edges``, what replacing all nodes and edges costs: 0 for
    equal graphs, 1 where nothing can be kept.

    >>> gold = CallGraph(("find", "book"), {(0, 1): Counter([None])})
    >>> graph_distance(CallGraph(("find", "book")), gold)
    Distance(edits=1, share=0.3333333333333333, exact=True)
    """
    first, second = first.plain(), second.plain()
    names = np.array(
        [[int(a != b) for b in second.labels] for a in first.labels], dtype=np.int64
    ).reshape(len(first.labels), len(second.labels))
    found = edit(first, second, names, 1, budget)
    most = max(len(first.labels), len(second.labels)) + len(first.edges) + len(second.edges)
    return Distance(found.cost, found.cost / most if most else 0.0, found.exact)


def edit(
    first: CallGraph, second: CallGraph, substitution: Costs, indel: int, budget: int = BUDGET
) -> Edit:
    """The cheapest mapping of ``first`` to ``second``.

    Args:
        substitution: ``[nodes of first, nodes of second]`` non-negative costs.
        indel: cost of deleting or inserting a node, without its edges; an edge label costs 1.
        budget: work after which the best mapping so far is returned (``exact=False``).

    Of equally cheap mappings the one that keeps the nodes in order as far as the search can tell:
    nodes are mapped in order, to the first of the nodes that promise the same.
    """
    labels = sorted({label for g in (first, second) for c in g.edges.values() for label in c},
                    key=repr)  # fmt: skip
    search = _Search(_counts(first, labels), _counts(second, labels), substitution, indel, budget)
    search.descend(search.start())
    return Edit(search.best // 2, tuple(search.mapping), search.exact)


def _counts(graph: CallGraph, labels: Sequence[Hashable]) -> Costs:
    """``[labels, nodes, nodes]`` how often each label stands on each edge."""
    size = len(graph.labels)
    counts = np.zeros((max(len(labels), 1), size, size), dtype=np.int64)
    number = {label: i for i, label in enumerate(labels)}
    for (source, user), found in graph.edges.items():
        for label, count in found.items():
            counts[number[label], source, user] = count
    return counts


@dataclass(frozen=True, slots=True)
class _State:
    """A partial mapping. All costs are doubled, so that halves of edges are whole numbers.

    Attributes:
        spent: of the mapped nodes and the edges among them.
        pairs: ``[first, second]`` what mapping a pair adds, edges to mapped nodes included.
        deleted, inserted: what a node without partner adds.
        open: nodes of the second graph that nothing is mapped to.
    """

    mapped: tuple[int | None, ...]
    spent: int
    pairs: Costs
    deleted: Costs
    inserted: Costs
    open: tuple[int, ...]


class _Search:
    def __init__(
        self, first: Costs, second: Costs, substitution: Costs, indel: int, budget: int
    ) -> None:
        self.first, self.second = first, second
        self.substitution, self.indel = substitution, indel
        self.twins = _twins(second, substitution)
        self.left = budget
        self.best: int = np.iinfo(np.int64).max
        self.mapping: list[int | None] = []
        self.exact = True

    def start(self) -> _State:
        """Nothing mapped; a node's edge to itself is part of its own cost."""
        own = np.einsum("lii->li", self.first), np.einsum("lii->li", self.second)
        loops = np.abs(own[0][:, :, None] - own[1][:, None, :]).sum(0)
        return _State(
            (),
            0,
            2 * (self.substitution + loops),
            2 * (self.indel + own[0].sum(0)),
            2 * (self.indel + own[1].sum(0)),
            tuple(range(self.second.shape[1])),
        )

    def descend(self, state: _State) -> None:
        if len(state.mapped) == self.first.shape[1]:
            cost = state.spent + self._rest(state)
            if cost < self.best:
                self.best, self.mapping = cost, list(state.mapped)
            return
        for total, child in self._children(state):
            if total >= self.best:
                return
            if self.left <= 0 and self.mapping:
                self.exact = False
                return
            self.descend(child)

    def _children(self, state: _State) -> list[tuple[int, _State]]:
        """The ways to map the next node, most promising first; deleting it is the last of equals.

        Of open nodes that could change places without anybody noticing, one is enough.
        """
        first_of = {self.twins[v]: v for v in reversed(state.open)}
        targets = [v for v in state.open if first_of[self.twins[v]] == v]
        children = [self._mapped(state, v) for v in (*targets, None)]
        bounds = [child.spent + self._bound(child) for child in children]
        order = sorted(range(len(children)), key=lambda i: (bounds[i], i))
        return [(bounds[i], children[i]) for i in order]

    def _mapped(self, state: _State, target: int | None) -> _State:
        """The state with the next node mapped to ``target``; its edges to the others become theirs."""
        node = len(state.mapped)
        out, into = self.first[:, node, :], self.first[:, :, node]
        none = np.zeros((self.second.shape[0], self.second.shape[1]), dtype=np.int64)
        out2 = none if target is None else self.second[:, target, :]
        into2 = none if target is None else self.second[:, :, target]
        pairs = np.abs(out[:, :, None] - out2[:, None, :]).sum(0)
        pairs += np.abs(into[:, :, None] - into2[:, None, :]).sum(0)
        added = state.deleted[node] if target is None else state.pairs[node, target]
        return _State(
            (*state.mapped, target),
            state.spent + int(added),
            state.pairs + 2 * pairs,
            state.deleted + 2 * (out.sum(0) + into.sum(0)),
            state.inserted + 2 * (out2.sum(0) + into2.sum(0)),
            tuple(v for v in state.open if v != target),
        )

    def _rest(self, state: _State) -> int:
        """What inserting all open nodes costs, edges among them included."""
        free = list(state.open)
        among = (
            self.second[:, free][:, :, free].sum()
            - np.einsum("lii->li", self.second)[:, free].sum()
        )
        return int(state.inserted[free].sum() + 2 * among)

    def _bound(self, state: _State) -> int:
        from scipy.optimize import linear_sum_assignment

        rows, free = list(range(len(state.mapped), self.first.shape[1])), list(state.open)
        if not rows:
            return self._rest(state)
        ends1, ends2 = _ends(self.first, rows), _ends(self.second, free)
        n, m = len(rows), len(free)
        costs = (state.pairs, state.deleted, state.inserted, ends1, ends2)
        never = 1 + sum(int(c.sum()) for c in costs)  # more than deleting and inserting everything
        cells = np.full((n + m, m + n), never)
        halves = np.abs(ends1[:, :, None] - ends2[:, None, :]).sum(0)
        cells[:n, :m] = state.pairs[np.ix_(rows, free)] + halves
        cells[range(n), range(m, m + n)] = state.deleted[rows] + ends1.sum(0)
        cells[range(n, n + m), range(m)] = state.inserted[free] + ends2.sum(0)
        cells[n:, m:] = 0
        self.left -= cells.size
        chosen = linear_sum_assignment(cells)
        return int(cells[chosen].sum())


def _ends(counts: Costs, nodes: Sequence[int]) -> Costs:
    """``[labels out and in, nodes]`` edge labels among ``nodes``, those of a node to itself left out."""
    part = counts[:, nodes][:, :, nodes]
    own = np.einsum("lii->li", part)
    return np.concatenate([part.sum(2) - own, part.sum(1) - own])


def _twins(counts: Costs, substitution: Costs) -> list[int]:
    """For each node the first one that it can change places with: same costs, same edges."""
    size = counts.shape[1]
    first_of: list[int] = []
    for node in range(size):
        alike = (t for t in dict.fromkeys(first_of) if _swaps(counts, substitution, t, node))
        first_of.append(next(alike, node))
    return first_of


def _swaps(counts: Costs, substitution: Costs, one: int, other: int) -> bool:
    order = list(range(counts.shape[1]))
    order[one], order[other] = other, one
    same = np.array_equal(substitution[:, one], substitution[:, other])
    return same and np.array_equal(counts, counts[:, order][:, :, order])
