"""Fit CLIP-AU on features of source subjects.

In: labelled clips as `Example`s, all at once or streamed in batches, and a `TrainConfig`. Out: a trained `ClipAU`, its
scores on source-validation subjects, and its `Checkpoint`. Target subjects are never used.

Each epoch takes one random window of L frames from every clip: after training on windows, the lowest-entropy window
falls on the expression more often than after training on whole clips. Batches and windows derive from seed, epoch and
clip, so the order in which clips are listed changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from clipautt.action_units import VOCABULARY, descriptions_of, phrases
from clipautt.backbones.loading import Backbone, BackboneConfig
from clipautt.clips import id_number
from clipautt.features.clip_features import ClipFeatures, FeatureSpec, SubjectBaseline, subject_centre
from clipautt.footage import Footage
from clipautt.metrics import score
from clipautt.model.checkpoint import Checkpoint, CheckpointSpec
from clipautt.model.network import ADAPTER_WIDTH, ClipAU, initial_model
from clipautt.model.windows import WindowSpec, clip_starts, entropy
from clipautt.settings import settings
from clipautt.video.augmentation import Augmentation

PHRASES = phrases(VOCABULARY)
FeatureSource = Literal["cached", "augmented", "streamed"]
"""`cached`: from the feature store. `augmented`: from the store, encoded several times with different random changes.
`streamed`: decoded and encoded again in each epoch."""


@settings
class TrainConfig:
    """How CLIP-AU is fitted; the defaults are the paper's."""

    window: WindowSpec = WindowSpec()
    """Windows to train on; one is drawn at random from every clip in each epoch."""
    subject_baseline: SubjectBaseline = "median"
    """Centre removed from every subject's frame features, here and at test time."""
    context: str = "a human face with"
    """Leading phrase of the AU prompts; its tokens become the context that prompt tuning changes."""
    epochs: PositiveInt = 10
    """Passes over the clips; the model after the last one is kept."""
    batch_size: PositiveInt = 8
    """Clips per step."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of AdamW."""
    adapter_width: PositiveInt = ADAPTER_WIDTH
    """Hidden width of the adapter."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, order, windows and augmentation."""
    features: FeatureSource = "cached"
    """Where the features of the training clips come from. `cached`: every frame is encoded once and stored;
    `augmented`: encoded `augmented_passes` times with different random changes and stored; `streamed`: decoded and
    encoded again in each epoch. Augmentation needs one of the latter two. Without it all three give the same model."""
    augmentation: Augmentation = Augmentation()
    """One random change per clip and epoch, the same for all of its frames; needs `features=augmented`, where changes
    repeat after `augmented_passes` epochs, or `features=streamed`."""
    augmented_passes: PositiveInt = 2
    """How many times `features=augmented` encodes every training clip; epoch e takes pass e modulo this. With as many
    passes as epochs the model is that of `features=streamed`."""

    def __post_init__(self) -> None:
        if self.augmentation.on and self.features == "cached":
            raise ValueError(
                f"train.features='cached' with {self.augmentation}; these stored features come from unchanged frames: "
                "take train.features=augmented (encoded train.augmented_passes times and stored) or "
                "train.features=streamed (decoded and encoded again in each epoch), or set train.augmentation to zeros"
            )

    @property
    def num_passes(self) -> int:
        """Number of augmented passes that training takes: no more than there are epochs."""
        return min(self.augmented_passes, self.epochs)


@dataclass(frozen=True, repr=False)
class Example:
    """A labelled clip to learn from."""

    clip: ClipFeatures
    """Features with the subject's centre removed."""
    label: int
    """Class index."""


@dataclass(frozen=True, eq=False, repr=False)
class Untrained:
    """A model before training, with what it is trained against."""

    model: ClipAU
    """Its weights follow from the seed."""
    text_features: Tensor
    """Text features of the prompts `PHRASES` with the source context, [K, d]."""
    context_tokens: int
    """Number of context tokens, M."""


