"""The gRPC services of TensorFlow Serving: predictions, metadata and status."""

import logging
from collections.abc import Awaitable
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from tfstruct.serving import tensors
from tfstruct.serving.errors import RequestError
from tfstruct.serving.extras import require
from tfstruct.serving.server.service import Service
from tfstruct.serving.server.versions import Version

_LOG = logging.getLogger("tfstruct.serve")
# Type checkers do not see what is in these.
get_model_metadata_pb2 = require("tensorflow_serving.apis.get_model_metadata_pb2")
get_model_status_pb2 = require("tensorflow_serving.apis.get_model_status_pb2")
predict_pb2 = require("tensorflow_serving.apis.predict_pb2")


def _chosen(spec: Any) -> tuple[str, int | None, str | None]:
    """Returns name, version and label of a ModelSpec."""
    choice = spec.WhichOneof("version_choice")
    number = spec.version.value if choice == "version" else None
    return spec.name, number, spec.version_label if choice == "version_label" else None


def _array(name: str, proto: Any, expected: dict[str, Any], max_rows: int) -> np.ndarray:
    """Returns the values of a tensor; raises RequestError before a small message could become a large array."""
    try:
        dtype = tf.as_dtype(proto.dtype).name
        shape = tuple(axis.size for axis in proto.tensor_shape.dim)
        if proto.tensor_shape.unknown_rank or dtype != expected["dtype"]:
            raise ValueError(f"{name} must be {expected['dtype']}, found {dtype}")
        tensors.check_shape(name, shape, expected["shape"])
        if shape[0] > max_rows:
            raise ValueError(f"a request may have {max_rows} rows, found {shape[0]}; send several")
        return tf.make_ndarray(proto)
    except (ValueError, TypeError) as error:
        raise RequestError("INVALID_ARGUMENT", str(error)) from None


async def _guarded(context: Any, answer: Awaitable[Any]) -> Any:
    """Returns an answer; an error ends the call with its code, and with nothing of a traceback."""
    try:
        return await answer
    except RequestError as error:
        code, text = error.code, error.message
    except Exception:
        _LOG.exception("a request failed")
        code, text = "INTERNAL", "the server failed; its log says more"
    await context.abort(grpc.StatusCode[code], text)


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def Predict(self, request: Any, context: Any) -> Any:
        return await _guarded(context, self._predict(request, context))

    async def _predict(self, request: Any, context: Any) -> Any:
        name, number, label = _chosen(request.model_spec)
        signature = request.model_spec.signature_name or "serving_default"
        limit = self._service.settings.max_rows

        async def inputs(version: Version) -> dict[str, np.ndarray]:
            expected = version.signature(signature)["inputs"]
            unknown = set(request.inputs) - expected.keys()
            if unknown:
                wanted = ", ".join(expected)
                found = ", ".join(sorted(request.inputs))
                raise RequestError("INVALID_ARGUMENT", f"{signature} takes the inputs {wanted}, found {found}")
            return {key: _array(key, proto, expected[key], limit) for key, proto in request.inputs.items()}

        version, outputs = await self._service.predict(
            "grpc", (name, number, label), signature, inputs, context.time_remaining()
        )
        wanted = list(request.output_filter) or list(outputs)
        if not set(wanted) <= outputs.keys():
            raise RequestError("INVALID_ARGUMENT", f"{signature} gives {', '.join(outputs)}, asked for {wanted}")
        response = predict_pb2.PredictResponse()
        _specify(response.model_spec, version, signature)
        for key in wanted:
            response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return response

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return await _guarded(context, self._metadata(request))

    async def _metadata(self, request: Any) -> Any:
        if list(request.metadata_field) != ["signature_def"]:
            raise RequestError("INVALID_ARGUMENT", "metadata_field must be signature_def")
        version = self._service.models.find(*_chosen(request.model_spec))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _specify(response.model_spec, version, "")
        definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=version.definitions)
        response.metadata["signature_def"].Pack(definitions)
        return response


class _Status(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        return await _guarded(context, self._status(request))

    async def _status(self, request: Any) -> Any:
        response = get_model_status_pb2.GetModelStatusResponse()
        states = get_model_status_pb2.ModelVersionStatus.State
        for number, state, text in self._service.status(*_chosen(request.model_spec)):
            entry = response.model_version_status.add(version=number, state=states.Value(state))
            entry.status.error_message = text
            entry.status.error_code = 2 if text else 0  # UNKNOWN
        return response


def _specify(spec: Any, version: Version, signature: str) -> None:
    spec.name, spec.signature_name = version.name, signature
    spec.version.value = version.number


async def start(service: Service) -> tuple[Any, int]:
    """Starts to listen; returns the server and its port.

    Raises:
        OSError: the port is taken.
    """
    settings = service.settings
    options = [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # else a second server would take half of the requests of the first
    ]
    server = grpc.aio.server(options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(service), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Status(service), server)
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen at {settings.host}:{settings.grpc_port} for gRPC: {error}") from None
    await server.start()
    return server, port
