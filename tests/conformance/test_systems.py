"""What every system of the registry keeps to, whatever it is."""

import random as python_random

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.systems import SYSTEMS
from tests.reference import networks
from tests.reference.draws import draws, training_draws
from tfstruct import random
from tfstruct.data import load, mnist
from tfstruct.inference.objectives import Draws, group_gradients
from tfstruct.models import presets, registry
from tfstruct.training.loop import device_state
from tfstruct.training.state import initial_state
from tfstruct.training.step import TrainStep

pytestmark = pytest.mark.filterwarnings("ignore:Keras fit starts the samplers")

PRESETS = [preset for names in SYSTEMS.values() for preset in names]
FIRST_PRESETS = [names[0] for names in SYSTEMS.values()]
# Convolutions take seconds to compile, and differ from the other leaves' networks in those alone.
SLOW = ("conv_spvae/tiny", "conv_vae/tiny")
EVERY_SYSTEM = pytest.mark.parametrize(
    "preset", [pytest.param(preset, marks=pytest.mark.slow) if preset in SLOW else preset for preset in PRESETS]
)
# What compiles takes seconds for each preset: by default only those that have code which no other of them has.
DISTINCT = ("graph_vae/tiny", "iaf_vae/tiny", "boltzmann_vae/tiny", "vamp_vae/tiny", "spvae/tiny_components")
EVERY_SYSTEM_COMPILED = pytest.mark.parametrize(
    "preset", [preset if preset in DISTINCT else pytest.param(preset, marks=pytest.mark.slow) for preset in PRESETS]
)
# Keras' own loop takes seconds to trace and sees nothing of the structure: one preset for each system.
EVERY_SYSTEM_ONCE = pytest.mark.parametrize("preset", FIRST_PRESETS)
KEY, SHARED_KEY = random.key(17), random.key(18)
B, K = 8, 2


def _build(preset, seed=17, *overrides):
    return registry.build(presets.get(preset, overrides), seed=seed)


def _images(num=B):
    """Binary images of digits, [num, 28, 28]."""
    return (mnist.read("train")[:num] > 127).astype(np.float32)


def _keys(seeds):
    return random.row_keys(tf.constant(seeds, tf.int64))


def _scheduled(system):
    return {name: tf.constant(0.7) for name in system.needs.schedules}


def _rough(system):
    """The system with all its weights and averages random: an untrained one hides what multiplies zeros."""
    networks.randomize(system, np.random.default_rng(17), 0.3)
    return system


def _numbers(system, x, seed=KEY, **kwargs):
    """The three terms of K samples, [3, K, B], or [3, K, B, L] of leaves."""
    return tf.stack(system.terms(x, draws(seed, K, **kwargs))[:3])


def _assert_close(found, expected, rtol=1e-5):
    for one, two in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        one, two = np.asarray(one), np.asarray(two)
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol * np.abs(two).max(initial=0.0))


def test_every_registered_system_is_listed_and_has_a_tiny_preset():
    assert set(SYSTEMS) == set(registry.SYSTEMS)
    for system, names in SYSTEMS.items():
        assert names
        assert all(presets.get(name).system == system for name in names)


def test_every_preset_named_tiny_is_listed():
    assert {name for name in presets.PRESETS if name.partition("/")[2].startswith("tiny")} == set(PRESETS)


def test_an_unknown_system_lists_the_known_ones():
    text = presets.get(PRESETS[0]).to_json().replace('"system": "', '"system": "x')
    with pytest.raises(ValueError, match="unknown system 'x.*'; did you mean "):
        registry.parse_config(text)


@EVERY_SYSTEM
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("gradient", ["plain", "path"])
def test_every_trainable_weight_gets_a_finite_gradient_that_is_not_zero(preset, objective, gradient):
    overrides = [f"objective.name={objective}", f"objective.gradient={gradient}", "objective.num_samples=3"]
    if preset.startswith("boltzmann_vae/") and gradient == "plain":
        overrides.append("model.posterior=directed")  # the other posterior has no plain gradient
    if "objective.allow_biased_gradient" in presets.get(preset).names():
        overrides.append("objective.allow_biased_gradient=True")
    system = _build(preset, 17, *overrides)
    with tf.GradientTape(persistent=True) as tape:
        result = system.objective(_images(), training_draws(system, KEY, SHARED_KEY))
    variables = [variable.value for variable in system.trainable_variables]
    posterior = [variable.value for variable in system.needs.posterior]
    gradients = group_gradients(tape, result, variables, posterior)
    assert len(gradients) == len(variables) > 0
    for variable, value in zip(system.trainable_variables, gradients, strict=True):
        assert np.all(np.isfinite(value)), variable.path
        assert np.any(value != 0.0), variable.path
    # A weight without effect has a gradient of rounding noise, which Adam would turn into steps of full size.
    largest = {
        variable.path: np.abs(value).max()
        for variable, value in zip(system.trainable_variables, gradients, strict=True)
    }
    dead = [path for path, size in largest.items() if size < 1e-6 * max(largest.values())]
    assert not dead


