import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random

KEY = np.array([0x243F6A88, 0x85A308D3], np.uint32)

# Known answers of threefry2x32-20 from Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def _words(tensor):
    return np.asarray(tensor).astype(np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_threefry_gives_the_known_answers_of_random123(counter, key, expected, run):
    low, high = run(
        lambda key, low, high: random._tf_threefry(key, low, high),
        tf.constant(key, tf.uint32),
        tf.constant([counter[0]], tf.uint32),
        tf.constant([counter[1]], tf.uint32),
    )
    assert (int(low[0]), int(high[0])) == expected


def test_bits_are_threefry_of_a_counter_that_starts_at_zero():
    low, high = KNOWN_ANSWERS[0][2]
    assert _words(random.bits(np.zeros(2, np.uint32), [2])).tolist() == [low, high]
    assert random.numpy_bits(np.zeros(2, np.uint32), 2).tolist() == [low, high]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_bits_are_those_of_the_numpy_twin(size, run):
    found = run(lambda key: random.bits(key, [size]), tf.constant(KEY))
    np.testing.assert_array_equal(_words(found), random.numpy_bits(KEY, size))


def test_bits_of_a_shape_are_the_bits_of_its_size_in_order(run):
    found = run(lambda key: random.bits(key, [3, 5]), tf.constant(KEY))
    np.testing.assert_array_equal(_words(found), random.numpy_bits(KEY, 15).reshape(3, 5))


def test_bits_of_a_batch_of_keys_are_those_of_each_key(run):
    keys = np.stack([random.key(seed) for seed in range(6)]).reshape(2, 3, 2)
    found = _words(run(lambda key: random.bits(key, [9]), tf.constant(keys)))
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[place], random.numpy_bits(keys[place], 9))


def test_bits_under_vectorized_map_are_those_of_each_key():
    keys = np.stack([random.key(seed) for seed in range(4)])
    found = _words(tf.vectorized_map(lambda key: random.bits(key, [9]), tf.constant(keys)))
    np.testing.assert_array_equal(found, [random.numpy_bits(key, 9) for key in keys])


def test_bits_take_a_shape_known_only_at_run_time():
    function = tf.function(lambda shape: random.bits(KEY, shape), input_signature=[tf.TensorSpec([2], tf.int32)])
    np.testing.assert_array_equal(_words(function(tf.constant([3, 5]))), random.numpy_bits(KEY, 15).reshape(3, 5))


def test_uniform_is_bit_for_bit_the_numpy_twin(run):
    found = run(lambda key: random.uniform(key, [1001]), tf.constant(KEY))
    np.testing.assert_array_equal(np.asarray(found).view(np.uint32), random.numpy_uniform(KEY, [1001]).view(np.uint32))


def test_uniform_lies_strictly_inside_the_unit_interval_for_the_extreme_bits(monkeypatch):
    for word, expected in ((0, 2.0**-24), (0xFFFFFFFF, 1 - 2.0**-24)):
        monkeypatch.setattr(random, "bits", lambda key, shape, word=word: tf.fill(shape, tf.constant(word, tf.uint32)))
        monkeypatch.setattr(random, "numpy_bits", lambda key, size, word=word: np.full(size, word, np.uint32))
        assert float(random.uniform(KEY, [1])[0]) == expected
        assert float(random.numpy_uniform(KEY, [1])[0]) == expected
        assert np.isfinite(random.normal(KEY, [1])[0])
        assert np.isfinite(random.logistic(KEY, [1])[0])
        assert abs(float(random.normal(KEY, [1])[0])) == pytest.approx(-scipy.stats.norm.ppf(2.0**-24), rel=1e-4)


def test_uniform_uses_every_one_of_its_highest_bits():
    cells = (random.numpy_uniform(KEY, [4096]).astype(np.float64) * 2.0**23).astype(np.int64)
    for bit in range(23):
        assert_mean_close((cells >> bit) & 1, 0.5, resolution=0.05)


