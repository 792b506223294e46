"""Scores rows with an exported model: tfstruct-score --model=DIR --input=x.npz --output=scores.npz.

Needs TensorFlow alone: not Keras, not TensorFlow Probability, not the model's code.
"""

import os
import zipfile
from pathlib import Path

import numpy as np
from absl import flags

from tfstruct.trainers import entry

_MODEL = flags.DEFINE_string("model", None, "Folder of an exported model, or <system>/<preset>.", required=True)
_INPUT = flags.DEFINE_string("input", None, "A .npy file, or a .npz file (see --key): rows [N, ...].", required=True)
_KEY = flags.DEFINE_string("key", None, "Array of a .npz file; needed when it holds several.")
_OUTPUT = flags.DEFINE_string("output", None, "A .npz file to write: log_prob, std_err, bits_per_dim.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the importance samples.", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch_size", 100, "Rows computed at once.", lower_bound=1)


def read_rows(path: Path, key: str | None) -> np.ndarray:
    """Reads an array from a .npy or .npz file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, no such key, or several arrays without a key.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        data = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npy or .npz file: {error}") from None
    if isinstance(data, np.ndarray):
        return data
    with data:
        if key is None and len(data.files) != 1:
            raise ValueError(f"{path} holds the arrays {', '.join(data.files)}; choose one with --key")
        if key is not None and key not in data.files:
            raise ValueError(f"{path} holds no array {key!r}; it holds {', '.join(data.files)}")
        return data[key or data.files[0]]


def main() -> None:
    """Scores, writes the scores, prints their mean and standard error."""
    output = Path(_OUTPUT.value)
    if output.suffix != ".npz":
        raise ValueError(f"--output must end in .npz, found {output.name!r}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder of --output does not exist: {output.parent}")
    rows = read_rows(Path(_INPUT.value), _KEY.value)

    import tfstruct
    from tfstruct.serving.client import row_seeds

    model = tfstruct.load(_MODEL.value)
    # A seed for each row: with one for all, the error of the mean would not shrink with the number of rows.
    scores = model.log_prob(rows, seed=row_seeds(_SEED.value, len(rows)), batch_size=_BATCH.value)
    aside = output.with_name(f".{output.name}.{os.getpid()}.npz")
    np.savez(aside, **scores)
    aside.replace(output)
    mean = float(scores["log_prob"].mean(dtype=np.float64))
    error = float(scores["log_prob"].std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else float("nan")
    print(
        f"{model.path}: log-likelihood {mean:.2f} +- {error:.2f} (standard error over {len(rows)} rows) nats, "
        f"K={model.card['num_samples']}; scores in {output}"
    )


def run() -> None:
    """The console script `tfstruct-score`."""
    entry.run(main)


if __name__ == "__main__":
    run()