@EVERY_SYSTEM
def test_posterior_variables_are_trainable_and_not_all_there_are(preset):  # none where the encoder makes the prior
    system = _build(preset)
    posterior = {id(variable) for variable in system.needs.posterior}
    trainable = {id(variable) for variable in system.trainable_variables}
    assert posterior < trainable
    assert bool(posterior) == (preset != "vamp_vae/tiny")


@EVERY_SYSTEM
def test_the_terms_have_the_shape_of_samples_and_batch(preset):
    system = _build(preset)
    for term in system.terms(_images(5), Draws(KEY, 3))[:3]:
        composition = system.composition
        leaves = () if composition is None else (composition.circuit.layout.num_leaf_nodes,)
        assert term.shape == (3, 5, *leaves)
        assert np.all(np.isfinite(term))


@EVERY_SYSTEM_COMPILED
@pytest.mark.parametrize("training", [False, True])
def test_terms_are_the_same_eagerly_as_a_graph_and_compiled(preset, training, compiled):
    system = _rough(_build(preset))
    statistics = [np.asarray(variable) for variable in system.non_trainable_variables]
    options = {"training": training, "shared_seed": SHARED_KEY, **(_scheduled(system) if training else {})}
    expected = _numbers(system, tf.constant(_images()), **options)
    for variable, value in zip(system.non_trainable_variables, statistics, strict=True):
        variable.assign(value)
    found = compiled(lambda x: _numbers(system, x, **options), tf.constant(_images()))
    for one, two in zip(found, expected, strict=True):
        _assert_close(one, two)


@EVERY_SYSTEM_COMPILED
def test_samples_are_the_same_eagerly_as_a_graph_and_compiled(preset, compiled):
    system = _rough(_build(preset))
    found, expected = compiled(lambda: system.sample(B, seed=KEY)), system.sample(B, seed=KEY)
    assert set(found) >= {"x", "x_mean"}
    assert found["x"].shape == found["x_mean"].shape == (B, *system.event_shape)
    np.testing.assert_allclose(found["x_mean"], expected["x_mean"], rtol=1e-4, atol=1e-5)
    # A pixel whose uniform number lies within rounding of its mean may differ.
    assert np.mean(np.asarray(found["x"]) != np.asarray(expected["x"])) < 1e-3


@pytest.mark.parametrize(
    ("preset", "jit"),
    [(preset, False) for preset in DISTINCT] + [(preset, True) for preset in FIRST_PRESETS],
)
def test_another_batch_size_does_not_retrace_where_it_is_unknown(preset, jit):
    system, x = _rough(_build(preset)), _images()
    spec = [tf.TensorSpec([None, *system.event_shape], tf.float32), tf.TensorSpec([None, 2], tf.uint32)]
    keys = _keys(range(B))

    @tf.function(input_signature=spec, autograph=False, jit_compile=jit)
    def terms(x, keys):
        encoded = system.encode(x)
        return _numbers(system, x, keys), encoded["z_mean"], system.decode(encoded["z_mean"])["x_mean"]

    whole, part = terms(x, keys), terms(x[:7], keys[:7])
    assert terms.experimental_get_tracing_count() == 1
    _assert_close(part[0], whole[0][:, :, :7])
    _assert_close(part[1:], [value[:7] for value in whole[1:]])


@EVERY_SYSTEM_COMPILED
def test_sample_takes_a_number_known_only_at_run_time(preset):
    system = _rough(_build(preset))
    drawn = tf.function(lambda keys: system.sample(tf.shape(keys)[0], seed=keys)["x"], autograph=False)
    keys = _keys(range(5))
    np.testing.assert_array_equal(drawn(keys), system.sample(5, seed=keys)["x"])


@EVERY_SYSTEM
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(preset):
    system, x = _rough(_build(preset)), _images()
    first = _numbers(system, x)
    np.testing.assert_array_equal(first, _numbers(system, x))
    # log q and log p(z) and log p(x | z): each sees the draw.
    assert np.all(np.any(np.asarray(first) != np.asarray(_numbers(system, x, random.key(99))), axis=(1, 2)))
    drawn = np.asarray(system.sample(B, seed=KEY)["x"])
    np.testing.assert_array_equal(drawn, system.sample(B, seed=KEY)["x"])
    assert np.any(drawn != np.asarray(system.sample(B, seed=random.key(99))["x"]))
    assert len(np.unique(drawn.reshape(B, -1), axis=0)) > 1


