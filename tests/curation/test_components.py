"""Connected components against union-find, and the proof that too few rounds are noticed."""

import pickle
import random
from pathlib import Path

import apache_beam as beam
import pytest

from lmx.curation.pipelines.components import connected_components
from lmx.curation.run import beam_options, choose_runner


def _store(items, path):
    Path(path).write_bytes(pickle.dumps(items))


def components(edges, rounds, tmp_path):
    options = beam_options([])
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    roots, misfits = connected_components(pipeline | beam.Create(edges), rounds=rounds, label="c")
    roots | "roots list" >> beam.combiners.ToList() | "roots" >> beam.Map(_store, str(tmp_path / "roots"))
    misfits | "misfits list" >> beam.combiners.ToList() | "misfits" >> beam.Map(_store, str(tmp_path / "misfits"))
    pipeline.run().wait_until_finish()
    found, wrong = (pickle.loads((tmp_path / name).read_bytes()) for name in ("roots", "misfits"))
    assert len(dict(found)) == len(found) or wrong
    return dict(found), len(wrong)


def union_find(edges):
    parent = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for a, b in edges:
        a, b = sorted((root(a), root(b)))
        parent[b] = a
    return {node: root(node) for node in parent if root(node) != node}


def names(count, seed):
    draw = random.Random(seed)
    found = [f"{number:05d}" for number in range(count)]
    draw.shuffle(found)
    return found


def graphs():
    draw = random.Random(0)
    nodes = names(300, 1)
    chains = [(a, b) for a, b in zip(nodes[:100], nodes[1:100], strict=False)]  # a chain of a hundred in random order
    sorted_chain = [(f"s{i:03d}", f"s{i + 1:03d}") for i in range(40)]
    star = [("hub", f"x{i}") for i in range(50)]
    loose = [tuple(draw.sample(nodes[100:], 2)) for _ in range(150)]
    return [*chains, *sorted_chain, *star, *loose, *star[:5], ("same", "same")]


def test_components_agree_with_union_find_on_chains_stars_and_random_graphs(tmp_path):
    edges = graphs()
    found, wrong = components(edges, 6, tmp_path)
    assert wrong == 0
    assert found == union_find([edge for edge in edges if edge[0] != edge[1]])


def test_too_few_rounds_are_noticed(tmp_path):
    nodes = names(100, 2)
    found, wrong = components(list(zip(nodes, nodes[1:], strict=False)), 1, tmp_path)
    assert wrong > 0


@pytest.mark.parametrize("edges", [[], [("a", "b")], [("b", "a"), ("a", "b")]])
def test_trivial_graphs(tmp_path, edges):
    assert components(edges, 1, tmp_path) == ({"b": "a"} if edges else {}, 0)
