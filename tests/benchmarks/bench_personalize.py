"""How many frames of a person a personalization needs: mean UAR over people against the frames that it rests on.

    make bench-personalize    # ARGS="checkpoint=runs/train/demo people=8 seeds=101,102" for another or a shorter run

New synthetic people of several seeds are rendered, whom neither the backbone nor the checkpoint has seen. Each person's
clips are divided into two halves. The resting face (the median of the features) is taken from N frames of clips of one
half, the clips of the other half are predicted with it, and the other way round, so that no frame that a
personalization rests on is evaluated. Gains are against predicting every video with its own median, as `predict`
without `subject=` does.

What is given is of five kinds: the first N frames of neutral clips (a face at rest, with everyday movements), of
neutral clips and clips of the expression in turn, of clips of the expression alone (most of their frames are at rest),
frames drawn at random from all clips of the half, and the frames of the expression alone, by the true intensities.
Fewer frames than a window has are below what `clipautt personalize` accepts; the table shows them all the same.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipautt.adaptation.driver import SubjectState, adapt, predict_clips
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.datasets.synthetic.generate import SyntheticConfig, generate, read_truth
from clipautt.features.clip_features import ClipFeatures, encode_clip, subject_centre
from clipautt.manifest import read_manifest
from clipautt.metrics import bootstrap, roc_auc, score
from clipautt.model.checkpoint import find_checkpoint, load_checkpoint
from ray_jobs.platform.progress import Progress, table
from tests.benchmarks.machine import machine

FRAMES = (1, 2, 4, 8, 16, 25, 50, 75, 100, 150, 200, 300)
KINDS = ("neutral", "mixed", "mixed at random", "expression clips", "expression frames")
Scored = npt.NDArray[np.float64]
"""UAR, ROC-AUC, and the recalls of the neutral and the positive class, [people, 4], each 0..1."""
_CLIPS, _FPS, _SAMPLED = 16, 25, 12.5


@dataclass(frozen=True, eq=False)
class Person:
    """A synthetic person's encoded clips."""

    clips: tuple[ClipFeatures, ...]
    """Neutral and positive in turn."""
    bursts: tuple[npt.NDArray[np.bool_], ...]
    """Whether a sampled frame belongs to the expression, [T] per clip."""

    def half(self, number: int) -> range:
        """Indices of the clips of one half."""
        middle = len(self.clips) // 2
        return range(middle) if number == 0 else range(middle, len(self.clips))

    def frames(self, kind: str, half: int) -> Tensor:
        """Features of the frames that are given, in order, [N, d]."""
        chosen = [i for i in self.half(half) if kind.startswith("mixed") or i % 2 == (kind != "neutral")]
        parts = [self.clips[i].features for i in chosen]
        if kind == "expression frames":
            parts = [part[torch.from_numpy(self.bursts[i])] for part, i in zip(parts, chosen, strict=True)]
        frames = torch.cat(parts)
        order = np.random.default_rng(half).permutation(len(frames))
        return frames[torch.from_numpy(order)] if kind == "mixed at random" else frames


def people_of(source: Source, seed: int, count: int) -> list[Person]:
    """Render and encode the people of one seed."""
    config = SyntheticConfig(
        seed=seed,
        difficulty="hard",
        source_subjects=0,
        source_val_subjects=0,
        target_subjects=count,
        clips_per_target_subject=_CLIPS,
    )
    with tempfile.TemporaryDirectory() as folder, Progress(f"people of seed {seed}", count, unit="people") as progress:
        manifest = read_manifest(generate(config, folder, workers=2))
        found = []
        for subject in sorted({clip.subject_id for clip in manifest.clips}):
            clips = sorted((c for c in manifest.clips if c.subject_id == subject), key=lambda c: c.clip_id)
            found.append(Person(*zip(*(_encoded(source, clip) for clip in clips), strict=True)))
            progress.advance()
    return found


def _encoded(source: Source, clip: Clip) -> tuple[ClipFeatures, npt.NDArray[np.bool_]]:
    features = encode_clip(clip, source.backbone, source.checkpoint.spec.features.frames)
    burst = read_truth(clip.source)["burst"].to_numpy()
    return features, burst[np.minimum(np.rint(features.times * _FPS).astype(int), len(burst) - 1)]


def scored(probabilities: Sequence[float], labels: Sequence[int]) -> list[float]:
    """The figures of one person, see `Scored`."""
    values, true = np.array(probabilities), np.array(labels)
    called = (values > 0.5).astype(int)
    recalls = [float((called[true == label] == label).mean()) for label in (0, 1)]
    return [score(called, true, num_classes=2).uar, roc_auc(values, true == 1), *recalls]