@EVERY_SYSTEM
def test_permuting_a_batch_with_its_row_seeds_permutes_the_results(preset):
    system, x, keys = _rough(_build(preset)), _images(), _keys(range(B))
    order = np.random.default_rng(3).permutation(B)
    whole = _numbers(system, x, keys)
    _assert_close(_numbers(system, x[order], tf.gather(keys, order)), tf.gather(whole, order, axis=2))
    for one, two in zip(system.encode(x[order]).values(), system.encode(x).values(), strict=True):
        _assert_close(one, tf.gather(two, order))
    drawn, permuted = system.sample(B, seed=keys), system.sample(B, seed=tf.gather(keys, order))
    _assert_close(permuted["x_mean"], tf.gather(drawn["x_mean"], order))
    reconstructed = tf.gather(system.reconstruct(x, seed=keys), order)
    _assert_close(system.reconstruct(x[order], seed=tf.gather(keys, order)), reconstructed)


@EVERY_SYSTEM
def test_a_batch_of_one_is_a_row_of_a_batch(preset):
    system, x, keys = _rough(_build(preset)), _images(), _keys(range(B))
    _assert_close(_numbers(system, x[3:4], keys[3:4]), _numbers(system, x, keys)[:, :, 3:4])
    _assert_close(system.sample(1, seed=keys[3:4])["x_mean"], system.sample(B, seed=keys)["x_mean"][3:4])
    _assert_close(system.reconstruct(x[3:4], seed=keys[3:4]), system.reconstruct(x, seed=keys)[3:4])
    _assert_close(system(x[3:4]), system(x)[3:4])


@EVERY_SYSTEM
def test_the_parameters_of_the_posterior_have_the_size_of_the_latents(preset):
    system = _rough(_build(preset))
    encoded = system.encode(_images())
    latents = system.num_latents
    assert encoded["z_mean"].shape == encoded["z_std"].shape == (B, latents)
    assert np.all(np.asarray(encoded["z_std"]) > 0.0)
    decoded = system.decode(tf.zeros([3, B, latents]))["x_mean"]
    assert decoded.shape == (3, B, *system.event_shape)


@EVERY_SYSTEM
def test_the_seed_decides_the_weights(preset):
    first, second, other = _build(preset, 1), _build(preset, 1), _build(preset, 2)
    for one, two, three in zip(first.variables, second.variables, other.variables, strict=True):
        assert one.path == two.path == three.path
        np.testing.assert_array_equal(one, two)
        if one.path.endswith("kernel") or "/kernel_" in one.path:
            assert np.any(np.asarray(one) != np.asarray(three)), one.path


@EVERY_SYSTEM
def test_no_two_weights_start_equal_unless_they_are_constant(preset):
    values = [np.asarray(variable).ravel() for variable in _build(preset).trainable_variables]
    values = [value for value in values if value.std() > 0]
    for index, one in enumerate(values):
        for two in values[:index]:
            size = min(len(one), len(two))
            assert np.abs(np.corrcoef(one[:size], two[:size])[0, 1]) < 1 - 1e-6


@EVERY_SYSTEM
def test_building_leaves_pythons_random_numbers_as_they_were(preset):
    python_random.seed(5)
    expected = python_random.random()
    python_random.seed(5)
    _build(preset)
    assert python_random.random() == expected


@EVERY_SYSTEM
def test_a_system_built_from_the_json_of_its_config_is_the_same(preset):
    system = _build(preset, 3)
    restored = registry.parse_config(system.config.to_json())
    assert restored == presets.get(preset)
    _assert_close(_numbers(registry.build(restored, seed=3), _images()), _numbers(system, _images()), rtol=0.0)


