"""Clips to features through Ray Data: CPU tasks decode, a pool of actors encodes, clips are reassembled.

In: clips. Out: an `EncodedClip` per clip, with its features or why it has none. Open `Pipeline` first.

Between decoding and encoding every row is one frame, so that batches fill across clips of any length. Blocks hold a
bounded number of bytes, whatever the length of a video, and what waits for the encoders is bounded too. A bad clip
affects no other clip: its reader stops a decoder that hangs, and clips whose worker died or could not work are tried
again, alone and on other nodes.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.features.store import TRIED_AGAIN
from clipautt.settings import settings
from clipautt.video.preprocessing import Frames
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import ReadLimits
from ray_jobs.platform.cluster import (
    ClusterConfig,
    avoiding,
    gpu_share,
    num_cpus,
    num_gpus,
    ray_data,
    usable_nodes,
)
from ray_jobs.platform.extraction.decode_stage import Augment, Batch, DecodeStage, Status, check_readable

_TASK_RETRIES = 2
"""How often Ray retries a task whose worker or node died; by default it never stops."""
CPU_SLOT = 0.5
"""Cores that a decoder asks for, and that are counted for an encoder without a GPU."""
_ENCODER_CPUS = 0.01
"""Cores that such an encoder asks for: hardly any, so that the encoders of a lost node fit beside a decoder elsewhere,
however few cores are left; else both would wait forever."""
_INIT_RETRIES = 2
_PASSES = 4
"""How often clips are tried that failed for their worker's fault; after the second time only if there is another node
to try them on."""
_GPU_BATCH, _CPU_BATCH = 256, 16
_GPU_BATCHES_PER_CALL = 4
"""Within a call, copying a batch to the GPU overlaps with encoding the previous one."""
_ENOUGH_TROUBLES = 8
_BLOCKS_IN_MEMORY = 16


class BackboneError(ValueError):
    """The backbone does not work on the workers; the message says why."""


@settings
class PipelineConfig:
    """How much of the cluster reading and encoding take; nothing here changes a feature by more than rounding."""

    encoders: PositiveInt | None = None
    """Maximum number of encoding actors; None: as many as fit on the GPUs (`cluster.num_gpus_per_actor`), or one per
    core."""
    min_encoders: PositiveInt | None = None
    """Encoding actors to start with; more are added, up to `encoders`, while frames wait. None: all at once."""
    decoders: PositiveInt | None = None
    """Maximum number of decoding tasks at a time; None: as many as there are free cores."""
    decoder_cpus: PositiveFloat | None = None
    """Cores per decoding task; None: 1 with GPUs, half a core where encoders use the cores too."""
    batch_frames: PositiveInt | None = None
    """Frames in one pass of the image tower; None: 256 on a GPU, 16 on CPUs. Halved if memory runs out."""
    clips_per_task: PositiveInt = 4
    """Clips per decoding task."""
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    """Memory for frames that wait between decoding and encoding, MiB of the object store."""

    def __post_init__(self) -> None:
        if self.encoders is not None and (self.min_encoders or 1) > self.encoders:
            raise ValueError(
                f"pipeline.min_encoders={self.min_encoders} is more than pipeline.encoders={self.encoders}"
            )


@dataclass(frozen=True, repr=False)
class EncodedClip:
    """A clip at the end of the pipeline: its features, or why there are none."""

    clip: Clip
    """The clip as requested."""
    status: Status
    """`ok`, or what went wrong."""
    reason: str = ""
    """What went wrong, in a sentence; if `ok`, what could not be shown as it should be, see `FrameChunk.notes`."""
    decoder: str = ""
    """Name of the decoder that read the frames."""
    content: str = ""
    """Hash of the source, see `content_of`; empty unless `ok`."""
    times: npt.NDArray[np.float64] | None = None
    """Seconds from the start of the clip, [T]."""
    face_found: npt.NDArray[np.bool_] | None = None
    """Whether a face was found in the frame, [T]."""
    other_faces: int = 0
    """Faces beside the subject's that were followed and left out."""
    boxes: npt.NDArray[np.float32] | None = None
    """Where the face is in each frame, see `reader.BOX`, [T, 5]."""
    brightness: npt.NDArray[np.float32] | None = None
    """Mean luma of what each frame shows, [T]."""
    face_sides: tuple[float, ...] = ()
    """See `ClipFeatures.face_sides`."""
    turned: npt.NDArray[np.float32] | None = None
    """See `ClipFeatures.turned`, [T]."""
    features: npt.NDArray[np.float32] | None = None
    """Features, [T, d]; None unless `ok`."""

    @property
    def num_frames(self) -> int:
        """Number of frames T; 0 without features."""
        return 0 if self.times is None else len(self.times)

    def __repr__(self) -> str:
        return f"EncodedClip({self.clip.clip_id!r}, {self.status}, {self.num_frames} frames)"


