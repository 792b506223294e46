"""Serves exported models by gRPC and REST as TensorFlow Serving does: tfstruct-serve --models=graph_vae/mnist.

For development, and for machines for which there is no TensorFlow Serving; it is no rival of it: one Python process
passes on every request, and there is neither TLS nor authentication. Needs the extra `serving`.
"""

import logging
import os
from typing import Any

from absl import flags

from tfstruct import progress
from tfstruct.serving.server.settings import Settings
from tfstruct.trainers import entry

_DEFAULT = Settings(())
_MODELS = flags.DEFINE_multi_string(
    "models", [], "A folder of numbered versions as name=folder, or a bundle's name: graph_vae/mnist is then served as "
    "graph_vae_mnist. May be repeated."
)  # fmt: skip
_CONFIG = flags.DEFINE_string("model_config_file", "", "A ModelServerConfig in text form, with models and labels.")
_HOST = flags.DEFINE_string("host", _DEFAULT.host, "Address to listen at; nobody who reaches it is asked who he is.")
_GRPC = flags.DEFINE_integer("grpc_port", _DEFAULT.grpc_port, "Port of gRPC; 0 for a free one.", 0, 65535)
_REST = flags.DEFINE_integer("rest_port", _DEFAULT.rest_port, "Port of REST; 0 for a free one.", 0, 65535)
_BATCH = flags.DEFINE_integer("max_batch_size", _DEFAULT.max_batch_size, "Rows that requests are joined to.", 1)
_WAIT = flags.DEFINE_float(
    "batch_timeout_ms", _DEFAULT.batch_timeout_ms, "How long to wait for others while a thread is free.", 0
)
_THREADS = flags.DEFINE_integer("threads", os.cpu_count() or 1, "Batches that are computed at once.", 1)
_ROWS = flags.DEFINE_integer("max_rows", _DEFAULT.max_rows, "Rows of one request.", 1)
_QUEUE = flags.DEFINE_integer(
    "max_queued_requests", _DEFAULT.max_queued_requests, "Requests that wait or are computed; more are refused.", 1
)
_BODY = flags.DEFINE_integer("max_body_bytes", _DEFAULT.max_body_bytes, "Bytes of one request.", 1024)
_TIMEOUT = flags.DEFINE_float("timeout_seconds", _DEFAULT.timeout_seconds, "Of a request without a deadline.", 0.001)
_POLL = flags.DEFINE_float("poll_seconds", _DEFAULT.poll_seconds, "Between looks for new versions; 0 for never.", 0)
_NOTICE = flags.DEFINE_float(
    "shutdown_notice_seconds", 0.0, "How long to answer on after SIGTERM, while the status says not ready.", 0
)
_END = flags.DEFINE_float("shutdown_seconds", _DEFAULT.shutdown_seconds, "How long requests may then take.", 0)


def main() -> None:
    """Serves until SIGTERM."""
    try:
        from tfstruct.serving.server import app
    except ImportError as error:
        needed = "tfstruct-serve needs the extra `serving`: pip install 'tfstruct[serving]'"
        raise RuntimeError(f"{needed} ({error})") from error
    progress.show(False)  # requests are asked by many threads
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in Settings._fields}
    values["models"] = tuple(values["models"])
    app.serve(Settings(**values), lambda text: print(text, flush=True))


def run() -> None:
    """The console script `tfstruct-serve`."""
    entry.run(main)


if __name__ == "__main__":
    run()