def untrained(backbone: Backbone, config: TrainConfig, *, num_classes: int) -> Untrained:
    """The model that a configuration begins with, on the CPU.

    Args:
        backbone: its text tower gives the prompts' features.
        config: context, width of the adapter and seed.
        num_classes: C.
    """
    with torch.no_grad():
        prompts = backbone.tokenize(PHRASES, context=config.context)
        text = backbone.encode_prompts(prompts)
    shape = (backbone.feature_dim, len(PHRASES), num_classes)
    model = initial_model(*shape, seed=config.seed, adapter_width=config.adapter_width)
    return Untrained(model, text, prompts.num_context)


_NO_EXAMPLES = (
    "no labelled source clips with features; check the extraction's failures, and which clips have no window that "
    "shows the face"
)
Batches = Callable[[int], Iterable[Sequence[Example]]]
"""Number of an epoch, from 0 → its batches."""


def subject_centres(clips: Iterable[ClipFeatures], baseline: SubjectBaseline) -> dict[str, Tensor]:
    """Subject → centre [d] over the frames that show the face in all given clips of that subject."""
    subjects: dict[str, list[Tensor]] = {}
    for clip in sorted(clips, key=lambda clip: clip.clip_id):  # a mean must not depend on the order of listing
        subjects.setdefault(clip.subject_id, []).append(clip.shown)
    return {subject: subject_centre(torch.cat(parts), baseline) for subject, parts in subjects.items()}


def centre_subjects(clips: Sequence[ClipFeatures], baseline: SubjectBaseline) -> list[ClipFeatures]:
    """Every clip with its subject's centre (over all given clips of that subject) removed from its features."""
    centres = subject_centres(clips, baseline)
    return [replace(clip, features=clip.features - centres[clip.subject_id]) for clip in clips]


def labelled_examples(clips: Iterable[ClipFeatures], labels: Mapping[str, int], config: TrainConfig) -> list[Example]:
    """The clips with a window that counts, each subject's centre removed.

    Args:
        clips: features with no centre removed.
        labels: clip id → class index, of all of these clips.
        config: windows and subject baseline.
    """
    counted = [clip for clip in clips if clip_starts(clip, config.window)]
    return [Example(clip, labels[clip.clip_id]) for clip in centre_subjects(counted, config.subject_baseline)]


def class_shares(labels: Sequence[int], *, num_classes: int) -> tuple[float, ...]:
    """Shares of the classes among training clips, none of them zero: a missing class counts as one clip.

    Args:
        labels: class indices [N].
        num_classes: C.
    """
    counts = np.maximum(np.bincount(np.asarray(labels, int), minlength=num_classes), 1)
    return tuple(float(share) for share in counts / counts.sum())


def make_checkpoint(
    model: ClipAU,
    config: TrainConfig,
    *,
    labels: Sequence[int],
    classes: tuple[str, ...],
    features: FeatureSpec,
    backbone: BackboneConfig,
    context_tokens: int,
    footage: Footage,
    clip_frames: Sequence[int],
    manifest: str,
    metrics: Mapping[str, float] | None = None,
) -> Checkpoint:
    """The checkpoint of a trained model.

    Args:
        model: trained with `PHRASES`; it is moved to the CPU and frozen.
        config: settings it was trained with.
        labels: class indices of the training clips.
        classes: names in label order.
        features: specification of the features it was trained on.
        backbone: how the backbone was loaded.
        context_tokens: M, the tokens of `config.context`.
        footage: what the training clips show.
        clip_frames: number of frames of each of them, as far as it is known.
        manifest: fingerprint of the training clips' manifest.
        metrics: figures on source-validation subjects.
    """
    spec = CheckpointSpec(
        classes=classes,
        phrases=PHRASES,
        context=config.context,
        context_tokens=context_tokens,
        features=features,
        subject_baseline=config.subject_baseline,
        window=config.window,
        training=asdict(config) | {"manifest": manifest},
        metrics=dict(metrics or {}),
        descriptions=descriptions_of(classes),
        backbone=backbone,
        class_shares=class_shares(labels, num_classes=len(classes)),
        footage=footage,
        clip_frames=round(float(np.median(clip_frames))) if len(clip_frames) else 0,
    )
    return Checkpoint(model.cpu().eval().requires_grad_(False), spec)


