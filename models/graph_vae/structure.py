"""What a Graph VAE makes of its latents and of the edges between them."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfstruct import progress, random
from tfstruct.inference.held_out import HeldOutScorer
from tfstruct.inference.likelihood import LikelihoodEstimate
from tfstruct.math import mean_and_std_err

if TYPE_CHECKING:
    from tfstruct.models.graph_vae.model import GraphVAE

#: A gate nearer than this to 0 or 1 counts as decided.
DECIDED = 0.1
#: Undecided gates that are summed over; of more the least decided ones.
MAX_ENUMERATED_GATES = 6
#: Variance of its mean beyond which a latent is active (Burda, Grosse & Salakhutdinov, ICLR 2016, section 5.1).
ACTIVE_VARIANCE = 0.01
_RATE_SAMPLES = 10


class LatentUse:
    """Measures which latents of a Graph VAE depend on the observation; traced once for any weights and rows.

    References:
        Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016, section 5 (active units).
    """

    def __init__(self, model: "GraphVAE") -> None:
        self.model = model
        self._measure = tf.function(
            self._measure_batch,
            input_signature=[
                tf.TensorSpec([None, *model.event_shape], tf.float32),
                tf.TensorSpec([None, 2], tf.uint32),
            ],
            autograph=False,
        )

    def _measure_batch(self, x: tf.Tensor, row_keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rates = self.model.node_rates(x, seed=row_keys, num_samples=_RATE_SAMPLES)
        return self.model.encode(x)["z_mean"], tf.reduce_sum(rates, axis=0)

    def __call__(self, rows: np.ndarray, *, batch_size: int, seed: int) -> dict[str, Any]:
        """Measures the model's current weights on rows [n, *event_shape].

        Returns:
            `active_units`: of every node the number of its `units_per_node` latents whose posterior mean, at the means
            of the parents, has a variance over the rows above 0.01; `node_rates`: of every node the mean KL of q(z_i |
            x, parents) from p(z_i | parents), nats, by 10 samples a row; they sum to the rate.
        """
        key = random.fold_in(random.fold_in(random.key(seed), random.DIAGNOSTICS), 0)
        means, rates = [], np.zeros(self.model.num_nodes)
        for start in progress.track(range(0, len(rows), batch_size), "batch", "measuring the use of latents"):
            x = np.asarray(rows[start : start + batch_size], np.float32)
            mean, rate = self._measure(tf.constant(x), random.fold_in(key, start + tf.range(len(x))))
            means.append(mean.numpy())
            rates += rate.numpy()
        variance = np.concatenate(means).astype(np.float64).var(axis=0)
        active = (variance > ACTIVE_VARIANCE).reshape(self.model.num_nodes, self.model.node_dim)
        return {
            "active_units": active.sum(axis=1).tolist(),
            "units_per_node": self.model.node_dim,
            "node_rates": (rates / len(rows)).tolist(),
        }


class _GateScores:
    """Estimates of the same rows with the same importance-sample keys, by gates; each gates [N, N] scored once."""

    def __init__(self, scorer: HeldOutScorer, parameters: Any, statistics: Any, rows: np.ndarray, seed: int) -> None:
        self.scorer, self.weights, self.rows, self.seed = scorer, (parameters, statistics), rows, seed
        self.known: dict[bytes, LikelihoodEstimate] = {}

    def __call__(self, gates: np.ndarray) -> LikelihoodEstimate:
        gates = np.ascontiguousarray(gates, np.float32)
        if gates.tobytes() not in self.known:
            estimate = self.scorer(*self.weights, self.rows, seed=self.seed, gates=gates)
            self.known[gates.tobytes()] = LikelihoodEstimate(*(np.asarray(part, np.float64) for part in estimate))
        return self.known[gates.tobytes()]


def edge_effects(
    scorer: HeldOutScorer, parameters: np.ndarray, statistics: np.ndarray, rows: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """Measures how log p(x) of a Graph VAE changes when edges are closed and opened.

    Every change is that of the estimate by K importance samples, with p(x, z | c) and q(z | x, c) at the changed gates
    c, from the one at the most probable gates, on the same rows with the same keys. A change is negative where the edge
    is better as it is. Both estimates are below log p(x): with few samples a change is partly one of the bound's
    tightness.

    Args:
        scorer: of the model; compiled once for all gates.
        parameters: [P].
        statistics: [S].
        rows: [n, *event_shape].
        seed: of the importance samples.

    Returns:
        `num_samples`, `images`, `log_likelihood` and `elbo` at the most probable gates, nats; `edges`, of every
        possible edge `child`, `parent`, `probability`, `is_open`, and `change`, `std_err` and `elbo_change` when it
        alone is flipped; `all_open` and `all_closed`, the same changes; and `undecided`, None where all gates are
        decided, else the `edges` summed over and the `log_likelihood` of the mixture over their states, with its
        `change` from the most probable gates. Standard errors are those over images of the paired differences.
    """
    model = scorer.model
    scorer.functional.assign(parameters, statistics)
    scores = _GateScores(scorer, parameters, statistics, rows, seed)
    hard, probabilities = model.gates.hard().numpy(), model.gates.probabilities().numpy().astype(np.float64)
    rounded = scores(hard)
    edges = []
    flips = list(zip(model.gates.edges, probabilities, strict=True))
    for (child, parent), probability in progress.track(flips, "edge", "flipping edges"):
        gates = hard.copy()
        gates[child, parent] = 1.0 - gates[child, parent]
        edges.append(
            {
                "child": int(child),
                "parent": int(parent),
                "probability": float(probability),
                "is_open": bool(hard[child, parent]),
            }
            | _change(scores(gates), rounded)
        )
    possible = model.gates.matrix(tf.ones([len(edges)])).numpy()
    return {
        "num_samples": scorer.num_samples,
        "images": len(rows),
        "log_likelihood": float(rounded.log_prob.mean()),
        "elbo": float(rounded.elbo.mean()),
        "edges": edges,
        "all_open": _change(scores(possible), rounded),
        "all_closed": _change(scores(np.zeros_like(hard)), rounded),
        "undecided": _undecided_gates(scores, hard, model.gates.edges, probabilities),
    }


def _change(changed: LikelihoodEstimate, rounded: LikelihoodEstimate) -> dict[str, float]:
    change, std_err = mean_and_std_err(changed.log_prob - rounded.log_prob)
    return {"change": change, "std_err": std_err, "elbo_change": float(np.mean(changed.elbo - rounded.elbo))}


def _undecided_gates(
    scores: _GateScores, hard: np.ndarray, edges: list[tuple[int, int]], probabilities: np.ndarray
) -> dict[str, Any] | None:
    """The mean of log sum_c P(c) p(x | c) over the states c of the undecided gates; the others are rounded."""
    uncertainty = np.minimum(probabilities, 1.0 - probabilities)
    undecided = [int(edge) for edge in np.argsort(-uncertainty, kind="stable") if uncertainty[edge] > DECIDED]
    undecided = sorted(undecided[:MAX_ENUMERATED_GATES])
    if not undecided:
        return None
    terms = []
    combinations = list(itertools.product((0.0, 1.0), repeat=len(undecided)))
    for states in progress.track(combinations, "state", "averaging over undecided edges"):
        gates, log_prob = hard.copy(), 0.0
        for edge, state in zip(undecided, states, strict=True):
            gates[edges[edge]] = state
            log_prob += np.log(probabilities[edge] if state else 1.0 - probabilities[edge])
        terms.append(log_prob + scores(gates).log_prob)
    mixture = np.logaddexp.reduce(terms, axis=0)
    change, std_err = mean_and_std_err(mixture - scores(hard).log_prob)
    return {
        "edges": [[int(node) for node in edges[edge]] for edge in undecided],
        "log_likelihood": float(mixture.mean()),
        "change": change,
        "std_err": std_err,
    }


def undecided_flags(report: Mapping[str, Any]) -> list[str]:
    """Returns the flags of gates that have not decided, now or when they were fixed, by a structure's report."""
    flags = []
    uncertainty = report.get("largest_gate_uncertainty", 0.0)
    if uncertainty > DECIDED:
        flags.append(
            f"undecided: a gate has probability {uncertainty:.2f} of being the other way; evaluation rounds it, "
            "and with --edges also averages over it"
        )
    uncertainty = report.get("largest_gate_uncertainty_when_fixed", 0.0)
    if uncertainty > DECIDED:
        flags.append(
            f"undecided: a gate had probability {uncertainty:.2f} of being the other way when it was rounded and fixed"
        )
    return flags
