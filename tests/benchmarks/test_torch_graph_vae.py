"""The PyTorch rival computes what the Graph VAE computes: a comparison of other models would be worth nothing."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.inference.objectives import Draws
from tfstruct.models import presets, registry

torch = pytest.importorskip("torch", reason="PyTorch is installed only where one wants to compare with it")


def to_torch(array, transposed=False):
    array = np.asarray(array)
    return torch.from_numpy(np.array(array.T if transposed else array, order="C"))


def copy_blocks(layers, dense, normalizations):
    """Kernels, scales and offsets of an MLP of Keras into blocks of PyTorch."""
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    normal = [layer for layer in layers if isinstance(layer, torch.nn.BatchNorm1d)]
    for layer, (kernel, bias) in zip(linear, dense, strict=True):
        layer.weight.data = to_torch(kernel, transposed=True)
        if bias is not None:
            layer.bias.data = to_torch(bias)
    for layer, (gamma, beta) in zip(normal, normalizations, strict=True):
        layer.weight.data, layer.bias.data = to_torch(gamma), to_torch(beta)


def copy_heads(rival, heads, place=slice(None)):
    rival.first.data = to_torch(heads.projection.kernel[place])
    rival.first_bias.data = to_torch(heads.projection.bias[place])
    rival.second.data = to_torch(heads.parameters_layer.kernel[place])
    rival.second_bias.data = to_torch(heads.parameters_layer.bias[place])


def copy_weights(model, rival):
    scale = lambda layer: (layer.normalization.gamma, layer.normalization.beta)  # noqa: E731
    for name in ("encoder", "decoder"):
        source = getattr(model, name)
        dense = [(layer.kernel, layer.bias) for layer in (*source.dense, source.output_layer)]
        copy_blocks(getattr(rival, name), dense, [scale(layer) for layer in source.normalizations])
    source = model.bottom_up
    copy_blocks(rival.bottom_up, [(source.dense.kernel, None)], [scale(source.normalization)])
    copy_heads(rival.bottom_up_heads, source.heads)
    prior = model.prior_top_down
    gammas, betas = (np.reshape(values, [len(model.children), -1]) for values in scale(prior.normalization))
    for place, node in enumerate(model.children):
        own = model.posterior_top_down[place]
        copy_blocks(rival.posterior_top_down[str(node)].block, [(own.kernels[0], None)], [scale(own.normalization)])
        copy_heads(rival.posterior_top_down[str(node)].heads, own.heads)
        copy_blocks(
            rival.prior_top_down[str(node)].block, [(prior.kernels[place], None)], [(gammas[place], betas[place])]
        )
        copy_heads(rival.prior_top_down[str(node)].heads, prior.heads, slice(place, place + 1))


def test_bound_and_gradients_equal_those_of_the_rival(rng):
    from tests.benchmarks import torch_graph_vae

    config = presets.get("graph_vae/tiny", [*tiny.SMALL, "objective.gradient=plain"])
    model = registry.build(config)
    for variable in model.trainable_weights:
        variable.assign(rng.normal(scale=0.3, size=variable.shape))
    rival = torch_graph_vae.GraphVAE(config)
    assert torch_graph_vae.supports(config)
    assert sum(weight.numel() for weight in rival.parameters()) == model.count_params() - sum(
        int(np.prod(variable.shape)) for variable in model.non_trainable_weights
    )
    copy_weights(model, rival)
    x = rng.integers(0, 2, size=[16, *config.data.event_shape]).astype(np.float32)
    gates = np.linspace(0.2, 0.9, len(model.gates.edges)).astype(np.float32)
    key = random.key(3)
    with tf.GradientTape() as tape:
        terms = model.terms(
            tf.constant(x), Draws(key, 1, training=True, shared_seed=key, options={"gates": model.gates.matrix(gates)})
        )
        bound = tf.reduce_mean(terms.log_likelihood + terms.log_prior - terms.log_posterior)
    noise = random.sample_normal(key, 1, 16, [model.num_nodes, model.node_dim])[0].numpy()
    log_likelihood, rate = rival(torch.from_numpy(x.reshape(16, -1)), torch.from_numpy(gates), torch.from_numpy(noise))
    (log_likelihood - rate).backward()
    np.testing.assert_allclose((log_likelihood - rate).item(), float(bound), rtol=1e-5)
    kernel, node = model.encoder.dense[0].kernel, model.posterior_top_down[-1].kernels[0]
    found = [rival.encoder[0].weight.grad.T, rival.posterior_top_down[str(model.children[-1])].block[0].weight.grad.T]
    for expected, gradient in zip(tape.gradient(bound, [kernel.value, node.value]), found, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(tf.reduce_max(tf.abs(expected))))


def test_a_round_of_the_rival_trains(rng):
    from tests.benchmarks import torch_graph_vae
    from tfstruct.training.data import load_data

    config = presets.get("graph_vae/tiny", [*tiny.SMALL, "objective.gradient=plain"])
    data = load_data(config)
    run = torch_graph_vae.make_rounds(config, data, 60)
    first = run()
    assert run() > first + 5.0  # nats; log p(x | z) of the last batch
