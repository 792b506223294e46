"""Grey levels are drawn in units of [0, 1], as pictures of a run and by tfstruct-sample."""

import types

import numpy as np
import pytest
from matplotlib import image

from tests.trainers import tiny, tiny_circuit
from tfstruct import plotting
from tfstruct.evaluation import pictures, report
from tfstruct.models import registry
from tfstruct.reporting import parts
from tfstruct.training import run as training
from tfstruct.training.data import load_data

# A loaded model whose draws are all levels in turn.
SAMPLE = """
import sys
import numpy as np
import tfstruct
from tfstruct.trainers import sample

SUPPORT = sys.argv[2]

class Levels:
    card = {"support": SUPPORT}
    observation_scale = 1.0 if SUPPORT == "real" else 255.0
    def sample(self, num, seed):
        levels = np.resize(np.arange(0.0, 256.0), [num, 8, 8])
        if SUPPORT == "real":
            levels = 10.0 * levels - 700.0
        return {"x_mean": levels, "x": levels}

tfstruct.load = lambda name: Levels()
sys.argv[1:] = ["--model=any", "--num=4", f"--output={sys.argv[1]}"]
sample.run()
"""


def test_samples_and_reconstructions_of_a_run_are_divided_by_255(tmp_path, monkeypatch):
    config = tiny_circuit.config(tiny_circuit.write_levels(tmp_path / "levels.npz"), "model.likelihood=binomial")
    (tmp_path / "metrics.jsonl").write_text("")
    data, drawn = load_data(config), {}
    config = config.replace({"data.event_shape": data.event_shape})
    model = registry.build(config, seed=1)
    run = types.SimpleNamespace(
        folder=types.SimpleNamespace(path=tmp_path),
        use=lambda replica: model,
        num_replicas=1,
        config=config,
        data=data,
        trained_steps=0,
        structure=lambda replica: {},
    )
    for name in ("draw_grid", "draw_reconstructions"):
        real = getattr(plotting, name)
        monkeypatch.setattr(
            plotting, name, lambda *images, real=real, name=name, **rest: drawn.update({name: images}) or real(*images)
        )
    files = pictures.draw_all(run)
    assert {"samples.png", "reconstructions.png"} == {path.name for path in files}
    (samples,), (originals, means) = drawn["draw_grid"], drawn["draw_reconstructions"]
    np.testing.assert_allclose(originals, data.test[:20] / 255.0, rtol=1e-6)
    # A model without training has means near the middle; clipped levels would all be 1.
    for values in (samples, means):
        assert 0.0 < values.min() < values.max() < 1.0


@pytest.mark.parametrize("support", ["integers_0_255", "real"])
def test_tfstruct_sample_divides_grey_levels_by_255_and_real_values_by_their_range(support, tmp_path):
    tiny.run_python(SAMPLE, tmp_path / "samples.png", support)
    pixels = image.imread(tmp_path / "samples.png")[..., 0]
    found = np.unique(np.rint(255 * pixels))
    assert len(found) > 250  # one grey for each level
    assert (found.min(), found.max()) == (0, 255)


def test_images_of_real_values_are_shown_between_the_least_and_the_greatest(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).integers(-900, 2_000, [60, 6, 6]).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    real = ("model.likelihood=gaussian", "data.standardise=True", "data.event_shape=(6,6)")
    short = ("model.delta=3", "training.steps=2", "training.steps_per_call=2", "training.validate_every=2")
    chosen = ("data.name=file", f"data.file={str(tmp_path / 'rows.npy')!r}", "data.variant=none")
    config = tiny.presets.get("spvae/tiny", [*chosen, *real, *short])
    training.train(config, tmp_path / "run")
    run, drawn = report.TrainedRun(tmp_path / "run"), []
    draw = plotting.draw_reconstructions
    monkeypatch.setattr(
        plotting, "draw_reconstructions", lambda *images, **rest: drawn.append(images) or draw(*images, **rest)
    )
    titles = [part.title for part in parts.of_run(run, parts.Options(rows=5, num_samples=3))]
    assert {"Samples", "Inpainting", "Scores"} <= set(titles)
    test = run.data.test
    for originals, means in drawn:
        np.testing.assert_allclose(originals, (test - test.min()) / np.ptp(test), atol=1e-6)
        assert 0.1 < means.mean() < 0.9
    assert len(drawn) == 2
