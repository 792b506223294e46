"""Every system with its tiny preset, and every public layer with a constructor and an input."""

import importlib
import inspect
import itertools
import pkgutil

import keras
import numpy as np
import tensorflow as tf

import tests.outside.vamp_vae  # noqa: F401  (registers a system as an outside package does)
import tfstruct.layers
import tfstruct.models
from tfstruct import random
from tfstruct.distributions.region_graph import poon_domingos
from tfstruct.layers import flow, grouped, likelihood, made, mlp, precision, sum_product
from tfstruct.models.boltzmann_vae import networks as boltzmann
from tfstruct.models.graph_vae import gates as edge_gates
from tfstruct.models.sum_product_vae import components as gaussian_components
from tfstruct.models.sum_product_vae import networks as leaf_networks

#: registered system -> presets that between them use every part of it
SYSTEMS = {
    "graph_vae": ("graph_vae/tiny", "vae/tiny", "ladder_vae/tiny", "fc_vae/tiny", "iaf_vae/tiny", "graph_iaf_vae/tiny"),
    "boltzmann_vae": ("boltzmann_vae/tiny",),
    "vamp_vae": ("vamp_vae/tiny",),
    "sum_product_vae": ("spvae/tiny", "spvae/tiny_components", "dense_vae/tiny", "conv_spvae/tiny", "conv_vae/tiny"),
}

_OPTIONS = mlp.BlockOptions("elu")
_ADJACENCY = np.tri(3, k=-1, dtype=bool)
_KEY = random.key(17)

#: layer class -> (constructor, shape to build for, call on a batch size)
LAYERS = {
    mlp.MLP: (
        lambda: mlp.MLP((4, 3), 2, _OPTIONS),
        (None, 5),
        lambda layer, batch: layer(tf.ones([batch, 5])),
    ),
    mlp.NodeHeads: (
        lambda: mlp.NodeHeads(3, 2),
        (None, 3, 4),
        lambda layer, batch: layer(tf.ones([batch, 3, 4])),
    ),
    mlp.BottomUp: (
        lambda: mlp.BottomUp(3, 2, 4, _OPTIONS),
        (None, 5),
        lambda layer, batch: layer(tf.ones([batch, 5])),
    ),
    made.MADE: (
        lambda: made.MADE(3, (4, 5), context_dim=2),
        None,
        lambda layer, batch: layer(tf.ones([batch, 3]), tf.ones([batch, 2])),
    ),
    flow.InverseAutoregressiveFlow: (
        lambda: flow.InverseAutoregressiveFlow(3, 2, (4, 5), context_dim=2),
        None,
        lambda layer, batch: layer(tf.ones([batch, 3]), tf.ones([batch, 2])),
    ),
    mlp.TopDown: (
        lambda: mlp.TopDown(_ADJACENCY, (1, 2), 2, 4, _OPTIONS),
        None,
        lambda layer, batch: layer([tf.ones([batch, 2]), tf.ones([batch, 4])]),
    ),
    precision.Dense: (
        lambda: precision.Dense(2),
        (None, 4),
        lambda layer, batch: layer(tf.ones([batch, 4])),
    ),
    grouped.GroupedDense: (
        lambda: grouped.GroupedDense(3, 2),
        (None, 3, 4),
        lambda layer, batch: layer(tf.ones([batch, 3, 4])),
    ),
    grouped.Normalization: (
        lambda: grouped.Normalization([3], momentum=0.9, epsilon=1e-5, synchronized=False),
        None,
        lambda layer, batch: layer(tf.ones([batch, 3])),
    ),
    grouped.LayerNormalization: (
        lambda: grouped.LayerNormalization([2, 3], epsilon=1e-5),
        None,
        lambda layer, batch: layer(tf.ones([batch, 2, 3]) * tf.range(3.0)),
    ),
    boltzmann.BoltzmannPrior: (
        lambda: boltzmann.BoltzmannPrior((3, 2), 4),
        None,
        lambda layer, batch: layer(tf.ones([batch, 5])),
    ),
    boltzmann.BoltzmannHead: (
        lambda: boltzmann.BoltzmannHead((3, 2), _OPTIONS),
        (None, 4),
        lambda layer, batch: layer(tf.ones([batch, 4])),
    ),
    boltzmann.DirectedHead: (
        lambda: boltzmann.DirectedHead(6, 2),
        (None, 4),
        lambda layer, batch: layer(tf.ones([batch, 4])),
    ),
    edge_gates.EdgeGates: (
        lambda: edge_gates.EdgeGates(_ADJACENCY, trainable=True),
        None,
        lambda layer, batch: layer(tf.constant(_KEY), tf.constant(0.5)),
    ),
    sum_product.SumProduct: (
        lambda: sum_product.SumProduct(poon_domingos((4, 6), 2), num_leaves=2, num_sums=2),
        None,
        lambda layer, batch: layer(tf.ones([batch, 12]) * tf.range(12.0)),
    ),
    gaussian_components.GaussianComponents: (
        lambda: gaussian_components.GaussianComponents(3, 5, 4),
        None,
        lambda layer, batch: layer(tf.ones([3, batch, 4])),
    ),
    leaf_networks.LeafDense: (
        lambda: leaf_networks.LeafDense(3, 2),
        (3, None, 4),
        lambda layer, batch: layer(tf.ones([3, batch, 4])),
    ),
    leaf_networks.LeafConv: (
        lambda: leaf_networks.LeafConv(3, 2, stride=2),
        (3, None, 4, 6, 5),
        lambda layer, batch: layer(tf.ones([3, batch, 4, 6, 5])),
    ),
    leaf_networks.LeafMLP: (
        lambda: leaf_networks.LeafMLP(3, (5, 4), 2, num_networks=2),
        (3, None, 6),
        lambda layer, batch: layer(tf.ones([3, batch, 6])),
    ),
    leaf_networks.LeafConvEncoder: (
        lambda: leaf_networks.LeafConvEncoder(3, (4, 8, 2), (2, 3), 2, 5, 4),
        None,
        lambda layer, batch: layer(tf.ones([3, batch, 64])),
    ),
    leaf_networks.LeafConvDecoder: (
        lambda: leaf_networks.LeafConvDecoder(3, (4, 8, 2), (2, 3), 2, num_heads=2),
        (3, None, 5),
        lambda layer, batch: layer(tf.ones([3, batch, 5])),
    ),
    likelihood.Likelihood: (
        lambda: likelihood.make_likelihood("bernoulli", (4,)),
        (None, 4),
        lambda layer, batch: layer.log_prob(tf.ones([batch, 4]), tf.ones([batch, 4])),
    ),
    likelihood.GaussianLikelihood: (
        lambda: likelihood.GaussianLikelihood(4, -7.0),
        (None, 4),
        lambda layer, batch: layer.log_prob(tf.ones([batch, 4]), tf.ones([batch, 4])),
    ),
}


def public_layers():
    """Every public Keras layer that a module of tfstruct.layers or of a system defines."""
    found = set()
    packages = [
        pkgutil.walk_packages(part.__path__, f"{part.__name__}.") for part in (tfstruct.layers, tfstruct.models)
    ]
    for info in itertools.chain(*packages):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            is_own = inspect.isclass(value) and value.__module__ == module.__name__
            is_layer = is_own and issubclass(value, keras.layers.Layer) and not issubclass(value, keras.Model)
            if is_layer and not name.startswith("_"):
                found.add(value)
    return found
