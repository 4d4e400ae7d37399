"""The Ray Serve application: three deployments and how they are connected.

In: a `ServeConfig`, or as plain settings in a YAML of `clipautt serve build`. Out: an application for `serve.run` and
`serve deploy`. Ray's own HTTP proxy is not used: it holds uploads in memory without a limit and has no deadlines, so
the web side listens itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ray_jobs.platform.cluster import gpu_share, num_gpus
from ray_jobs.platform.configuration import instantiate
from ray_jobs.serve.model.decoders import Decoders, Decoding
from ray_jobs.serve.model.messages import Served
from ray_jobs.serve.model.tuned import check_server_method, why_per_video_is_idle
from ray_jobs.serve.served import served_models
from ray_jobs.serve.settings import ServeConfig
from ray_jobs.serve.web.connections import ConnectionConfig
from ray_jobs.serve.web.door import allowed_hosts, parse_origin
from ray_jobs.serve.web.pipeline import Capacity
from ray_jobs.serve.web.replica import Web, WebSetup
from ray_jobs.serve.web.server import tls_context

if TYPE_CHECKING:
    from ray_jobs.serve.model.encoder import Encoding  # which imports Ray Serve

_DECODES_PER_PROCESS = 2
"""Videos that a decoder works on at once: one is read while the other is decoded."""
_ENCODES_AT_ONCE = 32
"""Requests that an encoder holds: those of a batch, and those of the next one."""
_ENCODES_PER_PROCESS = 4
"""Requests in each encoder above which a further one is started, if it may be."""
_SCALING: dict[str, Any] = {
    "metrics_interval_s": 1,
    "look_back_period_s": 5,
    "upscale_delay_s": 5,
    "downscale_delay_s": 120,
}
"""By what is in work in the last seconds; with Ray's own half minute, the replicas come after the rush."""
_QUICK_END: dict[str, Any] = {
    "max_constructor_retry_count": 2,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 5,
    "health_check_period_s": 1,
}


@dataclass(frozen=True)
class Plan:
    """Everything that the deployments need, checked before anything starts."""

    decoding: Decoding
    """For the decoders."""
    encoding: Encoding
    """For the encoders."""
    setup: WebSetup
    """For the web side."""
    config: ServeConfig
    """The settings."""
    notes: tuple[str, ...]
    """Sentences for whoever starts the server."""


def plan(config: ServeConfig) -> Plan:
    """Find and check what is served; loads every model once.

    Raises:
        FileNotFoundError, ValueError: a setting is wrong; the message names it.
    """
    from ray_jobs.serve.model.encoder import Encoding, load_predictors

    setup = _web_setup(config, served := served_models(config))
    decoding = Decoding(served, config.limits, config.reading, _DECODES_PER_PROCESS, str(config.spool))
    encoding = Encoding(
        served,
        config.backbone,
        device="cpu",
        threads=config.threads,
        encoders=config.encoders,
        decoders=config.decoders,
        subjects=str(config.folder.absolute() / "subjects"),
        adapt=config.adapt,
        per_video=config.per_video,
        tuning=config.tuning,
    )
    notes: dict[str, None] = {}
    for predictor in load_predictors(encoding).values():
        check_server_method(predictor.source, config.per_video)
        idle = why_per_video_is_idle(predictor.source, config.per_video)
        notes |= {idle: None} if idle else {}
    return Plan(decoding, encoding, setup, config, tuple(notes))


def application(plan: Plan) -> Any:
    """The application, for the connected cluster."""
    from ray import serve

    from ray_jobs.serve.model.encoder import Encoder

    config = plan.config
    gpus = gpu_share(config.cluster, actors_per_gpu=math.ceil(config.encoders / max(1, num_gpus())))
    decoders = serve.deployment(
        name="decoders",
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=2 * _DECODES_PER_PROCESS,
        max_queued_requests=-1,
        **_replicas(config.decoders, config.max_decoders, _DECODES_PER_PROCESS),
        **_QUICK_END,
    )(Decoders).bind(plan.decoding)
    encoder = serve.deployment(
        name="encoder",
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        max_ongoing_requests=_ENCODES_AT_ONCE,
        max_queued_requests=-1,
        **_replicas(config.encoders, config.max_encoders, _ENCODES_PER_PROCESS),
        **_QUICK_END,
    )(Encoder).bind(replace(plan.encoding, device="cuda" if gpus else "cpu"))
    return serve.deployment(
        name="web", num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100, **_QUICK_END
    )(Web).bind(decoders, encoder, plan.setup)


def build(args: dict[str, Any]) -> Any:
    """The application of a YAML of `clipautt serve build`; Ray Serve calls it with the YAML's `args`.

    Args:
        args: `settings`, as plain containers.
    """
    return application(plan(instantiate(args["settings"])))


def _replicas(least: int, most: int | None, target: int) -> dict[str, Any]:
    """A fixed number of replicas, or one that follows the queue."""
    if most is None or most == least:
        return {"num_replicas": least}
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}
    return {"autoscaling_config": scaling | _SCALING}


def _web_setup(config: ServeConfig, served: tuple[Served, ...]) -> WebSetup:
    """What the web side needs of the settings.

    Raises:
        ValueError: API keys are needed, and there are none; or a certificate, host or origin is none.
    """
    config.open_keys()
    tls_context(config.tls_certificate, config.tls_key)
    allowed_hosts(config.host, config.hosts)
    for origin in config.origins:
        parse_origin(origin)
    limits = config.limits
    shown = {"max_bytes": limits.max_bytes, "max_seconds": limits.max_seconds, "max_pixels": limits.max_pixels}
    shown |= {"max_frames": limits.max_frames, "max_videos": config.max_videos}
    return WebSetup(
        application=config.application,
        host=config.host,
        port=config.port,
        hosts=config.hosts,
        origins=config.origins,
        public_url=config.public_url,
        connections=ConnectionConfig(
            trusted_proxies=config.trusted_proxies, tls_certificate=config.tls_certificate, tls_key=config.tls_key
        ),
        keys=config.keys.absolute() if config.keys_needed else None,
        requests_per_minute=config.requests_per_minute,
        folder=config.folder.absolute(),
        spool=config.spool,
        access_log=config.access_log,
        max_bytes=limits.max_bytes,
        max_videos=config.max_videos,
        live_clients=config.live_clients,
        annotated_seconds=config.annotated_seconds,
        replicas={"decoders": config.decoders, "encoder": config.encoders, "web": 1},
        models=tuple(one.name for one in served),
        capacity=Capacity(
            _DECODES_PER_PROCESS * (config.max_decoders or config.decoders), config.waiting, config.answer_seconds
        ),
        facts={
            "limits": shown,
            "adapt": config.adapt.name,
            "per_video": config.per_video.name,
            "keys_needed": config.keys_needed,
        },
    )
