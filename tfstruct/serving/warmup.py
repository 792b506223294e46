"""Warm-up records: requests that TensorFlow Serving replays when it loads a model.

Without them the first real request pays for memory plans and lazily made kernels, often a hundred times the usual
latency. The records need the official protocol buffers (the `serving` extra).
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import message
from tensorflow.core.framework import tensor_pb2

from tfstruct.files import count_records
from tfstruct.serving.contents import WARMUP_NAME, DamagedBundleError

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
    values["alpha"] = np.full(len(x), 0.05, np.float32)
    if "image_bytes" in inputs:
        values["image_bytes"] = encoded_images(x)
    if "x_given" in inputs:
        first = inputs["x_given"]["shape"][1]
        values |= {"x_given": x[:, :first], "x_query": x[:, first:]}
    return {name: values[name] for name in inputs}


def encoded_images(x: np.ndarray) -> np.ndarray:
    """Returns observations as PNG images, an object array [n] of bytes: an example for signatures that take them.

    Args:
        x: [n, height, width] or [n, height, width, channels], in 0..255 or in [0, 1].
    """
    scale = 255.0 if x.max(initial=0.0) <= 1.0 else 1.0
    images = np.rint(np.asarray(x) * scale).astype(np.uint8).reshape(*x.shape[:3], -1)
    return np.array([tf.io.encode_png(image).numpy() for image in images], object)


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


def check(folder: Path, card: dict[str, Any]) -> None:
    """Raises DamagedBundleError unless a bundle has as many whole warm-up records as its card says.

    Where the protocol buffers are installed, also unless each is a request to a signature of the card with its inputs.
    """
    path, found = folder / WARMUP_NAME, 0
    try:
        if path.exists():
            with open(path, "rb") as file:
                count_records(file)
        for record in tf.data.TFRecordDataset([str(path)]).as_numpy_iterator() if path.exists() else ():
            found += 1
            if is_available():
                _check_request(record, card["signatures"])
    except (tf.errors.OpError, message.DecodeError, ValueError) as error:
        raise DamagedBundleError(f"{path}: warm-up record {found} cannot be read: {error}") from error
    if found != card["warmup_records"]:
        raise DamagedBundleError(f"{path} has {found} warm-up records, expected {card['warmup_records']}")


def _check_request(record: bytes, signatures: dict[str, dict]) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    request = log.predict_log.request
    name = request.model_spec.signature_name
    if set(request.inputs) != set(signatures.get(name, {}).get("inputs", ())):
        raise ValueError(f"it asks {name!r} for {', '.join(sorted(request.inputs)) or 'nothing'}")


def _tensor(values: np.ndarray) -> tensor_pb2.TensorProto:  # pyright: ignore[reportAttributeAccessIssue]
    """Values as a protocol buffer, those that are all the same stored once."""
    first = values.flat[0]
    if np.all(values == first):
        return tf.make_tensor_proto(first, shape=values.shape)
    return tf.make_tensor_proto(values)
