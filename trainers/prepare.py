"""Writes files of any size as one that training maps: tfstruct-prepare --input='data/*.parquet' --output=rows.npy.

Rows are put in random order, because of a file that is too large for memory training, validation and test rows are
contiguous blocks.
"""

from absl import flags

from tfstruct.trainers import entry

_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "Files, image folders, or patterns: .npy, .npz, .parquet, .tfrecord, .csv.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "The .npy file to make.", required=True)
_EVENT_SHAPE = flags.DEFINE_list("event_shape", None, "Of a row, such as 28,28; images are resized.", required=True)
_KEY = flags.DEFINE_string("key", None, "Array, feature or column, where a file has several.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["uint8", "float32"], "Of the numbers; default by the first rows.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the order.", lower_bound=0)


def main() -> None:
    """Writes the file and prints what it holds."""
    if not all(size.strip().isdecimal() and int(size) > 0 for size in _EVENT_SHAPE.value):
        raise ValueError(f"--event_shape is of sizes, such as 28,28, found {','.join(_EVENT_SHAPE.value)!r}")
    import numpy as np

    from tfstruct.data import prepare, sources

    event_shape = tuple(int(size) for size in _EVENT_SHAPE.value)
    found = sources.find(_INPUT.value, _KEY.value, event_shape)
    output = prepare.prepare(found, _OUTPUT.value, dtype=_DTYPE.value, seed=_SEED.value)
    rows = np.load(output, mmap_mode="r")
    print(f"{len(rows):,} rows of {list(event_shape)}, {rows.dtype}, {rows.nbytes / 1e6:,.1f} MB: {output}")


def run() -> None:
    """The console script `tfstruct-prepare`."""
    entry.run(main)


if __name__ == "__main__":
    run()
