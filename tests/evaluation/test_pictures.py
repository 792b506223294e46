import numpy as np
from matplotlib import image

from tfstruct.evaluation import pictures


def test_every_picture_of_a_replica_exists_and_shows_something(run):
    files = pictures.draw_all(run, replica=1)
    names = {path.name for path in files}
    stems = ("curves", "structure", "gates", "samples", "reconstructions")
    assert names == {f"{stem}_replica_1.png" for stem in stems} | {"structure_replica_1.dot"}
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
    assert not first.keys() & second.keys()
    assert first["samples_replica_0.png"] != second["samples_replica_1.png"]