@dataclass
class Usage:
    """What a pipeline has done so far; times are those of this process's monotonic clock."""

    created: float = field(default_factory=time.monotonic)
    """When the pipeline was created."""
    first: float | None = None
    """When the first frames arrived; the time until then is start-up."""
    last: float = 0.0
    """When the last frames arrived."""
    frames: int = 0
    """Number of frames that arrived after the first ones."""
    busy_seconds: float = 0.0
    """Seconds spent encoding these frames, summed over the encoders."""
    encoders: set[str] = field(default_factory=set)
    """Actors that encoded something."""

    def add(self, batch: Batch) -> None:
        """Count frames that just arrived."""
        self.last = time.monotonic()
        self.encoders.update(batch["encoder"].tolist())
        if self.first is None:
            self.first = self.last
            return
        self.frames += len(batch["seconds"])
        self.busy_seconds += float(batch["seconds"].sum())

    @property
    def start_seconds(self) -> float:
        """Seconds from creation to the first frames."""
        return (self.first or time.monotonic()) - self.created

    @property
    def frames_per_second(self) -> float:
        """Rate in steady state, that is after the first frames."""
        return self.frames / max(1e-9, self.last - (self.first or 0.0))

    @property
    def busy_share(self) -> float:
        """Share of the encoders' time after the first frames that was spent encoding; 0..1."""
        return min(1.0, self.busy_seconds / max(1e-9, (self.last - (self.first or 0.0)) * len(self.encoders)))


