"""Training examples straight from decoded clips: one run of the pipeline per epoch, in the order of that epoch.

In: source clips and training settings. Out: batches of `Example`s. Clips become examples as they arrive and are dropped
after their batch, so an epoch of any size fits in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from clipautt.clips import Clip
from clipautt.features.clip_features import ClipFeatures
from clipautt.features.store import TRIED_AGAIN
from clipautt.model.training import Example, TrainConfig, epoch_order
from clipautt.model.windows import why_no_window
from clipautt.video.reader import FrameSpec
from ray_jobs.platform.cluster import ClusterConfig, gpu_share, num_cpus
from ray_jobs.platform.extraction.extract import ExtractionConfig
from ray_jobs.platform.extraction.pipeline import CPU_SLOT, EncodedClip, Pipeline, PipelineConfig

TRAINER_CPUS = 1.0
"""Cores that the worker with the model holds while others decode and encode for it."""
_HELD_CLIPS = 256
"""Most clips that wait for an earlier one."""


@dataclass
class EpochFigures:
    """What one epoch streamed so far."""

    clips: int = 0
    """Clips that became examples."""
    frames: int = 0
    """Frames of these clips."""
    omitted: dict[str, str] = field(default_factory=dict)
    """Clip id → why it could not be read or encoded, or has no window to train on."""
    seconds: float = 0.0
    """Seconds from the start of the epoch to its last batch, including the encoders' start."""


class StreamedClips:
    """Source clips that are decoded and encoded again in every epoch, on the connected Ray.

    The order is that of training on stored features, if the same clips can be read: a clip that turns out to be
    unreadable is skipped in that epoch and not read again, so remove clips that are known to fail beforehand. A clip
    whose worker died is tried again after all others; batches wait for it until more than `_HELD_CLIPS` later clips
    have arrived, and it then joins the batch that is due when it arrives.

    Args:
        clips: source clips; their ids are unique.
        labels: clip id → class index.
        centres: subject → what is removed from its frame features, [d]; empty removes nothing.
        config: order, batches and augmentation.
        extraction: the backbone, and the limits and resources of decoding and encoding, the trainer's core not yet
            subtracted.
        fingerprint: fingerprint that the backbone must have on every worker.
        frames: how a clip becomes frames.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        labels: Mapping[str, int],
        centres: Mapping[str, Tensor],
        config: TrainConfig,
        *,
        extraction: ExtractionConfig,
        fingerprint: str,
        frames: FrameSpec,
    ) -> None:
        self.clips, self.labels, self.centres, self.config = list(clips), labels, centres, config
        self.extraction, self.fingerprint, self.frames = extraction, fingerprint, frames
        self.figures = EpochFigures()
        self._unusable: set[str] = set()

    def batches(self, epoch: int) -> Iterator[list[Example]]:
        """The batches of an epoch, as their clips arrive; their counts are added to new `figures`."""
        began, self.figures = time.monotonic(), EpochFigures()
        order = [self.clips[i] for i in epoch_order([clip.clip_id for clip in self.clips], self.config, epoch)]
        arriving = in_listed_order(self._pipeline(epoch).run(order, in_order=True), order)
        examples = (self._example(encoded) for encoded in arriving if self._usable(encoded))
        while batch := list(islice(examples, self.config.batch_size)):
            self.figures.seconds = time.monotonic() - began
            yield batch
        self.clips = [clip for clip in self.clips if clip.clip_id not in self._unusable]

    def _pipeline(self, epoch: int) -> Pipeline:
        augmentation = self.config.augmentation
        return Pipeline(
            self.extraction.backbone,
            self.fingerprint,
            self.frames,
            config=beside_trainer(self.extraction.pipeline, self.extraction.cluster),
            cluster=self.extraction.cluster,
            limits=self.extraction.limits,
            augment=partial(augmentation.transform, seed=self.config.seed, epoch=epoch) if augmentation.on else None,
        )

    def _usable(self, encoded: EncodedClip) -> bool:
        why = why_no_window(encoded.face_found, self.config.window, self.frames.faces.window_share)
        if encoded.features is None or why:
            self.figures.omitted[encoded.clip.clip_id] = why or encoded.reason
            if encoded.status not in TRIED_AGAIN:
                self._unusable.add(encoded.clip.clip_id)
            return False
        return True

    def _example(self, encoded: EncodedClip) -> Example:
        assert encoded.features is not None and encoded.times is not None
        clip, features = encoded.clip, torch.from_numpy(encoded.features)
        centre = self.centres.get(clip.subject_id)
        features = features if centre is None else features - centre
        self.figures.clips += 1
        self.figures.frames += len(features)
        share = self.frames.faces.window_share
        return Example(
            ClipFeatures(clip.clip_id, clip.subject_id, features, encoded.times, encoded.face_found, min_share=share),
            self.labels[clip.clip_id],
        )


def in_listed_order(arriving: Iterable[EncodedClip], listed: Sequence[Clip]) -> Iterator[EncodedClip]:
    """Yield clips in the order of `listed`, though a few arrive late.

    At most `_HELD_CLIPS` clips wait for an earlier one; it is then passed over and yielded when it arrives.

    Args:
        arriving: every listed clip once.
        listed: the order; ids are unique.
    """
    due = deque(clip.clip_id for clip in listed)
    early: dict[str, EncodedClip] = {}
    late: set[str] = set()
    for encoded in arriving:
        if encoded.clip.clip_id in late:
            yield encoded
            continue
        early[encoded.clip.clip_id] = encoded
        while due and (due[0] in early or len(early) > _HELD_CLIPS):
            first = due.popleft()
            if first in early:
                yield early.pop(first)
            else:
                late.add(first)


def beside_trainer(pipeline: PipelineConfig, cluster: ClusterConfig) -> PipelineConfig:
    """The pipeline's settings, with fewer encoders if the trainer's core would leave no room for decoders.

    Raises:
        ValueError: if the cluster has too few cores for the trainer, a decoder and an encoder.
    """
    gpu, cores = gpu_share(cluster) > 0, num_cpus()
    decoder = pipeline.decoder_cpus or (1.0 if gpu else CPU_SLOT)
    encoder = 0.0 if gpu else CPU_SLOT
    free = cores - TRAINER_CPUS - decoder
    if free < encoder:
        raise ValueError(
            f"train.features=streamed needs {TRAINER_CPUS + decoder + encoder:g} cores, {TRAINER_CPUS:g} to train, "
            f"{decoder:g} to decode and {encoder:g} to encode, and the cluster has {cores}; "
            "set train.features=augmented or use a larger cluster"
            f"{', or lower pipeline.decoder_cpus' * (decoder > CPU_SLOT)}"
        )
    if gpu:
        return pipeline
    encoders = min(pipeline.encoders or cores, int(free / encoder))
    return replace(pipeline, encoders=encoders, min_encoders=min(pipeline.min_encoders or encoders, encoders))
