import io

import numpy as np
from matplotlib import image
from tensorboard.backend.event_processing import event_accumulator

from tfstruct.evaluation import pictures


def test_every_picture_of_a_replica_exists_and_shows_something(run):
    files = pictures.draw_all(run, replica=1)
    names = {path.name for path in files}
    lines, pixels = (
        ("structure_replica_1", "gates_replica_1", "curves"),
        ("samples_replica_1", "reconstructions_replica_1"),
    )
    expected = {f"{stem}.{kind}" for stem in lines for kind in ("png", "svg")} | {f"{stem}.png" for stem in pixels}
    assert names == expected | {"structure_replica_1.dot"}
    for path in files:
        assert path.parent == run.folder.path / "pictures"
        if path.suffix == ".png":
            pixels = image.imread(path)
            assert min(pixels.shape[:2]) > 50, path
            assert pixels[..., :3].std() > 0.02, f"{path} is blank"
            assert len(np.unique(pixels[..., :3])) > 8, path
    dot = (run.folder.path / "pictures/structure_replica_1.dot").read_text()
    assert dot.startswith("digraph")


def test_replicas_have_pictures_of_their_own(run):
    first, second = ({path.name: path.read_bytes() for path in pictures.draw_all(run, replica=r)} for r in (0, 1))
    assert first.keys() & second.keys() == {"curves.png", "curves.svg"}
    assert first["samples_replica_0.png"] != second["samples_replica_1.png"]


def test_the_pictures_are_in_tensorboard(run):
    files = pictures.draw_all(run, replica=0)
    found = event_accumulator.EventAccumulator(str(run.folder.path / "tensorboard"))
    found.Reload()
    names = {path.stem for path in files if path.suffix == ".png"}
    assert names <= set(found.Tags()["tensors"])
    drawn = found.Tensors("samples_replica_0")[-1]
    assert drawn.step == run.trained_steps
    expected = image.imread(run.folder.path / "pictures/samples_replica_0.png")[..., :3]
    encoded = drawn.tensor_proto.string_val[2]  # after width and height
    np.testing.assert_array_equal(image.imread(io.BytesIO(encoded))[..., :3], expected)
