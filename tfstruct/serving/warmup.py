"""Warm-up records: requests that TensorFlow Serving replays when it loads a model.

Without them the first real request pays for memory plans and lazily made kernels, often a hundred times the usual
latency. The records need the official protocol buffers (the `serving` extra).
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

WARMUP_NAME = Path("assets.extra") / "tf_serving_warmup_requests"
BATCH_SIZES = (1, 4, 16, 64)


def is_available() -> bool:
    """Whether the protocol buffers of TensorFlow Serving are installed."""
    try:
        import tensorflow_serving.apis  # noqa: F401
    except ImportError:
        return False
    return True


def example(inputs: dict[str, dict], x: np.ndarray, seed: np.ndarray) -> dict[str, Any]:
    """Returns values for the inputs of a signature, with the first half of each row's values observed.

    Args:
        inputs: of the signature, as on the card.
        x: observations [n, *event_shape].
        seed: of each row, [n].
    """
    half = np.arange(x[0].size) < x[0].size // 2
    values = {"x": x, "seed": seed, "observed": np.broadcast_to(half.reshape(x.shape[1:]), x.shape)}
    if "x_given" in inputs:
        first = inputs["x_given"]["shape"][1]
        values |= {"x_given": x[:, :first], "x_query": x[:, first:]}
    return {name: values[name] for name in inputs}


def write(folder: Path, signatures: dict[str, dict], x: np.ndarray) -> int:
    """Writes one record per signature and batch size into a bundle; returns how many.

    Records of one row hold a real observation. Those of more are zeros, which lie in every support and cost the server
    the same: a constant array takes a few bytes, and the real ones of all batches a megabyte.

    Args:
        folder: the bundle.
        signatures: `signatures` of the card: input names by signature.
        x: valid observations [n, *event_shape].

    Raises:
        ImportError: the protocol buffers are not installed.
    """
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    path = folder / WARMUP_NAME
    path.parent.mkdir(exist_ok=True)
    count = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, specs in signatures.items():
            for size in BATCH_SIZES:
                rows = x[:1] if size == 1 else np.zeros([size, *x.shape[1:]], x.dtype)
                values = example(specs["inputs"], rows, np.arange(size, dtype=np.int64))
                request = predict_pb2.PredictRequest(  # pyright: ignore[reportAttributeAccessIssue]
                    model_spec=model_pb2.ModelSpec(signature_name=name),  # pyright: ignore[reportAttributeAccessIssue]
                    inputs={key: _tensor(value) for key, value in values.items()},
                )
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))  # pyright: ignore[reportAttributeAccessIssue]
                writer.write(log.SerializeToString())
                count += 1
    return count


def _tensor(values: np.ndarray) -> tensor_pb2.TensorProto:  # pyright: ignore[reportAttributeAccessIssue]
    """Values as a protocol buffer, those that are all the same stored once."""
    first = values.flat[0]
    if np.all(values == first):
        return tf.make_tensor_proto(first, shape=values.shape)
    return tf.make_tensor_proto(values)