# A wrong scale or shift (a normal of variance 1/2 for a missing sqrt(2)) moves these by far more.
def test_normal_has_the_moments_of_a_standard_normal():
    values = random.normal(KEY, [200_000], tf.float64).numpy()
    assert_mean_close(values, 0.0, resolution=0.02)
    assert_mean_close(values**2, 1.0, resolution=0.02)
    assert_mean_close(values**3, 0.0, resolution=0.05)
    assert_mean_close(values**4, 3.0, resolution=0.12)


@pytest.mark.parametrize(
    ("draw", "cdf"),
    [
        (random.uniform, scipy.stats.uniform.cdf),
        (random.normal, scipy.stats.norm.cdf),
        (random.logistic, scipy.stats.logistic.cdf),
    ],
)
def test_draws_pass_kolmogorov_smirnov(draw, cdf):
    # With 100,000 draws a distance of 0.01 between the distribution functions gives p < 1e-8.
    values = draw(KEY, [100_000], tf.float64).numpy()
    assert scipy.stats.kstest(values, cdf).pvalue > 1e-6
    assert scipy.stats.kstest(values, lambda value: np.clip(cdf(value) + 0.01, 0, 1)).pvalue < 1e-6


def test_normal_is_the_quantile_of_uniform(run):
    found = run(lambda key: random.normal(key, [1000]), tf.constant(KEY))
    expected = scipy.stats.norm.ppf(random.numpy_uniform(KEY, [1000]).astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_logistic_is_the_logit_of_uniform():
    expected = scipy.special.logit(random.numpy_uniform(KEY, [1000]).astype(np.float64))
    np.testing.assert_allclose(random.logistic(KEY, [1000], tf.float64), expected, rtol=1e-12)


def test_neighbouring_draws_and_streams_are_not_correlated():
    draws = random.normal(random.fold_in(KEY, tf.range(2)), [50_001], tf.float64).numpy()
    assert_mean_close(draws[0, 1:] * draws[0, :-1], 0.0, resolution=0.03)
    assert_mean_close(draws[0] * draws[1], 0.0, resolution=0.03)


def test_key_puts_the_high_word_first():
    assert random.key(0x0123456789ABCDEF).tolist() == [0x01234567, 0x89ABCDEF]
    assert random.key(2**64 - 1).tolist() == [0xFFFFFFFF, 0xFFFFFFFF]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_key_refuses_seeds_that_do_not_fit(seed):
    with pytest.raises(ValueError, match=r"\[0, 2\*\*64\)"):
        random.key(seed)


def test_fold_in_of_distinct_data_gives_distinct_keys():
    keys = _words(random.fold_in(KEY, tf.range(20_000)))
    assert len(np.unique(keys, axis=0)) == 20_000
    assert not np.any(np.all(keys == KEY, axis=-1))


def test_fold_in_of_distinct_keys_gives_distinct_keys():
    keys = np.stack([random.key(seed) for seed in range(2000)])
    assert len(np.unique(_words(random.fold_in(keys, 3)), axis=0)) == 2000


def test_fold_in_is_its_numpy_twin(run):
    found = run(lambda key: random.fold_in(key, tf.constant([0, 5, 2**31 - 1])), tf.constant(KEY))
    np.testing.assert_array_equal(_words(found), [random.numpy_fold_in(KEY, data) for data in (0, 5, 2**31 - 1)])


def test_fold_in_broadcasts_keys_against_data():
    keys = np.stack([random.key(seed) for seed in range(3)])
    found = _words(random.fold_in(keys[np.newaxis], tf.constant([[4], [5]])))
    assert found.shape == (2, 3, 2)
    for data, row in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[data, row], random.numpy_fold_in(keys[row], 4 + data))


def test_derived_keys_are_no_words_of_the_stream():
    # The stream of a key holds threefry of (counter, 0), its derived keys threefry of (data, 1).
    half = 5000
    stream = np.stack(np.split(random.numpy_bits(KEY, 2 * half), 2), axis=-1)
    derived = _words(random.fold_in(KEY, tf.range(half)))
    assert len(np.unique(np.concatenate([stream, derived]), axis=0)) == 2 * half


