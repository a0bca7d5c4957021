"""Connected components of a graph whose edges no single worker could hold.

Reference: Kiveris et al. (2014), "Connected components in MapReduce and beyond": alternating large-star and small-star.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

Edge = tuple[str, str]  # (node, smaller node)


def _both_ways(edge: Edge) -> Iterator[Edge]:
    larger, smaller = max(edge), min(edge)
    if larger != smaller:
        yield larger, smaller
        yield smaller, larger


def _downward(edge: Edge) -> Iterator[Edge]:
    larger, smaller = max(edge), min(edge)
    if larger != smaller:
        yield larger, smaller


def _large_star(group: tuple[str, Iterable[str]]) -> Iterator[Edge]:
    """Ties every larger neighbour of a node to the least among the node and its neighbours."""
    node, neighbours = group
    least = min(node, min(neighbours))
    for neighbour in neighbours:
        if neighbour > node:
            yield neighbour, least


def _small_star(group: tuple[str, Iterable[str]]) -> Iterator[Edge]:
    """Ties a node and its smaller neighbours to the least of these."""
    node, neighbours = group
    least = min(neighbours)
    yield node, least
    for neighbour in neighbours:
        if neighbour != least:
            yield neighbour, least


def _round(edges: Any, label: str) -> Any:
    return (
        edges
        | f"{label}/both ways" >> beam.FlatMap(_both_ways)
        | f"{label}/group neighbours" >> beam.GroupByKey()
        | f"{label}/large star" >> beam.FlatMap(_large_star)
        | f"{label}/downward" >> beam.FlatMap(_downward)
        | f"{label}/group smaller" >> beam.GroupByKey()
        | f"{label}/small star" >> beam.FlatMap(_small_star)
        | f"{label}/distinct" >> beam.Distinct()
    )


def _ends(edge: Edge) -> Iterator[tuple[str, str]]:
    node, root = edge
    yield node, root
    yield root, ""  # "" = it is a root for somebody


def _misfit(group: tuple[str, Iterable[str]]) -> Iterator[int]:
    """1 for a node that has two roots, or has one and is one: then the rounds have not led to the end."""
    _, roots = group
    if len(set(roots)) > 1:
        yield 1


def connected_components(edges: Any, *, rounds: int, label: str) -> tuple[Any, Any]:
    """Adds to the graph: for every node with an edge, the least node of its component.

    Each round costs three groupings of the edges; the number of rounds grows with the logarithm of the longest chain
    (two do for stars, six for chains of a thousand nodes).

    Args:
      edges: PCollection of pairs of different nodes, in any direction, repeated or not.
      rounds: at least 1.
      label: of the nodes in the graph.

    Returns:
      A PCollection of (node, root), without the roots themselves, and one with a 1 for each node that contradicts the result:
      empty when the rounds were enough.
    """
    for number in range(1, rounds + 1):
        edges = _round(edges, f"{label}/round {number}")
    misfits = (
        edges
        | f"{label}/ends" >> beam.FlatMap(_ends)
        | f"{label}/group ends" >> beam.GroupByKey()
        | f"{label}/misfits" >> beam.FlatMap(_misfit)
    )
    return edges, misfits
