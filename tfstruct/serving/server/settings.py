"""What a server is started with."""

from typing import NamedTuple


class Settings(NamedTuple):
    """Addresses, models and limits of a server.

    Attributes:
        models: `name=folder`, or a bundle's name such as `graph_vae/mnist`, which is served as `graph_vae_mnist`.
        model_config_file: a ModelServerConfig in text form, as TensorFlow Serving reads it; empty for none.
        host: address to listen at.
        grpc_port: 0 for a free one, which is printed.
        rest_port: the same.
        max_batch_size: rows that requests are joined to.
        batch_timeout_ms: how long a request waits for others although a thread is free, milliseconds. With 0 they are
            joined while all threads are busy, which costs an idle server's requests no time.
        threads: batches that are computed at once.
        max_rows: of one request.
        max_queued_requests: that wait or are computed; more are refused.
        max_body_bytes: of one request.
        timeout_seconds: of a request that brings no deadline of its own, as REST requests do not.
        poll_seconds: how often folders and the config file are looked at; 0 for never.
        shutdown_notice_seconds: how long the server still answers, and says that it is not ready, after SIGTERM.
        shutdown_seconds: how long requests under way may then take.
    """

    models: tuple[str, ...]
    model_config_file: str = ""
    host: str = "127.0.0.1"
    grpc_port: int = 8500
    rest_port: int = 8501
    max_batch_size: int = 64
    batch_timeout_ms: float = 0.0
    threads: int = 2
    max_rows: int = 1024
    max_queued_requests: int = 256
    max_body_bytes: int = 8 * 2**20
    timeout_seconds: float = 30.0
    poll_seconds: float = 5.0
    shutdown_notice_seconds: float = 0.0
    shutdown_seconds: float = 30.0