class Pipeline:
    """Decodes and encodes clips on the connected Ray.

    Args:
        backbone: the model that encodes; loaded once by every actor.
        fingerprint: fingerprint that the backbone must have on every worker.
        frames: how a clip becomes frames, in the backbone's input size.
        config: how much of the cluster to use.
        cluster: gives the share of a GPU per encoder.
        limits: limits for reading one clip.
        augment: changes of the frames before they are encoded; None leaves them as they are.
        on_frames: called whenever frames arrive, which may be long before their clip is complete.
        avoid: ids of nodes that are not used.

    Raises:
        ValueError: if a share of a GPU is asked for and the cluster has none.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        fingerprint: str,
        frames: FrameSpec,
        *,
        config: PipelineConfig,
        cluster: ClusterConfig,
        limits: ReadLimits,
        augment: Augment | None = None,
        on_frames: Callable[[], None] = lambda: None,
        avoid: Iterable[str] = (),
    ) -> None:
        self.backbone, self.fingerprint, self.frames = backbone, fingerprint, frames
        self.config, self.limits = config, limits
        self.augment = augment
        self.gpu = gpu_share(cluster)
        self.on_frames = on_frames
        self.avoid = frozenset(avoid)
        self.usage = Usage()

    def run(self, clips: Sequence[Clip], *, in_order: bool = False) -> Iterator[EncodedClip]:
        """Yield every clip once, as soon as it is done.

        Args:
            clips: the clips to read; ids need not be unique.
            in_order: yield clips in the given order; those whose worker died still come last.

        Raises:
            BackboneError: if the workers cannot load the backbone, or it fails on all clips: no clip is to blame.
        """
        left = dict(enumerate(clips))
        assembly = _Assembly()
        for again in range(_PASSES):
            if not left:
                return
            clips_per_task = 1 if again else self.config.clips_per_task  # a lost worker may have had several clips
            for index, encoded in assembly.drain(self._batches(left, clips_per_task, in_order), left):
                del left[index]
                yield encoded
            if left and not self._leave(assembly.nodes_in_trouble) and again:
                break
        assembly.refuse_if_nothing_is_encoded(at_least=1)
        tries = _TASK_RETRIES + 1
        lost = f"the worker that decoded it died {2 * tries} times: {tries} with other clips, {tries} with it alone"
        for index, clip in left.items():
            yield assembly.troubles.get(index) or EncodedClip(clip, "lost", lost)

    def _leave(self, troubled: set[str]) -> bool:
        """Avoid the nodes whose workers could not work from now on, if others are left; returns whether that is new."""
        more = troubled - self.avoid
        if not more or not usable_nodes(self.avoid | more):
            return False
        self.avoid |= more
        for node in usable_nodes():
            if node.node_id in more:
                print(f"{node} is not used any more: it cannot read clips, which are tried elsewhere", flush=True)
        return True

    def _batches(self, clips: dict[int, Clip], clips_per_task: int, in_order: bool) -> Iterator[Batch]:
        from ray.exceptions import ActorDiedError

        data = ray_data()
        tasks = math.ceil(len(clips) / clips_per_task)
        encoders = min(tasks, self.num_encoders)
        threads = max(1, num_cpus(self.avoid) // encoders)
        items = [{"index": index, "clip": json.dumps(asdict(clip))} for index, clip in clips.items()]
        batch_frames = self.config.batch_frames or (_GPU_BATCH if self.gpu else _CPU_BATCH)
        encoded = (
            data.from_items(items, override_num_blocks=tasks)
            .map_batches(
                DecodeStage(self.frames, self.limits, self.augment),
                batch_size=None,
                batch_format="numpy",
                num_cpus=self.decoder_cpus,
                compute=data.TaskPoolStrategy(self.num_decoders(tasks, encoders)),
                max_retries=_TASK_RETRIES,
            )
            .map_batches(
                EncodeStage,
                fn_constructor_args=(self.backbone, self.fingerprint, batch_frames, threads),
                batch_size=batch_frames * (_GPU_BATCHES_PER_CALL if self.gpu else 1),
                batch_format="numpy",
                compute=data.ActorPoolStrategy(
                    min_size=min(encoders, self.config.min_encoders or encoders),
                    max_size=encoders,
                    # One call fetches its batch from the object store while another one encodes.
                    max_concurrent_calls_per_actor=2 if self.gpu else 1,
                ),
                max_task_retries=_TASK_RETRIES,
                **({"num_gpus": self.gpu, "num_cpus": 0} if self.gpu else {"num_cpus": _ENCODER_CPUS}),
            )
        )
        self._bound(encoded.context, in_order)
        try:
            for batch in encoded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
                self.usage.add(batch)
                self.on_frames()
                yield batch
        except ActorDiedError as error:  # every start failed
            raise BackboneError(f"no worker can load the backbone: {str(error).strip().splitlines()[-1]}") from error

    @property
    def decoder_cpus(self) -> float:
        """Cores per decoding task."""
        return self.config.decoder_cpus or (1.0 if self.gpu else CPU_SLOT)

    @property
    def num_encoders(self) -> int:
        """Maximum number of encoding actors; on CPUs they leave room for a decoder, else both would wait forever.

        Raises:
            ValueError: if the cluster has too few cores for one encoder and one decoder.
        """
        cores, encoder = num_cpus(self.avoid), 0.0 if self.gpu else CPU_SLOT
        if cores < self.decoder_cpus + encoder:
            raise ValueError(
                f"pipeline.decoder_cpus={self.decoder_cpus:g}: with an encoder, this exceeds the {cores} cores of the "
                "cluster; set fewer"
            )
        if self.gpu:
            return self.config.encoders or max(1, int(num_gpus(self.avoid) / self.gpu))
        return min(self.config.encoders or cores, int((cores - self.decoder_cpus) / CPU_SLOT))

    def num_decoders(self, tasks: int, encoders: int) -> int | None:
        """Maximum number of decoding tasks at a time, of so many and beside so many encoders; None: no maximum."""
        free = None if self.gpu else (num_cpus(self.avoid) - encoders * CPU_SLOT / 2) / self.decoder_cpus
        most = self.config.decoders or (None if free is None else max(1, int(free)))
        return None if most is None else min(tasks, most)

    def _bound(self, context: Any, in_order: bool) -> None:
        """Set the bounds of one execution; clips of a block that failed for good are tried again, and the job goes
        on."""
        memory = self.config.memory_mb << 20
        context.target_max_block_size = memory // _BLOCKS_IN_MEMORY
        context.max_errored_blocks = -1
        context.max_consecutive_actor_init_deaths = _INIT_RETRIES
        options = context.execution_options
        options.resource_limits = options.resource_limits.copy(object_store_memory=memory)
        options.preserve_order = in_order
        options.label_selector = avoiding(self.avoid)


class EncodeStage:
    """An actor with the backbone: replaces frames by features and records how long that took."""

    def __init__(self, config: BackboneConfig, fingerprint: str, batch_frames: int, num_threads: int) -> None:
        import ray
        import torch

        self.backbone = load_backbone(config)
        if self.backbone.fingerprint != fingerprint:
            raise ValueError(
                f"backbone {config.name} has fingerprint {self.backbone.fingerprint} on {platform.node()}, and "
                f"{fingerprint} where the job was started: weights={config.weights} is a different file there"
            )
        self.batch_frames = batch_frames
        self.ill = False
        self.name = ray.get_runtime_context().get_actor_id()
        if torch.cuda.is_available():
            self.backbone.to("cuda")
        else:
            torch.set_num_threads(min(num_threads, len(os.sched_getaffinity(0))))

    def __call__(self, batch: Batch) -> Batch:
        if self.ill:  # Ray restarts this actor and repeats this call
            os._exit(1)
        began = time.perf_counter()
        frames, good = batch.pop("frame"), batch["status"] == "ok"
        features = np.zeros((len(good), self.backbone.feature_dim), np.float32)
        try:
            features[good] = self._encode(frames if good.all() else frames[good])
        except Exception as error:  # the device may be faulty: these clips are tried again
            self.ill = True
            batch["status"] = np.where(good, "not_encoded", batch["status"])
            batch["reason"] = np.where(good, f"{type(error).__name__}: {error}", batch["reason"])
        seconds = (time.perf_counter() - began) / len(good)
        facts = {"seconds": np.full(len(good), seconds), "encoder": np.full(len(good), self.name)}
        return batch | facts | {"feature": features}

    def _encode(self, frames: Frames) -> npt.NDArray[np.float32]:
        writable = frames if frames.flags.writeable else frames.copy()
        encoded: npt.NDArray[np.float32] = self.backbone.encode_frames(writable, batch_size=self.batch_frames).numpy()
        return encoded


class _Assembly:
    """Assembles rows of frames, which arrive in any order, into whole clips."""

    def __init__(self) -> None:
        self.any_encoded = False
        self.troubles: dict[int, EncodedClip] = {}
        """Clip index → its last failure, for clips that are tried again."""
        self.nodes_in_trouble: set[str] = set()
        """Nodes whose workers could not read a clip for a reason that is not the clip's."""

    def drain(self, batches: Iterable[Batch], clips: dict[int, Clip]) -> Iterator[tuple[int, EncodedClip]]:
        """Yield index and clip for those among `clips` that are complete.

        Raises:
            BackboneError: if the backbone fails from the first batches on.
        """
        parts: dict[int, list[Batch]] = {}
        for batch in batches:
            for rows in _by_clip(batch):
                index = int(rows["index"][0])
                if index not in clips:  # late rows of a decoder that failed midway
                    continue
                parts.setdefault(index, []).append(rows)
                encoded = self._whole(clips[index], parts[index])
                if encoded is None:
                    continue
                del parts[index]
                encoded = _as_seen_here(encoded)
                if encoded.status == "lost":
                    self.nodes_in_trouble.update(filter(None, rows["node"][-1:].tolist()))
                if encoded.status in TRIED_AGAIN:
                    self.troubles[index] = encoded
                    self.refuse_if_nothing_is_encoded(at_least=_ENOUGH_TROUBLES)
                else:
                    yield index, encoded

    def refuse_if_nothing_is_encoded(self, *, at_least: int) -> None:
        """Stop if the backbone has failed on at least `at_least` clips and succeeded on none."""
        failed = [trouble for trouble in self.troubles.values() if trouble.status == "not_encoded"]
        if not self.any_encoded and len(failed) >= at_least:
            raise BackboneError(f"the backbone encoded nothing: {failed[0].reason}")

    def _whole(self, clip: Clip, parts: Sequence[Batch]) -> EncodedClip | None:
        """The clip, once all its frames have arrived; duplicate frames count once."""
        end = next((part for part in parts if part["total"][-1] >= 0), None)
        if end is None:
            return None
        if end["status"][-1] not in ("ok", "not_encoded"):
            return EncodedClip(clip, end["status"][-1], str(end["reason"][-1]))
        mine = [part for part in parts if part["attempt"][0] == end["attempt"][0]]
        if sum(len(part["number"]) for part in mine) < end["total"][-1]:
            return None
        joined = {name: np.concatenate([part[name] for part in mine]) for name in mine[0]}
        numbers, first = np.unique(joined["number"], return_index=True)
        if len(numbers) < end["total"][-1]:
            return None
        joined = {name: values[first] for name, values in joined.items()}
        bad = np.flatnonzero(joined["status"] != "ok")
        if len(bad):
            return EncodedClip(clip, "not_encoded", str(joined["reason"][bad[0]]))
        self.any_encoded = True
        if not np.isfinite(joined["feature"]).all():
            return EncodedClip(clip, "not_finite", "the backbone gave features that are not finite")
        return EncodedClip(
            clip,
            "ok",
            reason=str(end["reason"][-1]),
            decoder=str(joined["decoder"][0]),
            content=max(joined["content"].tolist()),  # one of its rows has it, as `face_sides`
            times=joined["time"],
            face_found=joined["found"],
            other_faces=int(joined["other_faces"].max()),
            boxes=joined["box"],
            brightness=joined["brightness"],
            face_sides=tuple(json.loads(max(joined["face_sides"].tolist()) or "[]")),
            turned=joined["turned"],
            features=joined["feature"],
        )


def _as_seen_here(encoded: EncodedClip) -> EncodedClip:
    """Mark a clip as lost, not missing, if this process can open its file: then its worker's node is at fault."""
    if encoded.status != "missing":
        return encoded
    try:
        check_readable(encoded.clip.source)
    except OSError:
        return encoded
    return replace(
        encoded, status="lost", reason=f"{encoded.reason} on a worker, but it is here: is the storage shared?"
    )


def _by_clip(batch: Batch) -> Iterator[Batch]:
    """Split a batch into runs of rows of the same clip and attempt; the arrays are views."""
    names = batch["index"], batch["attempt"]
    changes = np.flatnonzero((np.diff(names[0]) != 0) | (np.diff(names[1]) != 0)) + 1
    bounds = [0, *changes.tolist(), len(names[0])]
    for start, end in pairwise(bounds):
        yield {name: values[start:end] for name, values in batch.items()}
