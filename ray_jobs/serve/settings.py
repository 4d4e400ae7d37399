"""The settings of the server.

In: the command line. Out: a `ServeConfig`, whose paths are absolute and whose checkpoint and prompts are found.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from clipautt.adaptation.method import AdaptConfig, TuningConfig
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.backbones.loading import BackboneConfig
from clipautt.commands import setting
from clipautt.settings import settings
from clipautt.video.reader_process import ReadLimits
from ray_jobs.platform.cluster import ClusterConfig
from ray_jobs.serve.key_command import FILE as KEYS_FILE
from ray_jobs.serve.video_check import Limits
from ray_jobs.serve.web.door import parse_origin
from ray_jobs.serve.web.keys import Scope, needs_keys, open_keys

_PATH = re.compile(r"[\w.~/-]*", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
"""Names of servers and models."""
ALLOWED_NAME = "allowed: letters, digits and . _ -, at most 64"
"""What `NAME` says."""
Action = Literal["build", "deploy", "keys"]
COMMAND = ("action", "words", "out", "scope", "days")
"""The settings that say what to do besides serving."""
_OF = {"name": "server", "runs": "runs"}
"""The defaults of the settings that `clipautt serve keys` needs to find the server."""


@settings
class ServeConfig:
    """What is served, to whom, and what a request may cost."""

    action: Action | None = None
    """null: serve; build: write a Serve YAML; deploy FILE: start what it says on a cluster; keys add|list|renew|revoke:
    who may use the server."""
    words: tuple[str, ...] = ()
    """What follows the action: the file of deploy; add, list, renew or revoke, and a name, of keys."""
    out: str = "serve.yaml"
    """build: the file that is written."""
    scope: Scope | None = None
    """keys add: what the key allows; personalize also stores subjects of its own, admin also sees those of the adapt
    job and /metrics; null: predict."""
    days: PositiveInt | None = None
    """keys add and renew: days until the key expires; null: never."""

    models: dict[str, str] | None = None
    """Name → checkpoint folder, such as {pain: FOLDER, stress: FOLDER}; null: one model, `checkpoint`."""
    checkpoint: Path | None = None
    """Checkpoint folder of a single model, named after what it recognizes; null: the newest below runs."""
    prompts: Path | None = None
    """Folder of prompts that `clipautt adapt` wrote, used by subject id; null: the newest below runs that belong to a
    served checkpoint."""
    backbone: BackboneConfig | None = None
    """How the checkpoints' backbone is loaded; null: as in training."""
    adapt: AdaptConfig = AdaptConfig(ClipAUTT(), subject_baseline="median")
    """How a stored subject is personalized."""
    per_video: AdaptConfig = AdaptConfig(ClipAUTT(objective="entropy", steps=5), protocol="per_video")
    """How the model is tuned to a single video, where a request asks for adapt=per_video."""
    tuning: TuningConfig = TuningConfig()
    """What tuning may cost."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs API keys: `clipautt serve keys add NAME`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    name: str = "server"
    """Name of the server: its keys, subjects and log lie in runs/serve/NAME."""
    runs: str = "runs"
    """Folder of all runs; every node of a cluster has to see it."""
    require_keys: bool = False
    """Whether requests need an API key on loopback as well."""
    hosts: tuple[str, ...] = ()
    """Further names by which this server is reached, such as face.example.org; requests to other names are refused."""
    origins: tuple[str, ...] = ()
    """Sites whose pages may send requests, such as https://lab.example.org (CORS)."""
    public_url: str | None = None
    """Address by which clients reach the server, where a proxy is in front of it; null: as the request says."""
    tls_certificate: Path | None = None
    """PEM file of the certificate and its chain; null: HTTP without TLS."""
    tls_key: Path | None = None
    """PEM file of the certificate's key."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose headers X-Forwarded-For and X-Forwarded-Proto are believed."""

    decoders: PositiveInt = 1
    """Processes that decode, a core each."""
    max_decoders: PositiveInt | None = None
    """Most decoders; those beyond `decoders` are started while videos wait; null: no more than `decoders`."""
    encoders: PositiveInt = 1
    """Copies of the models, each on a core or its share of a GPU."""
    max_encoders: PositiveInt | None = None
    """Most encoders; those beyond `encoders` are started while videos wait; null: no more than `encoders`."""
    threads: PositiveInt | None = None
    """Threads of PyTorch in each encoder; null: the cores of its machine, shared by the encoders, and by the decoders
    while they are busy."""
    waiting: NonNegativeInt = 16
    """Videos that may wait; further ones are refused with 503 and Retry-After."""
    answer_seconds: PositiveFloat = 180.0
    """Longest time from the last byte of a video to its answer."""

    max_upload_mb: Annotated[float, Field(ge=0.01)] = 50.0
    """Largest file, MB; a larger one is refused while it arrives."""
    max_seconds: PositiveFloat = 60.0
    """Longest video, from its first frame to the end of its last, s; a longer one is refused before it is decoded."""
    max_pixels: PositiveInt = 3840 * 2160
    """Largest frame, width × height; a larger one is refused before it is decoded."""
    max_frames: PositiveInt = 4000
    """Most frames of a video that are looked at; they are in memory together."""
    max_videos: PositiveInt = 16
    """Most videos of one request."""
    requests_per_minute: PositiveInt = 600
    """Requests per minute of each API key."""
    live_clients: PositiveInt = 8
    """Live sessions at the same time."""
    annotated_seconds: PositiveFloat = 600.0
    """How long an annotated video of /api/predict can be fetched."""
    access_log: bool = True
    """Whether each request is noted, without personal data, in runs/serve/NAME/access.log."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the work runs."""

    def __post_init__(self) -> None:
        if self.action not in ("keys", "deploy") and self.words:
            raise ValueError(f"unknown word {self.words[0]!r}; `clipautt serve --help` shows examples")
        if self.action != "keys" and (self.scope is not None or self.days is not None):
            raise ValueError("scope=… and days=… belong to `clipautt serve keys add NAME`")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r}: {ALLOWED_NAME}")
        if self.models is not None and self.checkpoint is not None:
            raise ValueError("models=… and checkpoint=…: give one of them; models={NAME: FOLDER} names a model")
        if self.models is not None and not self.models:
            raise ValueError("models={}: give at least one, as in models={pain: FOLDER}; or leave it out")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both, or none")
        if self.public_url is not None:
            _check_address(self.public_url)
        for what, least, most in (
            ("decoders", self.decoders, self.max_decoders),
            ("encoders", self.encoders, self.max_encoders),
        ):
            if most is not None and most < least:
                raise ValueError(f"max_{what}={most}: should be {what}={least} or more")

    @property
    def limits(self) -> Limits:
        """What an upload may cost."""
        return Limits(int(self.max_upload_mb * 1e6), self.max_seconds, self.max_pixels, self.max_frames)

    @property
    def folder(self) -> Path:
        """Where the server keeps what outlives it."""
        return Path(self.runs) / "serve" / self.name

    @property
    def application(self) -> str:
        """Name of the Ray Serve application."""
        return f"clipautt-{self.name}"

    @property
    def keys(self) -> Path:
        """File of the API keys."""
        return self.folder / KEYS_FILE

    @property
    def keys_needed(self) -> bool:
        """Whether requests need an API key."""
        return needs_keys(self.host, self.require_keys, behind_proxy=bool(self.trusted_proxies or self.public_url))

    def open_keys(self) -> None:
        """Check the API keys.

        Raises:
            ValueError: keys are needed, and there is none; the message has the command that makes one.
        """
        behind = bool(self.trusted_proxies or self.public_url)
        open_keys(self.keys, self.host, require_keys=self.require_keys, behind_proxy=behind, options=self.key_options)

    @property
    def key_options(self) -> str:
        """The words that name this server to `clipautt serve keys`; empty for the usual one."""
        return " ".join(
            setting(name, getattr(self, name)) for name, usual in _OF.items() if getattr(self, name) != usual
        )

    @property
    def spool(self) -> Path:
        """Where uploads lie until they are answered, on the disk of the machine that answers."""
        return Path(tempfile.gettempdir()) / f"clipautt-serve-{os.getuid()}-{self.port}"

    @property
    def reading(self) -> ReadLimits:
        """What decoding a video may cost."""
        return ReadLimits(total_seconds=self.answer_seconds, max_pixels=self.max_pixels)

    @property
    def url(self) -> str:
        """Address of the server."""
        scheme = "https" if self.tls_certificate else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"


def _check_address(url: str) -> None:
    """Refuse what cannot stand before the paths of answers.

    Raises:
        ValueError: it is no address of a server.
    """
    scheme, mark, rest = url.partition("://")
    host, _, path = rest.partition("/")
    try:
        parse_origin(f"{scheme}{mark}{host}")
    except ValueError:
        path = "?"
    if not _PATH.fullmatch(path):
        raise ValueError(
            f"public_url={url!r}: should be the address of a server, such as https://clinic.example or "
            "https://clinic.example/face"
        )