def test_keys_are_the_same_in_a_function_whose_rows_are_fixed_where_it_is_called():
    # Inlining fixes shapes after tracing, and Grappler then folds a OnesLike of uint32 to zeros.
    keys = tf.constant(np.stack([random.key(seed) for seed in range(6)]))
    draws = {
        "fold_in": lambda key: random.fold_in(key, tf.fill(tf.shape(key)[:1], 3)),
        "split": lambda key: tf.stack(random.split(key, 3)),
        "sample_keys": lambda key: random.sample_keys(key, 4),
        "bits": lambda key: random.bits(key, [5]),
        "row_keys": lambda key: random.row_keys(tf.cast(key[:, 1], tf.int64)),
        "sample_normal": lambda key: random.sample_normal(random.split(key)[1], 3, tf.shape(key)[0], [2]),
    }
    for name, draw in draws.items():
        inner = tf.function(draw, [tf.TensorSpec([None, 2], tf.uint32)], autograph=False)
        outer = tf.function(lambda key, inner=inner: inner(key), autograph=False)
        np.testing.assert_allclose(outer(keys), draw(keys), rtol=1e-6, err_msg=name)


def test_split_gives_the_first_derived_keys():
    keys = [_words(key) for key in random.split(KEY, 3)]
    np.testing.assert_array_equal(keys, [random.numpy_fold_in(KEY, index) for index in range(3)])


def test_row_keys_of_distinct_seeds_are_distinct_also_for_negative_and_large_ones():
    seeds = [0, 1, -1, 2**31, -(2**31), 2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63), -(2**63) + 1]
    keys = _words(random.row_keys(tf.constant(seeds, tf.int64)))
    assert len(np.unique(keys, axis=0)) == len(seeds)


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 3, 2**63 - 1])
def test_row_key_of_a_seed_is_the_key_of_that_seed(seed, run):
    found = run(random.row_keys, tf.constant([seed], tf.int64))
    np.testing.assert_array_equal(_words(found)[0], random.key(seed))


def test_row_keys_of_negative_seeds_are_their_two_words(run):
    found = _words(run(random.row_keys, tf.constant([-1, -(2**63)], tf.int64)))
    assert found.tolist() == [[0xFFFFFFFF, 0xFFFFFFFF], [0x80000000, 0]]


def test_a_rows_noise_does_not_depend_on_the_rest_of_its_batch():
    keys = random.row_keys(tf.range(5, dtype=tf.int64))
    whole = random.sample_normal(keys, 3, 5, [2, 4]).numpy()
    assert whole.shape == (3, 5, 2, 4)
    rows = [4, 0, 2]
    part = random.sample_normal(tf.gather(keys, rows), 3, len(rows), [2, 4]).numpy()
    np.testing.assert_array_equal(part, whole[:, rows])


def test_sample_normal_of_row_keys_is_that_of_their_sample_keys():
    keys = random.row_keys(tf.range(5, dtype=tf.int64))
    of_rows = random.sample_normal(keys, 3, 5, [2, 4])
    of_samples = random.sample_normal(random.sample_keys(keys, 3), 3, 5, [2, 4])
    np.testing.assert_array_equal(of_rows, of_samples)


def test_sample_keys_start_where_they_are_told():
    keys = random.row_keys(tf.range(4, dtype=tf.int64))
    whole = _words(random.sample_keys(keys, 7))
    np.testing.assert_array_equal(_words(random.sample_keys(keys, 3, 4)), whole[4:])
    np.testing.assert_array_equal(_words(random.sample_keys(keys, 3, tf.constant(4))), whole[4:])
    assert len(np.unique(whole.reshape(-1, 2), axis=0)) == 28


def test_sample_normal_of_one_key_differs_in_every_place():
    values = random.sample_normal(KEY, 3, 5, [2, 4]).numpy()
    assert values.shape == (3, 5, 2, 4)
    assert len(np.unique(values)) == values.size


