"""Small sum-product VAEs and their NumPy float64 twin: leaf by leaf, and exact leaf densities by quadrature."""

import numpy as np

from tests.reference import networks
from tests.reference.sum_product import Circuit
from tests.trainers import tiny
from tfstruct.models import registry

SHAPE = (2, 2)
_QUADRATURE = np.linspace(-9.0, 9.0, 3_601)


def system(*overrides, event_shape=SHAPE, scale=0.7, seed=17, **model):
    """A small system with random weights everywhere, on binary pixels unless told otherwise."""
    options = {"delta": 1, "num_latents": 1, "hidden_units": (3, 4), "likelihood": "bernoulli", **model}
    built = registry.build(tiny.changed("spvae/tiny", overrides, event_shape=event_shape, **options))
    networks.randomize(built, np.random.default_rng(seed), scale)
    # A posterior that is near the prior, and so not too far from the exact one.
    networks.randomize(built.encoder, np.random.default_rng(seed + 2), 0.4 * scale)
    if built.leaves.leaves_per_vae > 1:  # components that the posterior covers
        networks.randomize(built.components, np.random.default_rng(seed + 3), 0.4 * scale)
    built.pixel_mean.assign(np.random.default_rng(seed + 1).uniform(0.1, 0.9, size=built.dims))
    return built


def every_image(event_shape=SHAPE):
    """All binary images, [2**D, *event_shape]."""
    dims = int(np.prod(event_shape))
    bits = (np.arange(2**dims)[:, np.newaxis] >> np.arange(dims)) & 1
    return bits.reshape(-1, *event_shape).astype(np.float32)


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0)


def mlp(layer, leaf, inputs):
    """Outputs of every network of one leaf of a LeafMLP: inputs [N, I] to a list of [N, O]."""
    num_networks, num_leaves = layer.num_networks, layer.num_leaves
    first_kernel, first_bias = (np.asarray(weight, np.float64) for weight in (layer.first.kernel, layer.first.bias))
    width = first_kernel.shape[-1] // num_networks
    outputs = []
    for network in range(num_networks):
        columns = slice(network * width, (network + 1) * width)
        features = inputs @ first_kernel[leaf][:, columns] + first_bias[leaf][:, columns]
        for later in layer.later:
            place = network * num_leaves + leaf
            kernel, bias = np.asarray(later.kernel, np.float64)[place], np.asarray(later.bias, np.float64)[place]
            features = softplus(features) @ kernel + bias
        outputs.append(features)
    return outputs


def variables_of(model, leaf):
    """The pixels of a leaf."""
    region = model.graph.leaf_regions[leaf // model.sum_product.layout.num_leaves]
    return list(model.graph.regions[region])


def log_prior(model, leaf, z):
    """Log density of latents [N, Z] under the prior of a leaf, [N]."""
    mean, precision = np.zeros(z.shape[-1]), np.ones(z.shape[-1])
    if model.leaves.leaves_per_vae > 1:
        vae, component = divmod(leaf, model.leaves.leaves_per_vae)
        mean = np.asarray(model.components.mean, np.float64)[vae, component]
        precision = 1.0 + np.exp(np.asarray(model.components.log_excess, np.float64)[vae, component])
    return 0.5 * (np.log(precision / (2.0 * np.pi)) - precision * (z - mean) ** 2).sum(axis=-1)


def bernoulli(outputs, x):
    """Log p of every pixel."""
    return x * outputs[0] - softplus(outputs[0])


def gaussian(outputs, x):
    """Log density of every pixel: mean sigmoid(f), precision 1 + g^2."""
    precision = 1.0 + outputs[1] ** 2
    mean = 1.0 / (1.0 + np.exp(-outputs[0]))
    return 0.5 * np.log(precision / (2.0 * np.pi)) - 0.5 * precision * (x - mean) ** 2


def terms(model, x, noise, log_pixel=bernoulli, observed=None):
    """log p(x | z), log p(z), log q(z | x), each [K, B, L], of noise [K, B, V, Z]."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    mask = np.ones(flat.shape, bool) if observed is None else np.asarray(observed).reshape(flat.shape)
    shape = (*noise.shape[:2], model.num_leaves)
    result = np.zeros([3, *shape])
    scale, fill = model.likelihood.scale, np.asarray(model.pixel_mean, np.float64)
    for leaf in range(shape[2]):
        chosen = variables_of(model, leaf)
        # Leaves of smaller regions read zeros in the places that they do not have.
        inputs = np.zeros([len(x), model.scopes.size, 1 + model.config.model.mask_input])
        inputs[:, : len(chosen), 0] = np.where(mask, flat / scale, fill)[:, chosen]
        if model.config.model.mask_input:
            inputs[:, : len(chosen), 1] = mask[:, chosen]
        inputs = inputs.reshape(len(x), -1)
        vae = leaf // model.leaves.leaves_per_vae
        mean, root = mlp(model.encoder, vae, inputs)
        precision = 1.0 + root**2
        nothing = ~mask[:, chosen].any(axis=1)
        mean[nothing], precision[nothing] = 0.0, 1.0
        for sample in range(shape[0]):
            draw = noise[sample, :, vae]
            z = mean + draw / np.sqrt(precision)
            outputs = [output[:, : len(chosen)] for output in mlp(model.decoder, vae, z)]
            values = log_pixel(outputs, flat[:, chosen])
            result[0, sample, :, leaf] = np.where(mask[:, chosen], values, 0.0).sum(axis=-1)
            result[1, sample, :, leaf] = log_prior(model, leaf, z)
            log_q = 0.5 * np.log(precision / (2.0 * np.pi)) - 0.5 * draw**2
            result[2, sample, :, leaf] = log_q.sum(axis=-1)
            if model.leaves.leaves_per_vae > 1:  # a component without observed pixels integrates to 1
                result[:, sample, nothing, leaf] = 0.0
    return result


def exact_leaves(model, x, log_pixel=bernoulli, observed=None):
    """Log p_l(x_l) of leaves with one latent, [B, L], by quadrature: the error is below 1e-10."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    mask = np.ones(flat.shape, bool) if observed is None else np.asarray(observed).reshape(flat.shape)
    step = np.log(_QUADRATURE[1] - _QUADRATURE[0])
    result = np.zeros([len(flat), model.num_leaves])
    for leaf in range(model.num_leaves):
        chosen = variables_of(model, leaf)
        z, vae = _QUADRATURE[:, np.newaxis], leaf // model.leaves.leaves_per_vae
        outputs = [output[:, : len(chosen)] for output in mlp(model.decoder, vae, z)]
        for row in range(len(flat)):
            values = log_pixel(outputs, flat[row, chosen])
            log_likelihood = np.where(mask[row, chosen], values, 0.0).sum(axis=-1)
            result[row, leaf] = np.log(np.sum(np.exp(log_likelihood + log_prior(model, leaf, z) + step)))
    return result


def root(model, leaves):
    """Log p(x) of leaf values [B, L], by recursion over regions in float64."""
    layout, logits = model.sum_product.layout, model.sum_product.logits
    circuit = Circuit(
        model.graph, [] if logits is None else logits, layout.num_leaves, layout.num_sums, layout.products
    )
    return np.array([circuit.log_prob(row) for row in np.asarray(leaves, np.float64)])
