"""Grey levels are drawn in units of [0, 1], as pictures of a run and by tfstruct-sample."""

import types

import numpy as np
from matplotlib import image

from tests.trainers import tiny, tiny_circuit
from tfstruct import plotting
from tfstruct.evaluation import pictures
from tfstruct.models import registry
from tfstruct.training.data import load_data

# A loaded model whose draws are all levels in turn.
SAMPLE = """
import sys
import numpy as np
import tfstruct
from tfstruct.trainers import sample

class Levels:
    observation_scale = 255.0
    def sample(self, num, seed):
        levels = np.resize(np.arange(0.0, 256.0), [num, 8, 8])
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


def test_tfstruct_sample_divides_grey_levels_by_255(tmp_path):
    tiny.run_python(SAMPLE, tmp_path / "samples.png")
    pixels = image.imread(tmp_path / "samples.png")[..., 0]
    found = np.unique(np.rint(255 * pixels))
    assert len(found) > 250  # one grey for each level
    assert (found.min(), found.max()) == (0, 255)
