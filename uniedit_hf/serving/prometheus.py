"""The metrics of `/metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = {"namespace": "uniedit", "registry": self.registry}
        self.requests = Counter("requests", "Responses by route and status", ["route", "status"], **own)
        self.request_seconds = Histogram(
            "request_seconds", "Seconds from a request to the end of its response", ["route"], buckets=SECONDS, **own
        )
        self.in_flight = Gauge("requests_in_flight", "Requests that are being received, run or answered", **own)
        self.waiting = Gauge("jobs_waiting", "Drawings and answers that wait for the model", **own)
        self.running = Gauge("jobs_running", "Drawings and answers that the model makes", **own)
        self.wait_seconds = Histogram("wait_seconds", "Seconds before a job begins", buckets=SECONDS, **own)
        self.batch_size = Histogram("batch_size", "Jobs in a batch", ["verb"], buckets=SIZES, **own)
        self.batch_seconds = Histogram("batch_seconds", "Seconds of a batch", ["verb"], buckets=SECONDS, **own)
        self.tokens = Counter("tokens", "Tokens that were read or written", ["direction"], **own)
        self.images = Counter("images", "Images that were drawn", **own)
        self.cancelled = Counter("jobs_cancelled", "Jobs whose client left or whose time ran out", **own)
        self.failed = Counter("jobs_failed", "Jobs that ended in an error of the server", **own)

    def text(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self.registry)