@EVERY_SYSTEM
def test_weights_that_were_saved_restore_a_new_object(preset, tmp_path):
    system, other = _rough(_build(preset, 1)), _build(preset, 2)
    path = tmp_path / "system.weights.h5"
    system.save_weights(path)
    assert np.any(np.asarray(_numbers(system, _images())) != np.asarray(_numbers(other, _images())))
    other.load_weights(path)
    for one, two in zip(other.variables, system.variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    np.testing.assert_array_equal(_numbers(other, _images()), _numbers(system, _images()))


@EVERY_SYSTEM_ONCE
def test_fit_lowers_the_loss_and_evaluate_reports_the_bound(preset):
    system, rows = _build(preset, 17, "objective.name=elbo"), mnist.read("train")[:256]
    system.adapt(rows)
    system.compile(keras.optimizers.Adam(system.config.optimizer.learning_rate))
    history = system.fit(rows, batch_size=64, epochs=8, verbose=0).history
    # A model that was given the mean image has less to learn.
    share = 0.95 if preset.startswith("boltzmann_vae/") else 0.6
    assert history["loss"][-1] < share * history["loss"][0]
    np.testing.assert_allclose(np.add(history["rate"], history["distortion"]), np.negative(history["bound"]), rtol=1e-4)
    result = system.evaluate((rows > 127).astype(np.float32), batch_size=64, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(-result["bound"], rel=1e-5)
    assert -600 < result["bound"] < -50


# Intensities 0..255 read as probabilities would make every pixel with ink white.
@EVERY_SYSTEM_ONCE
def test_fit_binarises_integer_intensities_by_their_level(preset):
    system = _build(preset)
    rows = np.full([4096, *system.event_shape], 64, np.uint8)
    seen = []
    system.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    objective = system.objective
    system.objective = lambda x, draws, **kwargs: (seen.append(x.numpy()), objective(x, draws, **kwargs))[1]
    system.fit(rows[:64], batch_size=64, epochs=2, verbose=0)
    first, second = seen[0], seen[1]
    assert set(np.unique(first)) == {0.0, 1.0}
    for values in (first, second):
        # 64 x 784 draws: a standard error of 0.002.
        assert abs(values.mean() - 64 / 255) < 0.01
    assert np.any(first != second)


@EVERY_SYSTEM_ONCE
def test_fit_repeats(preset):
    results = []
    for _ in range(2):
        system = _build(preset, 4)
        system.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
        results.append(system.fit(_images(32), batch_size=16, epochs=2, verbose=0, shuffle=False).history["loss"])
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]


@EVERY_SYSTEM_ONCE
@pytest.mark.parametrize("variant", ["static", "thresholded"])
def test_fit_refuses_grey_values_where_the_data_are_binary(preset, variant):
    system = _build(preset, 17, f"data.variant={variant}")
    system.compile(run_eagerly=True)
    for rows in (mnist.read("train")[:32], mnist.read("train")[:32] / np.float32(255)):
        for given in (rows, tf.constant(rows)):
            with pytest.raises(ValueError, match="the rows given to fit must be .*0.*1.*found"):
                system.fit(given, batch_size=32, verbose=0)
    system.fit(_images(32), batch_size=32, verbose=0)


# `dynamic` takes uint8, or floats in [0, 1]: floats up to 255 would all be binarised to ones.
@EVERY_SYSTEM_ONCE
@pytest.mark.parametrize("value", [255.0, -1.0, np.nan])
def test_fit_refuses_floats_that_are_no_probabilities_where_rows_are_binarised(preset, value):
    system = _build(preset)
    system.compile(run_eagerly=True)
    rows = _images(32)
    rows[5, 3, 3] = value
    with pytest.raises(ValueError, match="fit"):
        system.fit(rows, batch_size=32, verbose=0)


@EVERY_SYSTEM_ONCE
def test_fit_refuses_validation_rows_that_are_not_binary(preset):
    system = _build(preset, 17, "data.variant=static")
    system.compile(run_eagerly=True)
    with pytest.raises(ValueError, match="must be"):
        system.fit(_images(32), validation_data=(_images(32) * 0.5,), batch_size=32, verbose=0)


@EVERY_SYSTEM_ONCE
def test_evaluate_reads_the_rows_of_a_data_set_as_the_images_they_are(preset):
    system = _build(preset)
    system.compile(run_eagerly=True)
    final = load("mnist", "dynamic").validation[:64]  # uint8, zeros and ones
    bounds = [
        system.evaluate(rows, batch_size=64, verbose=0, return_dict=True)["bound"] for rows in (final, final * 1.0)
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)


@EVERY_SYSTEM
def test_a_training_step_reads_the_weights_of_its_state_and_never_those_of_the_keras_variables(preset):
    steps = [TrainStep(_build(preset, seed), "binarize") for seed in (17, 18)]
    _rough(steps[0].model)
    start = initial_state(steps[0].functional, KEY, num_rows=B)
    rows = tf.constant(mnist.read("train")[:B])
    found, expected = (
        step.gradient(device_state(start), tf.constant(3), rows, row_ids=tf.range(B)) for step in reversed(steps)
    )
    _assert_close(found, expected)


@pytest.mark.parametrize("factor", [30.0, 300.0])
@pytest.mark.parametrize(
    "preset", ["vae/tiny", "graph_vae/tiny", "ladder_vae/tiny", "boltzmann_vae/tiny", "spvae/tiny"]
)
def test_weights_that_ran_away_have_finite_estimates(preset, factor):
    system = _build(preset, 1)
    for variable in system.trainable_variables:
        variable.assign(factor * variable)
    images = _images()
    keys = random.row_keys(tf.range(len(images), dtype=tf.int64))
    estimate = tf.function(lambda: system.estimate(images, keys, num_samples=4, chunk=2))()
    for name in ("log_prob", "elbo", "rate", "distortion"):
        assert np.isfinite(getattr(estimate, name)).all(), name
