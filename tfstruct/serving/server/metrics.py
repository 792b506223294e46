"""Counters of a server in the form that Prometheus reads."""

import prometheus_client as prometheus


class Metrics:
    """Requests, their times, queue and batches; names of models and signatures are only those that exist."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        labels = ["model", "signature"]
        self.requests = prometheus.Counter(
            "tfstruct_requests", "Requests that were answered.", [*labels, "interface", "code"], registry=self.registry
        )
        self.seconds = prometheus.Histogram(
            "tfstruct_request_seconds",
            "Time from the checked request to its answer.",
            labels,
            registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )
        self.queued = prometheus.Gauge(
            "tfstruct_queued_requests", "Requests that wait or are computed.", registry=self.registry
        )
        self.batch_requests = prometheus.Histogram(
            "tfstruct_batch_requests",
            "Requests that were computed together.",
            labels,
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        self.batch_rows = prometheus.Histogram(
            "tfstruct_batch_rows",
            "Rows that were computed together.",
            labels,
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )

    def text(self) -> bytes:
        """Returns all of them as Prometheus reads them."""
        return prometheus.generate_latest(self.registry)
