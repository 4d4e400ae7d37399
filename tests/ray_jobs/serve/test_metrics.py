"""What Prometheus reads of a server, by Prometheus's own parser."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_jobs.serve.refusals import KINDS
from ray_jobs.serve.web.metrics import Metrics, known_method
from ray_jobs.serve.web.schemas import Timings


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, values of the labels by their names …) → value."""
    text, kind = metrics.render()
    assert kind.startswith("text/plain; version=")
    families = text_string_to_metric_families(text.decode())
    return {
        (one.name, *(one.labels[label] for label in sorted(one.labels))): one.value
        for family in families
        for one in family.samples
    }


def test_what_was_observed_is_what_is_read() -> None:
    metrics = Metrics()
    metrics.observe_request("/v1/predict", "POST", 200, 0.3, 4000)
    metrics.observe_request("/v1/predict", "POST", 200, 0.03, 50)
    metrics.observe_request("/v1/live", "GET", 101, None, 7)
    timings = Timings(receive=0.4, wait=0.0, decode=0.06, encode=0.02, predict=0.001, adapt=0.0, batch_videos=3)
    metrics.observe_answer({"timings": timings.model_dump()})
    metrics.observe_refusal("no_face")
    metrics.observe_refusal("anna-smith")
    for seconds in (0.05, None, 0.19, None, None):
        metrics.observe_live_frame(seconds)
    metrics.set_ready({"decoder": 2, "encoder": 0})
    spool = [10.0]
    metrics.watch_spool(lambda: spool[0])
    metrics.watch_queue(lambda: 1, lambda: 4)
    metrics.set_live_clients(1)
    spool[0] = 2500.0
    read = samples(metrics)
    expected = {
        ("requests_total", "200", "POST", "/v1/predict"): 2,
        ("requests_total", "101", "GET", "/v1/live"): 1,
        ("request_seconds_count", "/v1/predict"): 2,
        ("request_seconds_sum", "/v1/predict"): 0.33,
        ("request_seconds_bucket", "0.05", "/v1/predict"): 1,
        ("upload_bytes_total",): 4057,
        ("stage_seconds_sum", "receive"): 0.4,
        ("stage_seconds_bucket", "0.05", "decode"): 0,
        ("stage_seconds_bucket", "0.1", "decode"): 1,
        ("batch_videos_bucket", "2.0"): 0,
        ("batch_videos_bucket", "4.0"): 1,
        ("failures_total", "no_face"): 1,
        ("failures_total", "other"): 1,
        ("failures_total", "too_large"): 0,
        ("live_frames_total",): 5,
        ("live_frames_dropped_total",): 3,
        ("live_frame_seconds_bucket", "0.2"): 2,
        ("live_clients",): 1,
        ("queue", "waiting"): 4,
        ("queue", "working"): 1,
        ("spool_bytes",): 2500,
        ("ready_replicas", "decoder"): 2,
        ("ready_replicas", "encoder"): 0,
    }
    assert {key: read.get((f"clipautt_serve_{key[0]}", *key[1:])) for key in expected} == pytest.approx(expected)
    assert ("clipautt_serve_request_seconds_count", "/v1/live") not in read  # it lasts as long as its client likes
    assert ("clipautt_serve_stage_seconds_count", "adapt") not in read
    metrics.set_live_clients(0)
    after = samples(metrics)
    assert after["clipautt_serve_live_clients",] == 0
    assert after["process_resident_memory_bytes",] > 1e6


def test_names_and_values_of_labels_are_bounded_and_two_servers_share_nothing() -> None:
    metrics, other = Metrics(), Metrics()
    for number in range(100):
        metrics.observe_request("unmatched", known_method(f"ANNA{number}"), 405, 0.1, 0)
        metrics.observe_refusal(f"anna-{number}")
    read = samples(metrics)
    assert read["clipautt_serve_requests_total", "405", "other", "unmatched"] == 100
    assert {key[1] for key in read if key[0] == "clipautt_serve_failures_total"} == {*KINDS, "other"}
    assert not any("anna" in part.lower() for key in read for part in key)
    assert ("clipautt_serve_requests_total", "405", "other", "unmatched") not in samples(other)
    families: list[Any] = list(text_string_to_metric_families(metrics.render()[0].decode()))
    assert all(family.documentation for family in families if not family.name.endswith("_created"))
