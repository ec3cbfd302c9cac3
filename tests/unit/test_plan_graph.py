"""Edit distance between graphs of calls: parity with two independent references, invariances, the cap."""

from __future__ import annotations

import itertools
from collections import Counter

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahl_core.evaluation.plan_graph import CallGraph, edit, graph_distance

Pair = tuple[int, int]


@st.composite
def graphs(draw: st.DrawFn, most: int = 4, loops: bool = True) -> CallGraph:
    size = draw(st.integers(0, most))
    labels = tuple(draw(st.lists(st.sampled_from("abc"), min_size=size, max_size=size)))
    cells = [(i, j) for i in range(size) for j in range(size) if loops or i != j]
    chosen = draw(st.sets(st.sampled_from(cells), max_size=6)) if cells else set()
    return CallGraph(labels, {pair: Counter([None]) for pair in sorted(chosen)})


def by_enumeration(first: CallGraph, second: CallGraph) -> int:
    """The least cost over every mapping there is."""
    return min(_cost(first, second, mapping) for mapping in _mappings(first, second))


def _mappings(first: CallGraph, second: CallGraph) -> list[tuple[int | None, ...]]:
    targets = [None, *range(len(second.labels))]
    return [
        m
        for m in itertools.product(targets, repeat=len(first.labels))
        if all(m.count(v) <= 1 for v in targets if v is not None)
    ]


def _cost(first: CallGraph, second: CallGraph, mapping: tuple[int | None, ...]) -> int:
    nodes = sum(
        1 if v is None else int(first.labels[u] != second.labels[v]) for u, v in enumerate(mapping)
    )
    nodes += len(second.labels) - sum(v is not None for v in mapping)
    moved = {(mapping[a], mapping[b]) for a, b in first.edges}
    both = moved & set(second.edges)
    return nodes + len(first.edges) + len(second.edges) - 2 * len(both)


@given(graphs(), graphs())
@settings(max_examples=60)
def test_distance_is_the_least_cost_over_all_mappings(first: CallGraph, second: CallGraph) -> None:
    found = graph_distance(first, second)
    assert found.exact
    assert found.edits == by_enumeration(first, second)


@given(graphs(3, loops=False), graphs(3, loops=False))  # networkx miscounts loops on one node
@settings(max_examples=40)
def test_distance_agrees_with_networkx(first: CallGraph, second: CallGraph) -> None:
    def drawn(graph: CallGraph) -> nx.DiGraph:
        out = nx.DiGraph()
        out.add_nodes_from((i, {"tool": tool}) for i, tool in enumerate(graph.labels))
        out.add_edges_from(graph.edges)
        return out

    reference = nx.graph_edit_distance(
        drawn(first), drawn(second), node_match=lambda a, b: a["tool"] == b["tool"]
    )
    assert graph_distance(first, second).edits == reference


@given(graphs(), graphs(), st.randoms())
def test_distance_is_symmetric_and_does_not_depend_on_the_order_of_nodes(
    first: CallGraph, second: CallGraph, random: object
) -> None:
    order = list(range(len(first.labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    place = {old: new for new, old in enumerate(order)}
    other = CallGraph(
        tuple(first.labels[i] for i in order),
        {(place[a], place[b]): c for (a, b), c in first.edges.items()},
    )
    found = graph_distance(first, second)
    assert graph_distance(second, first) == found == graph_distance(other, second)
    assert graph_distance(first, other).edits == 0


@given(graphs(), graphs(), graphs())
@settings(max_examples=50)
def test_triangle_inequality(first: CallGraph, second: CallGraph, third: CallGraph) -> None:
    there = graph_distance(first, second).edits + graph_distance(second, third).edits
    assert graph_distance(first, third).edits <= there


@given(graphs(6), graphs(6))
def test_share_is_between_equal_and_nothing_in_common(first: CallGraph, second: CallGraph) -> None:
    found = graph_distance(first, second)
    assert 0.0 <= found.share <= 1.0
    assert (found.share == 0.0) == (found.edits == 0)


def test_share_is_one_where_nothing_can_be_kept() -> None:
    gold = CallGraph(("a", "b"), {(0, 1): Counter([None])})
    assert graph_distance(gold, CallGraph(())).share == 1.0
    assert graph_distance(gold, CallGraph(("c", "d"))).share == 1.0
    assert graph_distance(CallGraph(()), CallGraph(())).share == 0.0


def test_several_references_between_two_calls_are_one_edge_of_the_distance() -> None:
    once = CallGraph(("a", "b"), {(0, 1): Counter(["x"])})
    twice = CallGraph(("a", "b"), {(0, 1): Counter(["x", "y"])})
    assert graph_distance(once, twice).edits == 0
    costs = np.zeros((2, 2), dtype=np.int64)
    assert edit(once, twice, costs, 5).cost == 1  # as labelled graphs they differ by one


def test_equal_graphs_of_twelve_nodes_are_exact_at_once() -> None:
    chain = CallGraph(tuple("aabbccddeeff"), {(i, i + 1): Counter([None]) for i in range(11)})
    found = graph_distance(chain, chain, budget=20_000)
    assert (found.edits, found.exact) == (0, True)


def test_twelve_equal_calls_do_not_explode() -> None:
    many, more = CallGraph(("a",) * 12), CallGraph(("a",) * 11 + ("b",))
    found = graph_distance(many, more, budget=60_000)
    assert (found.edits, found.exact) == (1, True)


@given(graphs(6), graphs(6))
def test_without_budget_the_distance_is_an_upper_bound_and_says_so(
    first: CallGraph, second: CallGraph
) -> None:
    short, exact = graph_distance(first, second, budget=0), graph_distance(first, second)
    assert short.edits >= exact.edits
    assert short.share <= 1.0
    if short.edits > exact.edits:
        assert not short.exact


def test_of_equal_calls_the_first_ones_are_paired() -> None:
    gold, plan = CallGraph(("a", "b")), CallGraph(("a", "b", "a", "b"))
    names = np.array([[int(x != y) for y in plan.labels] for x in gold.labels])
    assert edit(gold, plan, names, 1).mapping == (0, 1)


@pytest.mark.parametrize("extra", [1, 3])
def test_nodes_beyond_the_smaller_graph_are_inserted(extra: int) -> None:
    first = CallGraph(("a",))
    second = CallGraph(("a",) + ("z",) * extra, {(0, 1): Counter([None])})
    assert graph_distance(first, second).edits == extra + 1


def test_the_first_mapping_that_is_found_need_not_be_the_best() -> None:
    def graph(labels: str, *edges: Pair) -> CallGraph:
        return CallGraph(tuple(labels), {pair: Counter([None]) for pair in edges})

    first = graph("aabaaba", (0, 6), (1, 4), (3, 4), (3, 5), (3, 6), (4, 5), (4, 6), (5, 6))
    second = graph(
        "ababbaa",
        *((0, 3), (0, 4), (0, 6), (1, 2), (1, 3), (1, 5), (2, 3), (3, 5), (3, 6), (4, 5)),
    )
    assert graph_distance(first, second).edits == 9  # networkx agrees, in some seconds
    assert graph_distance(first, second, budget=0).edits > 9
