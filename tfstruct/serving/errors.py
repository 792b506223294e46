"""What a server of models can answer in place of a result, by gRPC's code, and what a client makes of it."""

from typing import Any

#: HTTP statuses of gRPC's codes, as TensorFlow Serving gives them
STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}
#: HTTP statuses to codes: the first code of each, and what proxies answer
CODES = {status: code for code, status in reversed(STATUS.items())} | {
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "TOO_LARGE",
    500: "INTERNAL",
    502: "UNAVAILABLE",
}


class RequestError(Exception):
    """A request that a server refuses, for a reason that its sender may read.

    Args:
        code: of gRPC, by its name.
        message: the reason.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class RemoteError(RuntimeError):
    """A question that a server did not answer.

    Attributes:
        code: gRPC's name of the kind of error; `TOO_LARGE` of a message that is.
        said: what the server, or the network, said.
    """

    def __init__(self, message: str, code: str = "UNKNOWN", said: str = "") -> None:
        super().__init__(message)
        self.code, self.said = code, said


class ServerUnavailableError(RemoteError, ConnectionError):
    """Nobody answers at the address, or a server that takes no requests now."""


class RemoteTimeoutError(RemoteError, TimeoutError):
    """No answer in time."""


class UnknownModelError(RemoteError, LookupError):
    """The server has no such model, version, label or signature."""


class RemoteInputError(RemoteError, ValueError):
    """The server refuses the inputs."""


class MessageTooLargeError(RemoteInputError):
    """A request or its answer is larger than the server, or this client, takes."""


_CLASSES: dict[str, type[RemoteError]] = {
    "UNAVAILABLE": ServerUnavailableError,
    "DEADLINE_EXCEEDED": RemoteTimeoutError,
    "NOT_FOUND": UnknownModelError,
    "INVALID_ARGUMENT": RemoteInputError,
    "FAILED_PRECONDITION": RemoteInputError,
    "OUT_OF_RANGE": RemoteInputError,
    "TOO_LARGE": MessageTooLargeError,
}
_MEANINGS = {
    "UNAVAILABLE": "the server cannot be reached or takes no requests now",
    "DEADLINE_EXCEEDED": "no answer within the timeout",
    "NOT_FOUND": "the server has no such model, version, label or signature",
    "INVALID_ARGUMENT": "the server refuses the inputs",
    "TOO_LARGE": "a message is larger than the server or this client takes; a smaller batch_size makes smaller ones",
    "RESOURCE_EXHAUSTED": "the server has too much to do",
    "UNIMPLEMENTED": "the server does not offer this; is it a server of models, and the right port?",
}


def remote_error(code: str, said: str, about: Any) -> RemoteError:
    """Returns the exception for a code.

    Args:
        code: gRPC's name of it.
        said: by the server.
        about: address, model and signature, for the message.
    """
    # gRPC has one code for a server without room and for a message that is too large; the second will not get better.
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in said:
        code = "TOO_LARGE"
    meaning = _MEANINGS.get(code, code.lower().replace("_", " "))
    return _CLASSES.get(code, RemoteError)(f"{about}: {meaning}: {said}", code, said)


def is_worth_retrying(error: RemoteError) -> bool:
    """Whether the same question may be answered later: questions change nothing, so asking twice does no harm."""
    return error.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
