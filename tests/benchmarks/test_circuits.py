"""What is timed is the circuit: against a sum over all its trees, and with the gradient of every weight."""

import itertools

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.benchmarks import circuits
from tfstruct.distributions.region_graph import RegionGraph, random_binary_trees


def small():
    return circuits.make_circuit(random_binary_trees(4, depth=1, repetitions=2, seed=0), num_leaves=2, num_sums=1)


def test_densities_are_a_mixture_of_products_and_sum_to_one():
    circuit = small()
    x = np.array(list(itertools.product([0.0, 1.0], repeat=4)), np.float32)
    found = np.asarray(circuits.log_prob(circuit, circuit.leaf_logits, circuit.log_weights, x), np.float64)
    assert np.logaddexp.reduce(found) == pytest.approx(0.0, abs=1e-6)
    # By hand: each tree divides the variables in two regions with two leaves each.
    p = 1.0 / (1.0 + np.exp(-circuit.leaf_logits.astype(np.float64)))
    expected, graph = np.zeros(16), circuit.layout.graph
    weights = iter(np.exp(circuit.log_weights.astype(np.float64)))
    for children in graph.partitions_of(graph.root):
        places = [graph.leaf_regions.index(child) for child in children]
        for leaves in itertools.product(range(2), repeat=2):
            product = next(weights)
            for place, leaf in zip(places, leaves, strict=True):
                values = x[:, circuit.variables[place]]
                product = product * np.prod(np.where(values > 0, p[place, leaf], 1.0 - p[place, leaf]), axis=1)
            expected += product
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)


def test_every_way_runs_and_says_what_it_costs():
    circuit = small()
    ways = circuits.circuit_ways(circuit, np.zeros([6, 4]), passes=3)
    assert list(ways)[:2] == ["tfstruct, XLA", "tfstruct, graph"]
    for way in list(ways.values())[:2]:
        way.make()()
        assert way.work == 18
        assert way.cost.operations > 0


def test_a_round_of_every_way_makes_all_passes(monkeypatch):
    passes = []
    monkeypatch.setattr(circuits, "RIVALS", circuits.Registry("rival of circuits"))
    circuits.register_rival("one that counts", lambda circuit, rows: lambda: lambda: passes.append(len(rows)))
    way = circuits.circuit_ways(small(), np.zeros([6, 4]), passes=3)["one that counts"]
    way.make()()
    assert sum(passes) == way.work == 18


def test_leaves_of_several_sizes_are_refused():
    graph = RegionGraph(3, [(0, 1, 2), (0,), (1, 2)], [(0, (1, 2))])
    with pytest.raises(ValueError, match=r"leaf regions must have one size for this measure, found \[1, 2\]"):
        circuits.make_circuit(graph, num_leaves=2, num_sums=1)


def test_the_program_measures_the_circuit_of_a_preset(tmp_path):
    settings = ["--set=data.event_shape=(8,)", "--set=model.structure=random", "--set=model.tree_depth=2"]
    name = "spvae/tiny"
    done = tiny.run_program(
        "benchmark", "--measure=circuit", f"--preset={name}", *settings, "--steps=2", "--rounds=2",
        f"--output={tmp_path / 'circuit.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tfstruct, XLA" in done.stdout
    assert (tmp_path / "circuit.json").exists()
    done = tiny.run_program("benchmark", "--measure=circuit", "--preset=graph_vae/tiny")
    assert done.returncode == 1
    assert "--measure=circuit is for sum-product VAEs, found --preset=graph_vae/tiny" in done.stderr