def random_window(clip: ClipFeatures, spec: WindowSpec, rng: np.random.Generator) -> Tensor:
    """L consecutive frames [L, d] after the stride, of a window that counts; all frames of a clip that has fewer.

    The clip must have such a window, see `clipautt.model.windows.why_no_window`.
    """
    scan = WindowSpec(spec.length, spec.stride)
    offsets = range(min(spec.stride, len(clip.features)))
    choices = [(offset, starts) for offset in offsets if (starts := clip_starts(clip, scan, offset=offset))]
    offset, starts = choices[int(rng.integers(len(choices)))]
    start = starts[int(rng.integers(len(starts)))]
    return clip.features[offset :: spec.stride][start : start + spec.length]


def epoch_order(clip_ids: Sequence[str], config: TrainConfig, epoch: int) -> list[int]:
    """Positions in `clip_ids` in the order of one epoch: a seeded permutation of the sorted ids."""
    ordered = sorted(range(len(clip_ids)), key=clip_ids.__getitem__)
    return [ordered[i] for i in np.random.default_rng([config.seed, 11, epoch]).permutation(len(ordered))]


def epoch_batches(examples: Sequence[Example], config: TrainConfig, epoch: int) -> list[list[Example]]:
    """The batches of one epoch in `epoch_order`, incomplete last batch included."""
    order = epoch_order([example.clip.clip_id for example in examples], config, epoch)
    return [[examples[i] for i in order[at : at + config.batch_size]] for at in range(0, len(order), config.batch_size)]


@dataclass(frozen=True, eq=False, repr=False)
class AugmentedBatches:
    """The batches of training on augmented features: epoch e takes pass e modulo the number of passes."""

    passes: tuple[Mapping[str, Example], ...]
    """Of every pass, clip id → example."""
    omitted: Mapping[str, tuple[int, ...]]
    """Clip id → numbers of the passes that lack the clip; clips that every pass has are not named."""
    config: TrainConfig
    """Order and batches."""

    def __call__(self, epoch: int) -> list[list[Example]]:
        """The batches of one epoch, in the order that `features=streamed` has; what a pass lacks is passed over."""
        examples = self.passes[epoch % len(self.passes)]
        names = sorted(set().union(*self.passes))
        order = [names[i] for i in epoch_order(names, self.config, epoch)]
        there = [examples[name] for name in order if name in examples]
        return [there[at : at + self.config.batch_size] for at in range(0, len(there), self.config.batch_size)]


def augmented_batches(
    passes: Sequence[Mapping[str, ClipFeatures]],
    labels: Mapping[str, int],
    centres: Mapping[str, Tensor],
    config: TrainConfig,
) -> AugmentedBatches:
    """The batches of an epoch for `fit`, from augmented features.

    Args:
        passes: clip id → features of every pass, no centre removed; clips without a label here are not used.
        labels: clip id → class index of the clips to train on.
        centres: subject → centre [d], `subject_centres` of the clips without augmentation; empty removes nothing.
        config: see `TrainConfig`.

    Raises:
        ValueError: without passes, or if a subject lacks its centre.
    """
    if not passes:
        raise ValueError("no passes of augmented features; give one or more")
    omitted = {name: tuple(i for i, clips in enumerate(passes) if name not in clips) for name in sorted(labels)}
    return AugmentedBatches(
        tuple(_examples_of_pass(clips, labels, centres, config) for clips in passes),
        {name: lacking for name, lacking in omitted.items() if lacking},
        config,
    )


def _examples_of_pass(
    clips: Mapping[str, ClipFeatures], labels: Mapping[str, int], centres: Mapping[str, Tensor], config: TrainConfig
) -> dict[str, Example]:
    """The labelled clips with a window that counts, centred."""
    examples = {}
    for name, clip in clips.items():
        if name not in labels or not clip_starts(clip, config.window):
            continue
        if centres and clip.subject_id not in centres:
            raise ValueError(
                f"clip {name!r} has augmented features, but subject {clip.subject_id!r} has no centre: its clips "
                "without augmentation are missing"
            )
        centred = replace(clip, features=clip.features - centres[clip.subject_id]) if centres else clip
        examples[name] = Example(centred, labels[name])
    return examples


