"""Figures of a running job as Ray metrics, which a dashboard reads from the metrics port of the job's node.

In: name → value. Out: gauges `ray_clipautt_<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "clipautt_"
"""Ray puts `ray_` before it: `clips_done` becomes `ray_clipautt_clips_done`."""


class JobMetrics:
    """Gauges of one job, labelled with its name; they need a connected Ray."""

    def __init__(self, job: str) -> None:
        from ray.util.metrics import Gauge

        self._job = job
        self._new = Gauge
        self._gauges: dict[str, Gauge] = {}

    def publish(self, figures: Mapping[str, float]) -> None:
        """Set the gauges of these names, given without prefix; Ray exports them within a few seconds."""
        for name, value in figures.items():
            if name not in self._gauges:
                self._gauges[name] = self._new(PREFIX + name, description=name.replace("_", " "), tag_keys=("job",))
            self._gauges[name].set(value, tags={"job": self._job})
