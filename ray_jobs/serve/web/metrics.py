"""What the server does, in figures for Prometheus.

In: what was answered, refused or received. Out: the text of `GET /metrics`. Labels take few values: templates of
routes, codes, stages and deployments, never what a request says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from ray_jobs.serve.refusals import KINDS

STAGES = ("receive", "wait", "decode", "encode", "predict", "adapt")
"""Fields of `Timings` that are seconds."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_FRAME_SECONDS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_VIDEOS = (1, 2, 4, 8, 16, 32)


def known_method(method: str) -> str:
    """An HTTP method, or `other` for one that is not common: a client may send any word."""
    return method if method in _METHODS else "other"


class Metrics:
    """The figures of one server process."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)

        def named(kind: Any, name: str, about: str, *labels: str, **more: Any) -> Any:
            return kind(f"clipautt_serve_{name}", about, labels, registry=registry, **more)

        self._requests = named(Counter, "requests_total", "Requests by HTTP status", "route", "method", "code")
        self._seconds = named(
            Histogram, "request_seconds", "From a request's headers to the end of its answer", "route", buckets=_SECONDS
        )
        self._failures = named(Counter, "failures_total", "Requests and live sessions refused, by reason", "reason")
        self._uploaded = named(Counter, "upload_bytes_total", "Bytes of request bodies that were received")
        self._queue = named(Gauge, "queue", "Videos that are in work, and those that wait for a worker", "state")
        self._stages = named(Histogram, "stage_seconds", "Time of a video in a stage", "stage", buckets=_SECONDS)
        self._batches = named(
            Histogram, "batch_videos", "Videos that a video was encoded together with, itself included", buckets=_VIDEOS
        )
        self._live_clients = named(Gauge, "live_clients", "Live sessions that are open")
        self._live_frames = named(Counter, "live_frames_total", "Live frames that were received")
        self._live_dropped = named(Counter, "live_frames_dropped_total", "Live frames that came too fast")
        self._live_seconds = named(
            Histogram, "live_frame_seconds", "From receiving a live frame to its answer", buckets=_FRAME_SECONDS
        )
        self._spool = named(Gauge, "spool_bytes", "Bytes of uploads that lie on disk")
        self._ready = named(Gauge, "ready_replicas", "Replicas that have answered a real prediction", "deployment")
        for code in KINDS:  # Prometheus sees a first failure only where it has seen none before.
            self._failures.labels(code)

    def observe_request(self, route: str, method: str, status: int, seconds: float | None, received: int) -> None:
        """Count a request.

        Args:
            route: template of the route, or `unmatched`.
            method: HTTP method, see `known_method`.
            status: HTTP status.
            seconds: how long it took; None for a live session, which lasts as long as its client likes.
            received: bytes of its body.
        """
        self._requests.labels(route, method, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)
        self._uploaded.inc(received)

    def observe_refusal(self, code: str) -> None:
        """Count a refusal by its code; one that `KINDS` does not have is counted as `other`."""
        self._failures.labels(code if code in KINDS else "other").inc()

    def observe_answer(self, answer: Mapping[str, Any]) -> None:
        """Record where the time of an `Answer`, as plain values, went, and how large its batch was.

        Stages that took no time are left out.
        """
        timings = answer["timings"]
        for stage in STAGES:
            if timings[stage] > 0:
                self._stages.labels(stage).observe(timings[stage])
        self._batches.observe(timings["batch_videos"])

    def observe_live_frame(self, seconds: float | None) -> None:
        """Count a live frame that was received.

        Args:
            seconds: from receiving it to its answer; None if it was dropped.
        """
        self._live_frames.inc()
        if seconds is None:
            self._live_dropped.inc()
        else:
            self._live_seconds.observe(seconds)

    def set_live_clients(self, number: int) -> None:
        """Set how many live sessions are open."""
        self._live_clients.set(number)

    def watch_queue(self, working: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Ask for the videos in work, and those that wait, whenever the figures are read."""
        self._queue.labels("working").set_function(working)
        self._queue.labels("waiting").set_function(waiting)

    def set_ready(self, replicas: Mapping[str, int]) -> None:
        """Set how many replicas of each deployment are ready."""
        for deployment, number in replicas.items():
            self._ready.labels(deployment).set(number)

    def watch_spool(self, size: Callable[[], float]) -> None:
        """Ask for the bytes of the spool folder whenever the figures are read."""
        self._spool.set_function(size)

    def render(self) -> tuple[bytes, str]:
        """The figures in Prometheus's text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
