"""One request to a server of models: by gRPC or REST, waited for or awaited.

What is sent and what a reply means is said once for both ways of waiting. Packages that speak to a network are imported
when a connection is made.
"""

import json
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tfstruct.serving import tensors
from tfstruct.serving.errors import CODES, RemoteError, remote_error
from tfstruct.serving.extras import require

Arrays = dict[str, np.ndarray]
Signatures = dict[str, dict[str, dict[str, dict[str, Any]]]]  # as on a card

_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}  # the others have their own names


class Target(NamedTuple):
    """Which model of which server, and which version of it: its number or its label, or the server's choice."""

    address: str
    model: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        chosen = "" if self.version is None else f" version {self.version}"
        return f"{self.address}, model {self.model!r}{chosen}" + (f" label {self.label!r}" if self.label else "")

    def asked(self, signature: str) -> str:
        """The beginning of a message about a question."""
        return f"{self}, signature {signature!r}" if signature else str(self)


class Grpc:
    """What is sent to, and read from, the official gRPC services."""

    def __init__(self, target: Target, *, is_asynchronous: bool = False) -> None:
        grpc = require("grpc", "tensorflow_serving.apis.prediction_service_pb2_grpc")
        apis = "tensorflow_serving.apis"
        self.target, self.error = target, grpc.RpcError
        self._predict, self._metadata = require(f"{apis}.predict_pb2"), require(f"{apis}.get_model_metadata_pb2")
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Whoever tries again after a tenth of a second shall find the connection tried again as well.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self.channel = (grpc.aio if is_asynchronous else grpc).insecure_channel(target.address, options=options)
        stubs = require(f"{apis}.prediction_service_pb2_grpc")
        self.stub = stubs.PredictionServiceStub(self.channel)

    def _specify(self, spec: Any) -> None:
        spec.name = self.target.model
        if self.target.version is not None:
            spec.version.value = self.target.version
        if self.target.label is not None:
            spec.version_label = self.target.label

    def predict_request(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Any:
        """Returns the protocol buffer of a question."""
        import tensorflow as tf

        request = self._predict.PredictRequest()
        self._specify(request.model_spec)
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        return request

    def outputs(self, response: Any) -> Arrays:
        """Returns the arrays of a reply."""
        import tensorflow as tf

        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    def metadata_request(self) -> Any:
        """Returns the protocol buffer that asks for the signatures."""
        request = self._metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._specify(request.model_spec)
        return request

    def signatures(self, response: Any) -> Signatures:
        """Returns the signatures that a reply tells of."""
        from tfstruct.serving.trust import signature_specs

        definitions = self._metadata.SignatureDefMap()
        response.metadata["signature_def"].Unpack(definitions)
        return signature_specs(definitions.signature_def)

    def failed(self, error: Any, signature: str = "") -> RemoteError:
        """Returns what an error of gRPC means."""
        return remote_error(error.code().name, error.details() or "", self.target.asked(signature))


class GrpcTransport(Grpc):
    """Requests by gRPC that are waited for."""

    def predict(self, signature: str, inputs: Arrays, outputs: Mapping[str, Any], timeout: float) -> Arrays:
        """Returns the outputs of a signature; raises RemoteError."""
        try:
            return self.outputs(self.stub.Predict(self.predict_request(signature, inputs), timeout=timeout))
        except self.error as error:
            raise self.failed(error, signature) from None

    def card(self, timeout: float) -> dict[str, Any]:
        """Returns what the server tells of the model; raises RemoteError."""
        try:
            response = self.stub.GetModelMetadata(self.metadata_request(), timeout=timeout)
        except self.error as error:
            raise self.failed(error) from None
        return {"signatures": self.signatures(response)}

    def close(self) -> None:
        """Ends the connection."""
        self.channel.close()


class AsyncGrpcTransport(Grpc):
    """Requests by gRPC that are awaited."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, is_asynchronous=True)

    async def predict(self, signature: str, inputs: Arrays, outputs: Mapping[str, Any], timeout: float) -> Arrays:
        """As of `GrpcTransport`."""
        try:
            return self.outputs(await self.stub.Predict(self.predict_request(signature, inputs), timeout=timeout))
        except self.error as error:
            raise self.failed(error, signature) from None

    async def card(self, timeout: float) -> dict[str, Any]:
        """As of `GrpcTransport`."""
        try:
            response = await self.stub.GetModelMetadata(self.metadata_request(), timeout=timeout)
        except self.error as error:
            raise self.failed(error) from None
        return {"signatures": self.signatures(response)}

    async def close(self) -> None:
        """Ends the connection."""
        await self.channel.close()


class Rest:
    """What is sent to, and read from, the REST interface of TensorFlow Serving."""

    def __init__(self, target: Target) -> None:
        self.target, self.httpx = target, require("httpx")
        base = target.address if "://" in target.address else f"http://{target.address}"
        self.url = f"{base.rstrip('/')}/v1/models/{urllib.parse.quote(target.model, safe='')}"
        if target.version is not None:
            self.url += f"/versions/{target.version}"
        elif target.label is not None:
            self.url += f"/labels/{urllib.parse.quote(target.label, safe='')}"

    def predict_request(self, signature: str, inputs: Arrays) -> dict[str, Any]:
        """Returns the arguments of an HTTP request that asks a question."""
        body = tensors.request_body(signature, inputs)
        return {"url": f"{self.url}:predict", "content": body, "headers": {"Content-Type": "application/json"}}

    def read(self, response: Any, signature: str = "") -> Any:
        """Returns the JSON of a reply; raises RemoteError where it is none or says that something failed."""
        try:
            reply = json.loads(response.content)
        except (ValueError, RecursionError):
            reply = None
        if response.status_code == 200 and reply is not None:
            return reply
        said = reply.get("error") if isinstance(reply, dict) else None
        said = said or f"HTTP status {response.status_code}: {response.text[:200]}"
        raise remote_error(CODES.get(response.status_code, "UNKNOWN"), str(said), self.target.asked(signature))

    def outputs(self, response: Any, signature: str, outputs: Mapping[str, Any]) -> Arrays:
        """Returns the arrays of a reply; raises RemoteError."""
        reply = self.read(response, signature)
        try:
            return tensors.from_reply(reply, outputs)
        except ValueError as error:
            raise remote_error("INTERNAL", str(error), self.target.asked(signature)) from None

    def failed(self, error: Exception, signature: str = "") -> RemoteError:
        """Returns what an error of the network means."""
        code = "DEADLINE_EXCEEDED" if isinstance(error, self.httpx.TimeoutException) else "UNAVAILABLE"
        return remote_error(code, str(error) or type(error).__name__, self.target.asked(signature))

    @staticmethod
    def has_no_card(error: RemoteError) -> bool:
        """Whether a server that is asked for a card does not know that it could have one."""
        return error.code in ("NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED")

    def signatures(self, response: Any) -> Signatures:
        """Returns the signatures that a reply tells of."""
        definitions = self.read(response)["metadata"]["signature_def"]["signature_def"]
        return {
            name: {
                side: {
                    key: {
                        "dtype": _DTYPES.get(info["dtype"], info["dtype"].removeprefix("DT_").lower()),
                        "shape": [int(axis["size"]) for axis in info["tensor_shape"].get("dim", ())],
                    }
                    for key, info in definition.get(side, {}).items()
                }
                for side in ("inputs", "outputs")
            }
            for name, definition in definitions.items()
            if not name.startswith("__")
        }


class RestTransport(Rest):
    """Requests by REST that are waited for."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._client = self.httpx.Client()

    def predict(self, signature: str, inputs: Arrays, outputs: Mapping[str, Any], timeout: float) -> Arrays:
        """As of `GrpcTransport`; `outputs` of the signature on the card."""
        try:
            response = self._client.post(**self.predict_request(signature, inputs), timeout=timeout)
        except self.httpx.TransportError as error:
            raise self.failed(error, signature) from None
        return self.outputs(response, signature, outputs)

    def card(self, timeout: float) -> dict[str, Any]:
        """As of `GrpcTransport`; the whole card where the server gives it."""
        try:
            try:
                return self.read(self._client.get(f"{self.url}/card", timeout=timeout))
            except RemoteError as error:
                if not self.has_no_card(error):
                    raise
            return {"signatures": self.signatures(self._client.get(f"{self.url}/metadata", timeout=timeout))}
        except self.httpx.TransportError as error:
            raise self.failed(error) from None

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()


class AsyncRestTransport(Rest):
    """Requests by REST that are awaited."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._client = self.httpx.AsyncClient()

    async def predict(self, signature: str, inputs: Arrays, outputs: Mapping[str, Any], timeout: float) -> Arrays:
        """As of `RestTransport`."""
        try:
            response = await self._client.post(**self.predict_request(signature, inputs), timeout=timeout)
        except self.httpx.TransportError as error:
            raise self.failed(error, signature) from None
        return self.outputs(response, signature, outputs)

    async def card(self, timeout: float) -> dict[str, Any]:
        """As of `RestTransport`."""
        try:
            try:
                return self.read(await self._client.get(f"{self.url}/card", timeout=timeout))
            except RemoteError as error:
                if not self.has_no_card(error):
                    raise
            return {"signatures": self.signatures(await self._client.get(f"{self.url}/metadata", timeout=timeout))}
        except self.httpx.TransportError as error:
            raise self.failed(error) from None

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.aclose()