def test_sample_normal_refuses_a_seed_of_another_rank():
    with pytest.raises(ValueError, match="a seed has shape"):
        random.sample_normal(tf.zeros([1, 1, 1, 2], tf.uint32), 1, 1, [1])


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_permutation_is_a_permutation(size):
    found = random.permutation(3, 0, size)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found), np.arange(size))


def test_permutation_repeats_and_differs_between_epochs_and_seeds():
    first = random.permutation(3, 0, 100)
    np.testing.assert_array_equal(first, random.permutation(3, 0, 100))
    assert not np.array_equal(first, random.permutation(3, 1, 100))
    assert not np.array_equal(first, random.permutation(4, 0, 100))
    assert not np.array_equal(first, np.arange(100))


# Catches a sort of something that is not uniform: the first place would favour some elements.
def test_permutation_puts_every_element_first_equally_often():
    counts = np.bincount([random.permutation(3, epoch, 4)[0] for epoch in range(4000)], minlength=4)
    assert scipy.stats.chisquare(counts).pvalue > 1e-6


def test_keys_of_different_uses_are_never_the_same():
    purposes = (
        random.TRAINING_STEP, random.DATA_ORDER, random.EVALUATION, random.SERVING, random.CHAINS,
        random.PRIOR_ANNEALING, random.DIAGNOSTICS,
    )  # fmt: skip
    streams = [random.fold_in(random.fold_in(random.key(0), purpose), np.arange(2000)) for purpose in purposes]
    words = np.concatenate([stream.numpy() for stream in streams] + [random.fold_in(random.key(0), np.arange(9))])
    assert len(np.unique(words, axis=0)) == len(words)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_choice_is_where_the_cumulative_probability_reaches_the_uniform_number(axis):
    probabilities = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = np.array([1e-7, 0.24, 0.26, 0.74, 0.76, 1.0 - 1e-7], np.float32)
    with np.errstate(divide="ignore"):
        log_weights = np.log(probabilities).astype(np.float32) + 90.0  # any constant, beyond what exp can hold
    stacked = np.moveaxis(np.tile(log_weights, [len(uniforms), 1]), -1, 0 if axis == 0 else 1)
    np.testing.assert_array_equal(random.choose(uniforms, tf.constant(stacked), axis), [1, 1, 3, 3, 4, 4])


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 4097])
def test_shuffled_places_are_a_permutation_of_their_own_for_every_seed_and_epoch(size):
    orders = [random.shuffled(seed, epoch, np.arange(size), size) for seed, epoch in ((0, 0), (1, 0), (0, 1))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
    if size >= 1000:
        for other in (*orders[1:], np.arange(size)):
            # Of two permutations without any relation one place agrees on average; 8 has a probability below 1e-5.
            assert np.sum(orders[0] == other) < 8


def test_shuffled_places_do_not_depend_on_which_are_asked_for():
    size = 2**31 - 1
    places = np.array([[0, 5, size - 1], [17, 2**20, 2**30]])
    found = random.shuffled(3, 2, places, size)
    for place in np.ndindex(places.shape):
        assert found[place] == random.shuffled(3, 2, places[place], size)
    assert len(np.unique(found)) == found.size
    assert (0 <= found.min()) & (found.max() < size)


def test_shuffled_places_are_uniform_and_neighbours_are_not_related():
    size, num = 50_000_017, 200_000
    found = random.shuffled(0, 0, np.arange(num), size)
    counts = np.bincount(found * 100 // size, minlength=100)
    # Chi squared of 99 degrees of freedom: standard deviation 14.1; five of them.
    assert abs(((counts - num / 100) ** 2 / (num / 100)).sum() - 99) < 5 * 14.1
    centred = found / size - 0.5
    correlation = np.mean(centred[1:] * centred[:-1]) * 12.0
    assert abs(correlation) < 5 / np.sqrt(num)
