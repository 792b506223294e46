import keras
import numpy as np
import pytest
import tensorflow as tf

from tfstruct.training.optimizer import Adam

STEPS = 10


def gradient_at(parameters, step):
    """Of a bowl whose middle moves; smooth and far from zero in most places."""
    return (parameters - np.sin(step + np.arange(len(parameters)))) * np.arange(1, len(parameters) + 1)


def run_adam(adam, start, learning_rate):
    state = [tf.constant(start, tf.float32), tf.zeros(len(start)), tf.zeros(len(start))]
    rows = []
    for step in range(STEPS):
        gradient = tf.constant(gradient_at(state[0].numpy(), step), tf.float32)
        *state, _ = adam.update(tf.constant(step), tf.constant(learning_rate), gradient, *state)
        rows.append(state[0].numpy())
    return np.stack(rows)


def twin(start, learning_rate, *, beta_1, beta_2, epsilon, clip_norm=0.0):
    """Algorithm 1 of Kingma and Ba in float64."""
    parameters = np.asarray(start, np.float64)
    first, second, rows = np.zeros_like(parameters), np.zeros_like(parameters), []
    for step in range(STEPS):
        gradient = gradient_at(parameters, step)
        norm = np.linalg.norm(gradient)
        if clip_norm and norm > clip_norm:
            gradient = gradient * clip_norm / norm
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        corrected = first / (1 - beta_1 ** (step + 1))
        root = np.sqrt(second / (1 - beta_2 ** (step + 1)))
        parameters = parameters - learning_rate * corrected / (root + epsilon)
        rows.append(parameters)
    return np.stack(rows)


@pytest.fixture
def start(rng):
    return rng.normal(size=7) + 2.0


@pytest.mark.parametrize("epsilon", [1e-8, 1e-1])
@pytest.mark.parametrize("clip_norm", [0.0, 1.5])
def test_ten_steps_equal_the_float64_algorithm(start, epsilon, clip_norm):
    adam = Adam(0.9, 0.99, epsilon, clip_norm)
    expected = twin(start, 0.05, beta_1=0.9, beta_2=0.99, epsilon=epsilon, clip_norm=clip_norm)
    # In float32 1 - 0.99^t is off by up to 6e-6 of itself, and the ten moves of 0.05 by half of that.
    np.testing.assert_allclose(run_adam(adam, start, 0.05), expected, rtol=1e-6, atol=10 * 0.05 * 3e-6)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-1])
def test_ten_steps_equal_keras_adam_once_epsilon_means_the_same(start, epsilon):
    # Keras adds epsilon to the root of the moment before its bias is corrected (the paper's section 2, last
    # lines), so its epsilon is ours times sqrt(1 - beta_2^t).
    reference = keras.optimizers.Adam(0.05, beta_1=0.9, beta_2=0.99)
    variable = keras.Variable(start.astype(np.float32))
    reference.build([variable])
    rows = []
    for step in range(STEPS):
        reference.epsilon = epsilon * np.sqrt(1 - 0.99 ** (step + 1))
        gradient = tf.constant(gradient_at(variable.numpy(), step), tf.float32)
        reference.apply([gradient], [variable])
        rows.append(variable.numpy())
    found = run_adam(Adam(0.9, 0.99, epsilon), start, 0.05)
    np.testing.assert_allclose(found, np.stack(rows), rtol=1e-6, atol=1e-7)  # a parameter passes through zero


def test_the_first_step_moves_every_parameter_by_the_learning_rate(start):
    found = run_adam(Adam(0.9, 0.99, epsilon=0.0), start, 0.125)[0]
    moves = found - start.astype(np.float32)
    np.testing.assert_allclose(moves, -0.125 * np.sign(gradient_at(start, 0)), rtol=1e-5)


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.0, 1.0), (2.5, 0.5), (5.0, 1.0), (6.0, 1.0)])
def test_clipping_scales_the_whole_gradient_to_the_norm_and_never_up(clip_norm, factor):
    gradient = tf.constant([3.0, 0.0, -4.0])
    zeros = tf.zeros(3)
    _, first, second, norm = Adam(clip_norm=clip_norm).update(
        tf.constant(0), tf.constant(1.0), gradient, zeros, zeros, zeros
    )
    assert norm.numpy() == 5.0
    np.testing.assert_allclose(first, 0.1 * factor * gradient.numpy(), rtol=1e-6)
    np.testing.assert_allclose(second, 0.001 * (factor * gradient.numpy()) ** 2, rtol=1e-5)


def test_a_zero_gradient_is_clipped_to_zero_and_not_to_nan():
    zeros = tf.zeros(3)
    outputs = Adam(clip_norm=1.0).update(tf.constant(0), tf.constant(1.0), zeros, zeros, zeros, zeros)
    for output in outputs:
        np.testing.assert_array_equal(output, np.zeros_like(output))
