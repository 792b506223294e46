"""The same circuit in SPFlow: `tfstruct-benchmark --measure=circuit --import=tests.benchmarks.spflow_circuit`.

A RAT-SPN with outer products, whose random trees are those of the circuit. It needs `pip install spflow`, which the
project does not.
"""

import numpy as np
import torch
from spflow.meta.data import Scope
from spflow.modules.leaves import Bernoulli
from spflow.modules.rat import Factorize
from spflow.modules.sums import Sum
from spflow.modules.sums.repetition_mixing_layer import RepetitionMixingLayer
from spflow.zoo.rat import RatSPN

from tfstruct.benchmarks.circuits import register_rival


def trees(graph):
    """The regions of each tree by their path from the root, (): both sides of each cut in turn; None: no such trees."""

    def tree(cut):
        found = {(): graph.root} | {(side,): child for side, child in enumerate(cut)}
        waiting = list(found)[1:]
        while waiting:
            path = waiting.pop()
            cuts = graph.partitions_of(found[path])
            if len(cuts) > 1 or any(len(children) != 2 for children in cuts):
                return None
            for side, child in enumerate(cuts[0] if cuts else ()):
                found[*path, side] = child
                waiting.append((*path, side))
        return found

    found = [tree(cut) for cut in graph.partitions_of(graph.root) if len(cut) == 2]
    depths = [{len(path) for path, region in each.items() if not graph.partitions_of(region)} for each in found if each]
    used = [region for each in found if each for path, region in each.items() if path]
    if len(set(used)) < len(used):  # SPFlow's trees share nothing but the root
        return None
    is_even = len(depths) == len(graph.partitions_of(graph.root)) and all(depth == depths[0] for depth in depths)
    return found if found and is_even and len(depths[0]) == 1 else None


def feature(path):
    """Where SPFlow has a region: its consecutive splits pair a feature with that half of all features further on."""
    return sum(side << level for level, side in enumerate(path))


def modules(root, kind):
    return [module for module in root.modules() if isinstance(module, kind)]


def make_model(circuit):
    """A RAT-SPN with the circuit's trees and weights; None for other circuits."""
    layout, graph = circuit.layout, circuit.layout.graph
    found = trees(graph)
    if found is None or layout.products != "cross":
        return None
    depth, repetitions = max(map(len, found[0])), len(found)
    leaf = Bernoulli(
        Scope(list(range(graph.num_variables))),
        out_channels=layout.num_leaves,
        num_repetitions=repetitions,
        validate_args=False,
    )
    model = RatSPN([leaf], 1, layout.num_sums, repetitions, depth, outer_product=True)
    (factorize,), sums = modules(model, Factorize), modules(model, Sum)
    (mixing,) = modules(model, RepetitionMixingLayer)
    sums = sorted((each for each in sums if each is not mixing), key=lambda each: each.in_shape.features)
    factorize.indices.zero_()
    logits = torch.zeros_like(leaf.logits)
    for repetition, regions in enumerate(found):
        for path, region in regions.items():
            if len(path) == depth:
                place = graph.leaf_regions.index(region)
                variables = circuit.variables[place]
                factorize.indices[variables, feature(path), repetition] = 1.0
                logits[variables, :, repetition] = torch.from_numpy(circuit.leaf_logits[place].T.copy())
    leaf.logits = logits
    weights = [np.zeros(tuple(each.logits.shape), np.float32) for each in sums]
    for level, regions_of_level in zip(layout.levels, graph.levels[1:], strict=True):
        for place, region in enumerate(regions_of_level):
            own = circuit.log_weights[level.weight_places[place]]  # [sums, products]
            for repetition, regions in enumerate(found):
                for path in (path for path, other in regions.items() if other == region):
                    part = np.split(own, repetitions, axis=1)[repetition] if not path else own
                    weights[len(path)][feature(path), :, :, repetition] = part.T
    mixture = np.logaddexp.reduce(weights[0][0, :, 0], axis=0)  # log weight of each repetition
    with torch.no_grad():
        mixing.logits.copy_(torch.from_numpy(mixture).reshape(mixing.logits.shape))
        for each, values in zip(sums, weights, strict=True):
            each.logits.copy_(torch.from_numpy(values))
    return model


def make_runs(compiled):
    def rival(circuit, rows):
        if trees(circuit.layout.graph) is None or circuit.layout.products != "cross":
            return None

        def make():
            model = make_model(circuit)
            x = torch.from_numpy(np.asarray(rows, np.float32))
            score = torch.compile(model.log_likelihood) if compiled else model.log_likelihood

            def run():
                model.zero_grad()
                score(x).mean().backward()

            return run

        return make

    return rival


register_rival("SPFlow, eager", make_runs(False))
register_rival("SPFlow, torch.compile", make_runs(True))
