import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.evaluation import report
from tfstruct.models import registry
from tfstruct.training import recovery, trainer
from tfstruct.training import run as training
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.data import load_data

# Bad settings and data leave no folder ------------------------------------------------------------------------------

BAD_SETTINGS = {
    "an odd batch for two devices": (("training.batch_size=9",), "mirrored", "multiple of the number of devices"),
    "replicas on two devices": (("training.replicas=3",), "mirrored", "cannot be shared equally by 2 devices"),
    "an empty batch": (("training.batch_size=0",), "none", "batch_size"),
    "no replica": (("training.replicas=0",), "none", "replicas"),
    "no steps": (("training.steps=0",), "none", "steps"),
    "a learning rate that float32 does not have": (("optimizer.learning_rate=1e39",), "none", "learning_rate"),
    "no steps a call": (("training.steps_per_call=0",), "none", "steps_per_call"),
    "negative steps a call": (("training.steps_per_call=-1",), "none", "steps_per_call"),
    "no steps between validations": (("training.validate_every=0",), "none", "validate_every"),
    "no validation images": (("training.validation_images=0",), "none", "validation_images"),
    "no validation samples": (("training.validation_samples=0",), "none", "(num|validation)_samples"),
    "an unknown compiler": (("training.compiler=jax",), "none", "compiler must be"),
    "an unknown system": (("system=vea",), "none", "system must be graph_vae, found 'vea'"),
    "an unknown objective": (("objective.name=elbow",), "none", "objective.name must be one of"),
    "an unknown gradient": (("objective.gradient=pth",), "none", "gradient"),
    "no samples of the objective": (("objective.num_samples=0",), "none", "num_samples"),
    "an unknown optimizer": (("optimizer.name=sgd",), "none", "optimizer"),
    "an unknown likelihood": (("model.likelihood=bernouli",), "none", "likelihood"),
    "an unknown structure": (("model.structure=learnt",), "none", "structure"),
    "an unknown activation": (("model.activation=rely",), "none", "activation|rely"),
    "a schedule that falls back": (
        ("schedules.kl_weight.fractions=(0.0,0.5,0.2)", "schedules.kl_weight.values=(0.0,1.0,1.0)"),
        "none",
        "fractions must rise",
    ),
    "nodes that do not divide the latents": (("model.num_nodes=4",), "none", "multiple of model.num_nodes"),
    "a negative seed": (("training.seed=-1",), "none", "seed"),
    "an unknown strategy": ((), "miror", "strategy must be one of"),
    "a structure to be learned where there is none": (
        ("training.structure_fraction=0.5",),
        "none",
        "training.structure_fraction=0.5 is for a structure that is learned; vae/tiny has none .*independent",
    ),
    "a negative fraction": (
        ("training.structure_fraction=-0.5",),
        "none",
        "fraction must be at least 0, found -0.5",
    ),
    "a first phase of all steps": (
        ("training.structure_fraction=1.0",),
        "none",
        "fraction must be below 1, found 1.0",
    ),
    "a first phase of no step": (("training.structure_fraction=0.2",), "none", "of the 2 steps, found 0.2"),
    "an average that never moves": (("optimizer.ema_momentum=1.0",), "none", "ema_momentum must be below 1, found 1.0"),
    "a negative average": (("optimizer.ema_momentum=-0.1",), "none", "ema_momentum must be at least 0, found -0.1"),
    "patience on rows that are trained on": (
        ("training.patience=3", "data.use_validation=True"),
        "none",
        "patience=3 stops by validation rows, which data.use_validation=True trains on",
    ),
    "fewer rows and more rows": (
        ("data.train_images=5", "data.use_validation=True"),
        "none",
        "train_images=5 does not go with data.use_validation",
    ),
    "two normalisations": (("model.layer_norm=True",), "none", "layer_norm=True .* set model.batch_norm=False"),
    "a negative bound of variances": (
        ("model.log_variance_bound=-1.0",),
        "none",
        "log_variance_bound must be at least 0, found -1.0",
    ),
    "free bits of a weighted bound": (
        ("objective.free_bits=0.1", "objective.name=iwae"),
        "none",
        "free_bits=0.1 goes with objective.name=elbo, found 'iwae'",
    ),
    "negative free bits": (("objective.free_bits=-0.1",), "none", "free_bits must be at least 0, found -0.1"),
    "an endless first phase": (
        ("training.structure_fraction=1e999",),
        "none",
        "fraction must be a finite number, found inf",
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
@pytest.mark.timeout(60)
def test_bad_settings_are_refused_by_name_before_a_folder_is_made(monkeypatch, file, tmp_path, case):
    overrides, strategy, message = BAD_SETTINGS[case]

    def refuse(*arguments):
        pytest.fail("training began")

    monkeypatch.setattr(trainer.Trainer, "run", refuse)
    with pytest.raises(ValueError, match=message):  # what is not refused must not train for long
        training.train(
            tiny.vae_config(file, "training.steps=2", "training.validate_every=2", *overrides),
            tmp_path / "run",
            strategy=strategy,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["fc_vae/tiny", "ladder_vae/tiny", "iaf_vae/tiny"])
def test_two_phases_are_refused_where_no_structure_is_learned(file, tmp_path, preset):
    config = tiny.file_config(file, "training.structure_fraction=0.5", preset=preset)
    with pytest.raises(ValueError, match=f"structure_fraction=0.5 .* {preset} has none .*{config.model.structure}"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keras_refuses_to_train_in_two_phases_and_says_what_to_set():
    system = registry.build(tiny.config("training.structure_fraction=0.5"))
    rows = np.zeros([8, 12], np.float32)
    system.compile(run_eagerly=True)
    with pytest.raises(
        ValueError, match=r"structure_fraction=0.5 .*tfstruct-train.*set training.structure_fraction=0.0"
    ):
        system.fit(rows, batch_size=8, verbose=0)
    assert np.all(np.isfinite(system.evaluate(rows, batch_size=8, verbose=0)))
    single = registry.build(tiny.config("training.structure_fraction=0.0"))
    single.compile(run_eagerly=True)
    single.fit(rows, batch_size=8, verbose=0)


def test_a_shape_that_the_data_do_not_have_is_refused(tmp_path):
    config = tiny.config("data.name=mnist", "data.variant=dynamic", preset=tiny.VAE_PRESET, event_shape=(14, 14))
    with pytest.raises(ValueError, match=r"event_shape is \(14, 14\), but mnist/dynamic has rows of shape \(28, 28\)"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_grey_values_are_refused_by_a_bernoulli_model_with_value_and_remedy(tmp_path):
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).random([50, 12]))
    with pytest.raises(ValueError, match=r"needs binary data.*found 0\.\d+.*data\.variant=dynamic"):
        training.train(tiny.vae_config(tmp_path / "grey.npy"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_grey_test_rows_are_refused_even_if_the_training_rows_are_binary(tmp_path):
    rows = tiny.binary_rows(np.random.default_rng(0), 60, (12,)).astype(np.float32)
    test = rows[50:].copy()
    test[3, 4] = 0.5
    np.savez(tmp_path / "rows.npz", train=rows[:40], validation=rows[40:50], test=test)
    with pytest.raises(ValueError, match="0.5"):
        training.train(tiny.vae_config(tmp_path / "rows.npz"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_losses_that_are_not_finite_end_the_run_with_advice_and_keep_the_last_checkpoint(file, tmp_path):
    fast = tiny.vae_config(
        file,
        "optimizer.learning_rate=1e30",
        "training.checkpoint_minutes=0.0",
        "training.steps_per_call=1",
        "training.steps=10",
    )
    with pytest.raises(recovery.NonFiniteTrainingError, match="lower optimizer.learning_rate"):
        training.train(fast, tmp_path / "run")
    saved = Checkpoints(tmp_path / "run/checkpoints").latest()
    assert saved is not None
    assert np.isfinite(saved.arrays["state/parameters"]).all()


# What belongs together ----------------------------------------------------------------------------------------------


def test_rows_that_are_all_the_same_are_refused_with_batch_normalisation(tmp_path):
    rows = np.ones([3_000, 12], np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    config = tiny.vae_config(tmp_path / "rows.npy")
    with pytest.raises(ValueError, match=r"training rows of file/none are the same.*set model\.batch_norm=False"):
        training.train(config, tmp_path / "run")
    load_data(config.replace({"model.batch_norm": False}))
    rows[0, 0] = 0
    np.save(tmp_path / "rows.npy", rows)
    load_data(config)


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    path = tiny.write_rows(tmp_path / "rows.npz")
    config = tiny.vae_config(path, "training.steps=20", "training.steps_per_call=10", "training.validate_every=10")
    training.train(config, tmp_path / "run")
    before = Checkpoints(tmp_path / "run/checkpoints").latest().arrays["state/parameters"]
    tiny.write_rows(path, seed=18)
    with pytest.raises(ValueError, match="trained on data of checksum"):
        training.train(config, tmp_path / "run")
    with pytest.raises(ValueError, match="trained on other data"):
        _ = report.TrainedRun(tmp_path / "run").data
    after = Checkpoints(tmp_path / "run/checkpoints").latest().arrays["state/parameters"]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("values", [2, 256])
def test_a_gaussian_density_of_a_lattice_is_refused(tmp_path, values):
    rows = np.random.default_rng(0).integers(0, values, size=[60, 12]).astype(np.uint8)
    np.save(tmp_path / "rows.npy", rows if values == 256 else rows.astype(bool))
    with pytest.raises(ValueError, match="likelihood gaussian is for data of support unit_interval or real"):
        training.train(tiny.vae_config(tmp_path / "rows.npy", "model.likelihood=gaussian"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_doubly_reparameterised_gradient_is_refused_where_batch_norm_biases_it(file, tmp_path):
    path = ("objective.name=iwae", "objective.gradient=path", "objective.num_samples=2", "training.steps=2")
    with pytest.raises(ValueError, match="biased under batch normalisation"):
        training.train(tiny.vae_config(file, *path, "model.batch_norm=True"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert training.train(tiny.vae_config(file, *path, "model.batch_norm=False"), tmp_path / "run").step == 2
    asked_for = tiny.vae_config(file, *path, "objective.allow_biased_gradient=True")
    assert training.train(asked_for, tmp_path / "biased").step == 2
    # A run that starts from the biased one hands the flag on to the next.
    for name, source in (("second", "biased"), ("third", "second")):
        start = f"training.initial_weights={tmp_path / source}"
        training.train(tiny.vae_config(file, "model.batch_norm=True", "training.steps=2", start), tmp_path / name)
    (tmp_path / "biased").rename(tmp_path / "moved")
    for name, is_flagged in (("run", False), ("moved", True), ("second", True), ("third", True)):
        flags = report.evaluate(report.TrainedRun(str(tmp_path / name)))["flags"]
        assert any(flag.startswith("biased gradient") for flag in flags) == is_flagged


# The loop's own test of this is in the default suite.
@pytest.mark.slow
def test_one_replica_among_others_is_the_one_alone_under_xla(file, tmp_path):
    options = ("training.compiler=xla", "training.steps=10", "training.validate_every=10", "optimizer.epsilon=1e-3")
    training.train(tiny.vae_config(file, *options, "training.replicas=3"), tmp_path / "three")
    training.train(tiny.vae_config(file, *options, "training.seed=2"), tmp_path / "alone")
    three, alone = (Checkpoints(tmp_path / name / "checkpoints").latest().arrays for name in ("three", "alone"))
    for name in ("state/parameters", "state/statistics", "best/bounds"):
        np.testing.assert_allclose(three[name][2], alone[name][0], rtol=1e-4, atol=1e-5)
    assert np.abs(three["state/parameters"][0] - three["state/parameters"][2]).max() > 0.1


def test_a_run_whose_every_checkpoint_is_damaged_does_not_silently_start_again(file, tmp_path):
    config = tiny.vae_config(file, "training.steps=20", "training.steps_per_call=10", "training.validate_every=10")
    training.train(config, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-100])
    with (
        pytest.warns(RuntimeWarning, match="passed over a damaged checkpoint"),
        pytest.raises(ValueError, match="every checkpoint in .* is damaged"),
    ):
        training.train(config, tmp_path / "run")