def batch_windows(batch: Sequence[Example], config: TrainConfig, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows [B, L, d], their lengths [B] and labels [B]; the window depends on seed, epoch and clip alone.

    A clip shorter than L is a window of its full length, as at test time; its row is padded with zeros.
    """
    windows = []
    for example in batch:
        rng = np.random.default_rng([config.seed, 12, epoch, id_number(example.clip.clip_id)])
        windows.append(random_window(example.clip, config.window, rng))
    lengths = torch.tensor([len(window) for window in windows])
    return nn.utils.rnn.pad_sequence(windows, batch_first=True), lengths, torch.tensor([e.label for e in batch])


def fit(
    model: nn.Module,
    text_features: Tensor,
    examples: Sequence[Example] | Batches,
    config: TrainConfig,
    *,
    on_epoch: Callable[[int, float], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
    first_epoch: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Train a `ClipAU`, or its data-parallel wrapper, in place.

    Args:
        model: called as `model(windows, text_features, lengths)`.
        text_features: text features of the K prompts with the source context, [K, d].
        examples: labelled source clips, centred with `centre_subjects`; for augmented or streamed features, a function
            that gives the batches of an epoch: `augmented_batches`, or one that gives them one at a time.
        config: see `TrainConfig`.
        on_epoch: called with the epoch's number and mean loss.
        rank: index of this worker; it takes every `world_size`-th clip of each batch, which may be none.
        world_size: number of workers whose gradients are averaged.
        first_epoch: epoch to resume at after a restart.
        optimizer: made by `make_optimizer`; a new one by default.

    Raises:
        ValueError: without examples, or if `examples` is a list although features are to be augmented or streamed.
        FloatingPointError: if the loss is not finite.
    """
    batches = _batches_of(examples, config)
    optimizer = optimizer or make_optimizer(model, config)
    model.train()
    for epoch in range(first_epoch, config.epochs):
        losses = []
        for batch in batches(epoch):
            share = batch[rank::world_size]
            windows, lengths, labels = (
                part.to(text_features.device) for part in batch_windows(share or batch[:1], config, epoch)
            )
            logits = model(windows, text_features, lengths)
            # Averaged over the workers, this is the mean over the clips of the batch, however they are shared out.
            weight = len(share) * world_size / len(batch)
            value = F.cross_entropy(logits, labels) * weight
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss of epoch {epoch} is {value.item()}")
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
            losses.append(value.item())
        if not losses:
            raise ValueError(_NO_EXAMPLES)
        if on_epoch:
            on_epoch(epoch, float(np.mean(losses)))
    model.eval()


def _batches_of(examples: Sequence[Example] | Batches, config: TrainConfig) -> Batches:
    """Both forms of `examples` as a function that gives the batches of an epoch."""
    if callable(examples):
        return examples
    if config.features != "cached":  # augmentation would have no effect on a list
        raise ValueError(
            f"train.features={config.features!r} is not possible here, these are features of unchanged frames: take "
            "train.features=cached, without augmentation"
        )
    if not examples:
        raise ValueError(_NO_EXAMPLES)
    stored = examples
    return lambda epoch: epoch_batches(stored, config, epoch)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of the model."""
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)


@torch.inference_mode()
def validate(
    model: ClipAU, text_features: Tensor, examples: Sequence[Example], config: TrainConfig
) -> Mapping[str, float]:
    """Mean WAR and UAR over source-validation subjects with the lowest-entropy window, and the mean entropy.

    Returns:
        `war`, `uar` in 0..1 and `entropy` in nats; empty without examples.
    """
    if not examples:
        return {}
    au = model.au_embeddings(text_features)
    decisions: dict[str, list[tuple[int, int]]] = {}
    entropies = []
    for example in examples:
        frames, starts = example.clip.features.to(au.device), clip_starts(example.clip, config.window)
        ((embeddings, _),) = model.window_embeddings_of([frames], [config.window], starts=[starts])
        logits = model.logits(embeddings, au)
        uncertain = entropy(logits)
        best = int(uncertain.argmin())
        entropies.append(float(uncertain[best]))
        decisions.setdefault(example.clip.subject_id, []).append((int(logits[best].argmax()), example.label))
    scores = [
        score([predicted for predicted, _ in pairs], [true for _, true in pairs], num_classes=logits.shape[-1])
        for pairs in decisions.values()
    ]
    return {
        "war": float(np.mean([s.war for s in scores])),
        "uar": float(np.mean([s.uar for s in scores])),
        "entropy": float(np.mean(entropies)),
    }
