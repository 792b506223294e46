"""Bundles of sum-product VAEs: missing values, parts of the log density by region, grey levels."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

import tfstruct
from tests.trainers import tiny, tiny_circuit
from tfstruct import files, random
from tfstruct.data.support import INTEGERS
from tfstruct.inference import likelihood
from tfstruct.inference.objectives import Draws
from tfstruct.models import registry
from tfstruct.serving import bundle, client, contents, verification, warmup
from tfstruct.serving.signatures import ServedSystem

SHAPE, NUM_SAMPLES = tiny_circuit.SHAPE, 7
NEW = {"marginal_log_prob", "inpaint", "region_log_prob"}
LOG_PROB, INPAINT = 1, 4  # purposes of the keys


@pytest.fixture(scope="module", params=["spvae/tiny", "spvae/tiny_components"])
def trained(request, tmp_path_factory):
    """The Keras model and the loaded bundle; not to be changed."""
    folder = tmp_path_factory.mktemp("circuit")
    rows = tiny.write_rows(folder / "rows.npz", event_shape=SHAPE)
    run = tiny_circuit.train(rows, folder / "run", preset=request.param)
    # Training leaves the sums nearly even; uneven ones tell a model's sums from posterior ones.
    logits = np.random.default_rng(5).normal(scale=2.0, size=run.model.sum_product.logits.shape)
    places = run.weights.parameters[0]
    paths = [variable.path for variable in run.model.trainable_variables]
    sizes = [int(np.prod(variable.shape)) for variable in run.model.trainable_variables]
    first = sum(sizes[: paths.index(run.model.sum_product.logits.path)])
    places[first : first + len(logits)] = logits
    output = bundle.export(run, folder / "model/1")
    return run.use(0), client.load(output)


@pytest.fixture
def system(trained):
    return trained[0]


@pytest.fixture
def model(trained):
    return trained[1]


@pytest.fixture
def rows(rng):
    """Observations, which of their values are observed (in the last row all), and seeds."""
    observed = rng.random([6, *SHAPE]) < 0.5
    observed[5] = True
    return tiny.binary_rows(rng, 6, SHAPE), observed, rng.integers(0, 2**62, size=[6])


def uncompiled(system, **card):
    """A system as if it was loaded, whose signatures run eagerly."""
    served = ServedSystem(system, num_samples=NUM_SAMPLES, chunk=3, bits_per_dim_offset=0.0)
    loaded = client.LoadedModel.__new__(client.LoadedModel)
    loaded.signatures = {name: getattr(served, name) for name in system.queries}
    names = {name: {"inputs": dict.fromkeys(query.inputs)} for name, query in system.queries.items()}
    support = system.likelihood.support
    loaded.card = {"preset": "p", "event_shape": list(SHAPE), "support": support, "signatures": names, **card}
    return loaded


def keys(seed, purpose):
    return random.fold_in(random.fold_in(random.row_keys(seed), random.SERVING), purpose)


def assert_all_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **({"rtol": 1e-4, "atol": 1e-5} | tolerance), err_msg=name)


# Numbers of the bundle -----------------------------------------------------------------------------------------------


def test_a_marginal_is_that_of_the_python_model_with_the_same_keys(system, model, rows):
    x, observed, seed = rows
    expected = likelihood.estimate(
        lambda sample: system.terms(
            tf.constant(x, tf.float32), Draws(sample, NUM_SAMPLES, observed=tf.constant(observed))
        ),
        keys(seed, LOG_PROB),
        num_samples=NUM_SAMPLES,
        chunk=NUM_SAMPLES,
        composition=system.composition,
    )
    found = model.marginal_log_prob(x, observed, seed=seed)
    assert_all_close(found, {name: getattr(expected, name) for name in ("log_prob", "std_err")})
    assert np.all(found["std_err"] > 0.0)


def test_an_inpainting_is_that_of_the_python_model_with_the_same_keys(system, model, rows):
    x, observed, seed = rows
    expected = system.inpaint(
        tf.constant(x, tf.float32), tf.constant(observed), seed=keys(seed, INPAINT), num_samples=NUM_SAMPLES
    )
    assert_all_close(model.inpaint(x, observed, seed=seed), {k: v.numpy() for k, v in expected.items()})


def test_region_densities_are_those_of_the_python_model_with_the_samples_of_log_prob(system, model, rows):
    x, _, seed = rows
    estimate = likelihood.estimate(
        lambda sample: system.terms(tf.constant(x, tf.float32), Draws(sample, NUM_SAMPLES)),
        keys(seed, LOG_PROB),
        num_samples=NUM_SAMPLES,
        chunk=NUM_SAMPLES,
        composition=system.composition,
        by_leaf=True,
    )
    expected = {name: value.numpy() for name, value in system.region_log_prob(estimate.log_prob).items()}
    assert_all_close(model.region_log_prob(x, seed=seed), expected)
    assert {name: value.shape for name, value in expected.items()} == {
        "contribution": (6, 3), "structure": (6,), "marginal": (6, 3), "conditional": (6, 3)
    }  # fmt: skip


# What they mean ------------------------------------------------------------------------------------------------------


def test_a_marginal_of_everything_is_log_prob_and_of_nothing_is_zero(model, rows):
    x, _, seed = rows
    whole = model.log_prob(x, seed=seed)
    assert_all_close(
        model.marginal_log_prob(x, np.ones(SHAPE, bool), seed=seed), {k: whole[k] for k in ("log_prob", "std_err")}
    )
    nothing = model.marginal_log_prob(x, np.zeros(SHAPE, bool), seed=seed)
    np.testing.assert_allclose(nothing["log_prob"], 0.0, rtol=0, atol=2e-6)  # the rounding of normalised sums
    np.testing.assert_allclose(nothing["std_err"], 0.0, rtol=0, atol=2e-3)


def test_contributions_and_structure_sum_to_log_prob(model, rows):
    x, _, seed = rows
    found = model.region_log_prob(x, seed=seed)
    total = found["contribution"].sum(axis=1) + found["structure"]
    np.testing.assert_allclose(total, model.log_prob(x, seed=seed)["log_prob"], rtol=1e-5)
    assert np.all(found["structure"] < 0.0)


def test_region_densities_are_marginals_with_the_same_seed(model, rows):
    x, _, seed = rows
    found, whole = model.region_log_prob(x, seed=seed), model.log_prob(x, seed=seed)["log_prob"]
    regions = model.card["leaf_regions"]
    assert regions == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    for place, region in enumerate(regions):
        inside = np.isin(np.arange(12), region).reshape(SHAPE)
        alone, rest = (model.marginal_log_prob(x, mask, seed=seed)["log_prob"] for mask in (inside, ~inside))
        np.testing.assert_allclose(found["marginal"][:, place], alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["conditional"][:, place], whole - rest, rtol=1e-4, atol=1e-4)
    assert np.abs(found["conditional"] - found["marginal"]).max() > 0.01  # or nothing was told apart


def test_inpainting_keeps_what_is_observed_and_draws_the_rest(model, rows):
    x, observed, seed = rows
    found = model.inpaint(x, observed, seed=seed)
    for value in found.values():
        np.testing.assert_array_equal(value[observed], x[observed])
    missing = ~observed
    assert set(np.unique(found["x"][missing])) == {0.0, 1.0}
    assert np.all((found["x_mean"][missing] > 0.0) & (found["x_mean"][missing] < 1.0))
    other = model.inpaint(x, observed, seed=seed + 1)
    assert np.all(found["x_mean"][missing] != other["x_mean"][missing])


@pytest.mark.parametrize("name", ["marginal_log_prob", "inpaint"])
def test_what_missing_pixels_hold_changes_nothing(model, rows, name):
    x, observed, seed = rows
    expected = getattr(model, name)(x, observed, seed=seed)
    for value in (np.nan, np.inf, 7.0, 0.5):
        found = getattr(model, name)(np.where(observed, x, value), observed, seed=seed)
        raw = model.signatures[name](
            x=tf.constant(np.where(observed, x, value), tf.float32),
            observed=tf.constant(observed),
            seed=tf.constant(seed),
        )
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values)
            np.testing.assert_array_equal(raw[key], values)


@pytest.mark.parametrize("name", sorted(NEW))
def test_a_row_does_not_depend_on_its_batch(model, rows, name):
    x, observed, seed = rows
    masks = [] if name == "region_log_prob" else [observed]
    whole = getattr(model, name)(x, *masks, seed=seed)
    assert_all_close(getattr(model, name)(x, *masks, seed=seed, batch_size=4), whole, rtol=1e-5)
    order = [3, 0, 5]
    found = getattr(model, name)(x[order], *(mask[order] for mask in masks), seed=seed[order])
    assert_all_close(found, {key: value[order] for key, value in whole.items()}, rtol=1e-5)
    if masks:
        one = getattr(model, name)(x, observed[2], seed=seed)  # one mask for all rows
        assert_all_close({k: v[2] for k, v in one.items()}, {k: v[2] for k, v in whole.items()}, rtol=1e-5)


# Support -------------------------------------------------------------------------------------------------------------


def spoiled(rows, values):
    """The rows, of which every second has a wrong value at an observed place."""
    x, observed, seed = rows
    x, observed = x.astype(np.float32), observed.copy()
    for row, value in zip((1, 3, 5), values, strict=True):
        x[row, 1, 4], observed[row, 1, 4] = value, True
    return x, observed, seed


def assert_no_answer(found, expected, bad, keep, unknown):
    for key, values in expected.items():
        np.testing.assert_allclose(found[key].numpy()[keep], values.numpy()[keep], rtol=1e-5, atol=1e-6)
        if key != "std_err":
            np.testing.assert_array_equal(found[key].numpy()[bad], np.full_like(values.numpy()[bad], unknown))


@pytest.mark.parametrize("name", ["log_prob", *sorted(NEW)])
def test_rows_outside_the_support_have_no_answer_and_disturb_no_other(model, rows, name):
    signature = model.signatures[name]
    wanted = signature.structured_input_signature[1]

    def call(x, observed, seed):
        feeds = {"x": tf.constant(x, tf.float32), "observed": tf.constant(observed), "seed": tf.constant(seed)}
        return signature(**{key: feeds[key] for key in wanted})

    bad, keep = [1, 3, 5], [0, 2, 4]
    found = call(*spoiled(rows, (0.5, np.nan, -1.0)))
    unknown = -np.inf if name.endswith("log_prob") and name != "region_log_prob" else np.nan
    good = {key: value for key, value in call(*rows).items() if key != "bits_per_dim"}
    assert_no_answer(found, good, bad, keep, unknown)


@pytest.fixture(scope="module")
def grey():
    """A model of grey levels without training."""
    config = tiny_circuit.config("none", "model.likelihood=binomial").replace({"data.event_shape": SHAPE})
    return uncompiled(registry.build(config, seed=2))


@pytest.mark.parametrize("value", [0.5, 300.0, -1.0])
def test_a_model_of_grey_levels_scores_integers_in_0_to_255_alone(grey, rng, value):
    levels, observed = rng.integers(0, 256, size=[6, *SHAPE]), np.ones([6, *SHAPE], bool)
    assert (grey.card["support"], grey.observation_scale) == (INTEGERS, 255.0)
    seed = np.arange(6)
    x, _, _ = spoiled((levels, observed, seed), [value] * 3)
    message = f"integers in 0..255, found {value} and 3 such values"
    for call in (grey.log_prob, grey.encode, grey.region_log_prob, lambda x: grey.inpaint(x, observed)):
        with pytest.raises(ValueError, match=message):
            call(x)
    observed[:, 1, 4] = False
    assert np.isfinite(grey.marginal_log_prob(x, observed)["log_prob"]).all()
    bad, keep = [1, 3, 5], [0, 2, 4]
    for name, unknown in (("log_prob", -np.inf), ("region_log_prob", np.nan)):
        found = grey.signatures[name](tf.constant(x, tf.float32), tf.constant(seed))
        good = grey.signatures[name](tf.constant(levels, tf.float32), tf.constant(seed))
        assert_no_answer(found, {k: v for k, v in good.items() if k != "bits_per_dim"}, bad, keep, unknown)
    assert np.isfinite(grey.log_prob(np.array([0, 255] * 6).reshape(1, *SHAPE))["log_prob"]).all()


def test_a_completion_of_grey_levels_is_made_of_grey_levels(grey, rng):
    x, observed = rng.integers(0, 256, size=[5, *SHAPE]), rng.random(SHAPE) < 0.3
    found = grey.inpaint(x, observed)["x"]
    np.testing.assert_array_equal(found[:, observed], x[:, observed])
    np.testing.assert_array_equal(found, np.rint(found))
    assert found[:, ~observed].max() > 1.0
    assert 0.0 <= found.min() <= found.max() <= 255.0


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["marginal_log_prob", "inpaint"])
@pytest.mark.parametrize(
    ("observed", "found"),
    [
        (np.ones(SHAPE), r"found float64 \[2, 6\]"),
        (np.ones(SHAPE, np.uint8), r"found uint8 \[2, 6\]"),
        (np.ones([6, 2], bool), r"found bool \[6, 2\]"),
        (np.ones([1, *SHAPE], bool), r"found bool \[1, 2, 6\]"),
        (True, r"found bool \[\]"),
    ],
)
def test_masks_of_other_types_and_shapes_are_refused(model, rows, name, observed, found):
    with pytest.raises(ValueError, match=r"observed must be Boolean of shape \[6, 2, 6\] or \[2, 6\], " + found):
        getattr(model, name)(rows[0], observed)


def test_observed_values_outside_the_support_and_rows_of_other_shapes_are_refused(model, rows):
    x, observed, _ = rows
    observed[0, 0, 0] = True
    for value, message in ((0.5, "must be 0 or 1, found .*0.5.* and 1 such"), (np.nan, "finite, found 1 NaN")):
        wrong = x.astype(float)
        wrong[0, 0, 0] = value
        with pytest.raises(ValueError, match=message):
            model.inpaint(wrong, observed)
    with pytest.raises(ValueError, match=r"shape \[N, 2, 6\] with N >= 1, found \[3, 12\]"):
        model.marginal_log_prob(np.zeros([3, 12]), np.ones([3, 12], bool))


def test_models_that_take_no_missing_values_say_what_they_answer(rows):
    other = tfstruct.load("graph_vae/mnist")
    preset = other.card["preset"]
    assert not other.allows_missing
    assert not other.has_regions
    x, observed = np.zeros([1, 28, 28]), np.ones([1, 28, 28], bool)
    for call in (other.marginal_log_prob, other.inpaint):
        with pytest.raises(ValueError, match=f"{preset} takes no missing values; it answers .*elbo, .*log_prob"):
            call(x, observed)
    with pytest.raises(ValueError, match=f"{preset} has no regions; it answers .*elbo"):
        other.region_log_prob(x)


def test_a_plain_vae_takes_missing_values_and_has_no_regions(rows):
    config = tiny_circuit.config("none", preset="dense_vae/tiny").replace({"data.event_shape": SHAPE})
    system = registry.build(config, seed=2)
    plain = uncompiled(system)
    x, observed, seed = rows
    assert not plain.has_regions
    with pytest.raises(ValueError, match="p has no regions; it answers log_prob, "):
        plain.region_log_prob(x)
    whole = plain.log_prob(x, seed=seed)["log_prob"]
    found = plain.marginal_log_prob(x, np.ones(SHAPE, bool), seed=seed)["log_prob"]
    np.testing.assert_allclose(found, whole, rtol=5e-7)  # eager and traced: the last bit
    np.testing.assert_array_equal(plain.marginal_log_prob(x, np.zeros(SHAPE, bool), seed=seed)["log_prob"], 0.0)
    np.testing.assert_array_equal(plain.inpaint(x, observed, seed=seed)["x"][observed], x[observed])


# Card, golden values, warm-up ----------------------------------------------------------------------------------------


def test_the_card_says_what_is_exact_and_which_inputs_the_signatures_take(system, model):
    card = model.card
    assert card["exactness"] == {
        "log_prob": "estimate", "elbo": "bound", "sample": "exact", "marginal_log_prob": "estimate",
        "inpaint": "estimate", "region_log_prob": "estimate",
    }  # fmt: skip
    answered = {*card["exactness"], "encode", "reconstruct", "serving_default", "image_log_prob"}
    assert answered == card["signatures"].keys()
    assert NEW <= card["signatures"].keys()
    for name in ("marginal_log_prob", "inpaint"):
        assert card["signatures"][name]["inputs"]["observed"] == {"dtype": "bool", "shape": [-1, *SHAPE]}
        assert set(card["signatures"][name]["inputs"]) == {"x", "observed", "seed"}
    assert set(card["signatures"]["region_log_prob"]["outputs"]) == {
        "contribution", "structure", "marginal", "conditional"
    }  # fmt: skip
    assert card["structure"]["circuit"]["leaf_regions"] == len(card["leaf_regions"]) == 3
    assert model.observation_scale == 1.0


def test_golden_values_hold_the_new_signatures_and_a_change_is_noticed(model, tmp_path, monkeypatch):
    copy = shutil.copytree(model.path, tmp_path / "copy")
    with np.load(copy / "golden.npz") as archive:
        golden = dict(archive)
    # Loading and calling once: they take most of the time.
    outputs = verification.golden_outputs(model, golden["x"], golden["seed"])
    monkeypatch.setattr(verification, "LoadedModel", lambda *_, **__: model)
    monkeypatch.setattr(verification, "golden_outputs", lambda *_: outputs)
    assert {*NEW, "log_prob", "elbo", "encode", "reconstruct", "sample", "image_log_prob"} == outputs.keys()
    verification.verify(copy)
    for output in ("marginal_log_prob/log_prob", "inpaint/x", "inpaint/x_mean", "region_log_prob/conditional"):
        np.savez(copy / "golden.npz", **golden | {output: golden[output] + np.float32(0.01)})
        files.write_checksums(copy)
        name, _, part = output.partition("/")
        with pytest.raises(contents.DamagedBundleError, match=f"signature {name} does not give its golden {part}$"):
            verification.verify(copy)


def test_warm_up_records_hold_half_of_the_pixels_as_observed(model):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    seen = set()
    for record in tf.data.TFRecordDataset(str(model.path / warmup.WARMUP_NAME)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        name = request.model_spec.signature_name
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert inputs.keys() == model.card["signatures"][name]["inputs"].keys()
        if "observed" in inputs:
            observed = inputs["observed"]
            seen.add((name, len(observed)))
            assert observed.dtype == bool
            assert observed.shape == inputs["x"].shape
            np.testing.assert_array_equal(observed.reshape(-1, 12), [[True] * 6 + [False] * 6] * len(observed))
            if len(observed) == 4:
                found = model.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
                assert np.isfinite(found["log_prob" if name == "marginal_log_prob" else "x"]).all()
    assert seen == {(name, size) for name in ("marginal_log_prob", "inpaint") for size in warmup.BATCH_SIZES}