def scored_with(session: Session, person: Person, centres: Sequence[Tensor]) -> list[float]:
    """Figures of a person whose second half is predicted with the first centre, and the first half with the second."""
    after = SubjectState(session.config.method.start(session, None))
    values, labels = [], []
    for half, centre in enumerate(centres):
        moved = [_centred(person.clips[i], centre) for i in person.half(1 - half)]
        values += [float(one.probabilities[1]) for one in predict_clips(session, after, moved)]
        labels += [i % 2 for i in person.half(1 - half)]
    return scored(values, labels)


def _centred(clip: ClipFeatures, centre: Tensor) -> ClipFeatures:
    return ClipFeatures(clip.clip_id, clip.subject_id, clip.features - centre, clip.times)


def references(source: Source, plain: Source, person: Person) -> dict[str, list[float]]:
    """Figures without a personalization, and with all clips of a half adapted to and predicted, as `adapt` does."""
    rows = {}
    for name, model, protocol in (
        ("none removed (CLIP-AU)", plain, "per_video"),
        ("of every video by itself", source, "per_video"),
        ("of the clips predicted (adapt)", source, "per_subject"),
    ):
        baseline = model.checkpoint.spec.subject_baseline
        config = AdaptConfig(ClipAUTT(), protocol=protocol, subject_baseline=baseline)  # type: ignore[arg-type]
        values, labels = [], []
        for half in (0, 1):
            clips = {person.clips[i].clip_id: (person.clips[i], i % 2) for i in person.half(half)}
            (result,) = adapt(model, [clip for clip, _ in clips.values()], config).values()
            values += [float(one.probabilities[1]) for one in result.predictions]
            labels += [clips[one.clip_id][1] for one in result.predictions]
        rows[name] = scored(values, labels)
    return rows


def curve(session: Session, people: Sequence[Person], kind: str) -> dict[int, Scored]:
    """Number of frames → figures of every person; the last number is all there are of the person with the fewest."""
    given = [[person.frames(kind, half) for half in (0, 1)] for person in people]
    most = min(len(frames) for pair in given for frames in pair)
    baseline = session.config.subject_baseline
    return {
        count: np.array(
            [
                scored_with(session, person, [subject_centre(frames[:count], baseline) for frames in pair])
                for person, pair in zip(people, given, strict=True)
            ]
        )
        for count in [*(count for count in FRAMES if count < most), most]
    }


def _row(found: Scored, alone: Scored) -> list[str]:
    uar, gain = bootstrap(100 * found[:, 0]), bootstrap(100 * (found - alone)[:, 0])
    others = [f"{value:.1f}" for value in 100 * found[:, 2:].mean(0)]
    interval = f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"
    return [f"{uar.mean:.1f} ({uar.low:.1f} to {uar.high:.1f})", interval, f"{found[:, 1].mean():.3f}", *others]


_FIGURES = ["UAR %", "gain", "ROC-AUC", "neutral recalled %", "expression recalled %"]


def spread(frames: Tensor) -> float:
    """Median distance of the frames from their median, relative to its length."""
    centre = frames.median(0).values
    return float(((frames - centre).norm(dim=-1) / frames.norm(dim=-1)).median())


def print_detection(people: Sequence[Person]) -> None:
    """Print how well clips of the expression alone can be told from neutral ones without labels, by their spread."""
    pairs = [[spread(person.frames(kind, 0)) for person in people] for kind in ("neutral", "expression frames")]
    values, positive = np.concatenate(pairs), np.arange(2 * len(people)) >= len(people)
    print(f"spread of the frames, expression frames against neutral clips: ROC-AUC {roc_auc(values, positive):.2f}")


def main(words: Sequence[str]) -> int:
    """Measure and print the tables."""
    given: Mapping[str, str] = dict(word.split("=", 1) for word in words)
    checkpoint = Path(given.get("checkpoint", "runs/demo/pain-hard-seed0/train/demo"))
    backbone = load_backbone(BackboneConfig())
    source, plain = (
        Source(load_checkpoint(find_checkpoint(checkpoint, name)), backbone) for name in ("median", "none")
    )
    seeds, count = [int(seed) for seed in given.get("seeds", "101,102,103").split(",")], int(given.get("people", 30))
    config = AdaptConfig(ClipAUTT(), subject_baseline=source.checkpoint.spec.subject_baseline)
    people = [person for seed in seeds for person in people_of(source, seed, count)]
    print(
        f"{machine()}; {len(people)} people of {len(seeds)} seeds, {_CLIPS} clips each; window {source.window.length}"
    )
    lines = [references(source, plain, person) for person in people]
    others = {name: np.array([line[name] for line in lines]) for name in lines[0]}
    alone = others["of every video by itself"]
    table([(name, *_row(found, alone)) for name, found in others.items()], ["resting face", *_FIGURES])
    session = Session.open(source, config)
    for kind in KINDS:
        found = curve(session, people, kind)
        rows = [(n, f"{n / _SAMPLED:.1f} s", *_row(figures, alone)) for n, figures in found.items()]
        table(rows, [f"frames ({kind})", "time", *_FIGURES])
    print_detection(people)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main(sys.argv[1:]))
