"""Where answers of `clipautt predict` become unreliable: short and long clips, no resting face, dark or distant faces.

The people of a demo run, who are unseen, are predicted clip by clip with the run's own model. What is changed: how much
of a clip there is, how much of it shows the expression, how bright the picture is, how much of it the face fills, and
in how many frames the face is found. Every row has the mean UAR over the people, the change against unchanged clips
with its paired 95 % interval over people, both recalls in percent, the pooled area under the ROC curve, the share of
equal decisions, and that of clips with an answer. From the root of a checkout:

    clipautt demo                                     # seed=1 and seed=2 give more people
    make bench-validity ARGS="run=runs/demo/pain-hard-seed0"
    make bench-validity ARGS="run=runs/demo/pain-hard-seed0,runs/demo/pain-hard-seed1 parts=length,share,found"
    make bench-validity ARGS="parts=long,picture clips=4"

`run` takes the folders of demo runs of any difficulty and backbone (`clipautt demo backbone=…`), separated by commas;
`parts` are all by default, and `clips` says how many clips of each person the parts `long` and `picture` use, which
encode video again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from clipautt.adaptation.driver import Unit, adapt_units
from clipautt.adaptation.method import Session
from clipautt.adaptation.readout import read_clip
from clipautt.clips import Clip, id_number
from clipautt.datasets.synthetic.generate import SyntheticConfig, generate, read_truth
from clipautt.datasets.synthetic.video import reencode
from clipautt.features.clip_features import ClipFeatures, encode_clip, subject_centre
from clipautt.features.store import FeatureStore
from clipautt.manifest import Manifest, read_manifest
from clipautt.metrics import bootstrap, roc_auc
from clipautt.predictor import Predictor
from clipautt.video.face_check import face_sides
from clipautt.video.reader import decode_chunks
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine

WINDOWS = (1, 1.25, 1.5, 2, 2.5)
LONG = (2, 3, 4, 6, 12)
LENGTHS = (1, 1.5, 2, 3)
SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)
FOUND = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
BRIGHTNESS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03)
OVEREXPOSED = (0.8, 0.9)
SIDES = (0.9, 0.75, 0.6, 0.45)
WELL, READ_NOISE = 5000.0, 3.0
"""Electrons of a white pixel of a small sensor, and the standard deviation of its read noise."""
DRAWS = 4
"""Random cuts of every clip."""

Frames = npt.NDArray[np.uint8]
Change = Callable[[Frames, np.random.Generator], Frames]


@dataclass(frozen=True, eq=False)
class Subject:
    """A clip whose truth is known."""

    clip: ClipFeatures
    """Its features; the subject's name begins with that of the run."""
    video: Clip
    """Where its pixels are."""
    positive: bool
    """Whether it shows the expression."""
    burst: slice
    """Frames that show it; in a neutral clip, frames as many as in some positive clip, at random."""


@dataclass(frozen=True, eq=False)
class World:
    """A demo run."""

    folder: Path
    """Where it is."""
    predictor: Predictor
    """Its model with the median of the clip's own frames as the centre, as `clipautt predict` has it."""
    manifest: Manifest
    """Its clips."""
    subjects: tuple[Subject, ...]
    """The clips of its unseen people."""


def open_world(folder: Path) -> World:
    """Load the model of a demo run, and the stored features of the target subjects."""
    predictor = Predictor.load(folder / "train" / "demo" / "checkpoints" / "median")
    manifest = read_manifest(folder / "data" / "manifest.parquet")
    clips = manifest.of_split("target")
    stored = FeatureStore(folder / "features", predictor.source.checkpoint.spec.features).load(clips)
    return World(folder, predictor, manifest, tuple(_subjects(folder.name, manifest, clips, stored)))


def _subjects(
    name: str, manifest: Manifest, clips: Sequence[Clip], features: Mapping[str, ClipFeatures]
) -> Iterator[Subject]:
    """Clips with their truth."""
    shown = {clip.clip_id: _burst(clip, features[clip.clip_id]) for clip in clips}
    lengths = [burst.stop - burst.start for burst in shown.values() if burst]
    for clip in clips:
        mine = features[clip.clip_id]
        rng = np.random.default_rng(id_number(clip.clip_id))
        length = int(rng.choice(lengths))
        start = int(rng.integers(0, len(mine.times) - length + 1))
        burst = shown[clip.clip_id]
        named = replace(mine, subject_id=f"{name}/{mine.subject_id}")
        yield Subject(named, clip, manifest.label_index(clip) == 1, burst or slice(start, start + length))


def _burst(clip: Clip, features: ClipFeatures) -> slice | None:
    """The stored frames that show the expression; None in a neutral clip."""
    truth = read_truth(clip.source)
    inside = np.interp(features.times, truth["time_seconds"], truth["burst"].astype(float)) > 0.5
    where = np.flatnonzero(inside)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else None


def clip_of(subject: Subject, features: Tensor) -> ClipFeatures:
    """Frames as a clip of the subject's, one per unit of time."""
    return ClipFeatures(subject.clip.clip_id, subject.clip.subject_id, features, np.arange(len(features), dtype=float))


# ---------------------------------------------------------------- decisions and figures


def decisions(
    predictor: Predictor, tried: Sequence[tuple[Subject, ClipFeatures]], *, centres: Mapping[str, Tensor] | None = None
) -> pd.DataFrame:
    """Predict clips, every one alone: `subject, clip, positive, score, spread, decided`.

    Without an answer, score and decision are nan; the spread is the mean distance of a clip's frames from their median.

    Args:
        predictor: the model.
        tried: what is predicted, and the clip that it was made of.
        centres: clip → the resting face to subtract; None takes the clip's own frames.
    """
    clips = [replace(clip, clip_id=f"{number:06d}") for number, (_, clip) in enumerate(tried)]
    if centres is None:
        session = Session.open(predictor.source, predictor.config)
        results = adapt_units(session, [Unit(clip.subject_id, (clip,)) for clip in clips])
        answers = [result.predictions[0].probabilities for result in results]
    else:
        centred = [
            replace(clip, features=clip.features - centres[of.clip.clip_id])
            for clip, (of, _) in zip(clips, tried, strict=True)
        ]
        logits = [predictor.source.logits(views.embeddings) for views in predictor.source.views_of(centred)]
        answers = [read_clip(each, predictor.config.readout)[0].softmax(-1) for each in logits]
    truth = [(one.clip.subject_id, one.clip.clip_id, one.positive) for one, _ in tried]
    rows = pd.DataFrame(truth, columns=["subject", "clip", "positive"])
    rows["score"] = [float(answer[1]) for answer in answers]
    rows["spread"] = [float((c.features - c.features.median(0).values).norm(dim=1).mean()) for c in clips]
    return rows.assign(decided=(rows["score"] > 0.5).where(rows["score"].notna()).astype(float))


def uar_of(rows: pd.DataFrame) -> pd.Series:
    """UAR in percent of every subject with answers of both classes; several cuts of a clip are averaged."""
    right = (rows["decided"] == rows["positive"]).where(rows["decided"].notna()).astype(float)
    recalls = right.groupby([rows["subject"], rows["positive"]]).mean().unstack()
    return 100 * recalls.mean(axis=1, skipna=False).dropna()


def figures(rows: pd.DataFrame, reference: pd.DataFrame) -> list[str]:
    """UAR, its change, recalls, ROC-AUC, equal decisions, answered clips."""
    before, answered = uar_of(reference), rows[rows["decided"].notna()]
    if not len(uar_of(rows)):  # nobody has answers of both classes
        return [*["-"] * (len(FIGURES) - 1), f"{100 * len(answered) / len(rows):.0f}"]
    change = bootstrap((uar_of(rows) - before).dropna().to_numpy())
    recall = {kind: 100 * (part["decided"] == kind).mean() for kind, part in answered.groupby("positive")}
    usual = reference.set_index(["subject", "clip"])["decided"]
    same = answered["decided"].to_numpy() == usual.loc[pd.MultiIndex.from_frame(answered[["subject", "clip"]])]
    auc = roc_auc(answered["score"].to_numpy(), answered["positive"].to_numpy(bool))
    return [
        f"{uar_of(rows).mean():.1f}",
        f"{change.mean:+.1f} ({change.low:+.1f} to {change.high:+.1f})",
        f"{recall.get(True, np.nan):.0f}",
        f"{recall.get(False, np.nan):.0f}",
        f"{auc:.2f}",
        f"{100 * same.mean():.0f}",
        f"{100 * len(answered) / len(rows):.0f}",
    ]


FIGURES = ["UAR", "change", "recall", "specificity", "AUC", "same", "answered"]


def of_all(
    worlds: Sequence[World], tried: Callable[[World, Subject], Sequence[ClipFeatures]], *, personal: bool = False
) -> pd.DataFrame:
    """Decisions on what `tried` makes of every clip of every world; `personal`: with the person's resting face."""
    return pd.concat(
        [
            decisions(
                world.predictor,
                [(one, clip) for one in world.subjects for clip in tried(world, one)],
                centres=_centres(world) if personal else None,
            )
            for world in worlds
        ]
    )


def _centres(world: World) -> dict[str, Tensor]:
    """The resting face of a clip's person, from the person's other clips."""
    return {
        one.clip.clip_id: subject_centre(
            torch.cat([other.clip.features for other in world.subjects if _other_of(other, one)]),
            world.predictor.source.checkpoint.spec.subject_baseline,
        )
        for one in world.subjects
    }


def _other_of(other: Subject, one: Subject) -> bool:
    return other is not one and other.clip.subject_id == one.clip.subject_id


def length_of(world: World) -> int:
    """Frames in a window."""
    return world.predictor.source.window.length


def _generator(subject: Subject, *more: float) -> np.random.Generator:
    return np.random.default_rng([id_number(subject.clip.clip_id), *(round(1000 * one) for one in more)])


# ---------------------------------------------------------------- how much of a clip there is


def cut(subject: Subject, frames: int, *, around: bool, draw: int) -> ClipFeatures:
    """Consecutive frames of a clip, at random; `around`: with the expression, or as much of it as fits."""
    total, burst = len(subject.clip.features), subject.burst
    frames = min(frames, total)
    low, high = 0, total - frames
    if around:
        ends = sorted((burst.start, burst.stop - frames))
        low, high = (int(np.clip(end, 0, total - frames)) for end in ends)
    start = int(_generator(subject, frames, draw).integers(low, high + 1))
    return clip_of(subject, subject.clip.features[start : start + frames])


def length_rows(worlds: Sequence[World]) -> Iterator[list[str]]:
    """Short cuts of clips of three windows."""
    for kind, around, personal in (
        ("around the expression", True, False),
        ("anywhere", False, False),
        ("around, personalized", True, True),
    ):
        whole = of_all(worlds, lambda _, one: [one.clip], personal=personal)
        yield [kind, "all", *figures(whole, whole)]
        for windows in WINDOWS:

            def cuts(world: World, one: Subject, windows: float = windows, around: bool = around) -> list[ClipFeatures]:
                frames = round(windows * length_of(world))
                return [cut(one, frames, around=around, draw=draw) for draw in range(DRAWS)]

            yield [kind, f"{windows:g}", *figures(of_all(worlds, cuts, personal=personal), whole)]


def with_share(subject: Subject, frames: int, share: float, rest: Tensor) -> ClipFeatures:
    """A clip of which this share shows the expression, held at its height or cut as needed, between frames of rest.

    Args:
        subject: the clip with the expression.
        frames: length of the result.
        share: 0..1.
        rest: frames of the person's neutral clips, as many as `frames` or more.
    """
    clip, burst = subject.clip.features, subject.burst
    shown = clip[burst][held(burst.stop - burst.start, max(1, round(share * frames)))]
    before = int(_generator(subject, frames, share).integers(0, frames - len(shown) + 1))
    after = frames - len(shown) - before
    left = torch.cat([rest, clip[: burst.start]])
    right = torch.cat([clip[burst.stop :], rest])
    return clip_of(subject, torch.cat([left[len(left) - before :], shown, right[:after]]))


def held(length: int, wanted: int) -> npt.NDArray[np.int64]:
    """Numbers of the frames of an expression made longer by going to and fro in its middle third, or cut to its middle.

    held(6, 4): 1 2 3 4      held(6, 9): 0 1 2 3 2 3 2 4 5
    """
    if wanted <= length:
        return np.arange(wanted) + (length - wanted) // 2
    first, last = length // 3, length - length // 3
    path = [*range(first, last), *range(last - 2, first, -1)]
    middle = [path[number % len(path)] for number in range(wanted - (length - (last - first)))]
    return np.array([*range(first), *middle, *range(last, length)])


def filled(windows: float, share: float) -> Callable[[World, Subject], list[ClipFeatures]]:
    """What `of_all` tries for clips of so many windows, of which this share is expressive."""

    def made(world: World, one: Subject) -> list[ClipFeatures]:
        rest = [s.clip.features for s in world.subjects if _other_of(s, one) and not s.positive]
        return [with_share(one, round(windows * length_of(world)), share, torch.cat(rest))]

    return made


def share_rows(worlds: Sequence[World]) -> Iterator[list[str]]:
    """Clips of which more and more shows the expression."""
    whole = of_all(worlds, lambda _, one: [one.clip])
    for windows in LENGTHS:
        for share in SHARES:
            yield [f"{windows:g}", f"{100 * share:.0f} %", *figures(of_all(worlds, filled(windows, share)), whole)]


def spread_rows(worlds: Sequence[World]) -> Iterator[list[str]]:
    """How well little movement in a clip tells that its expression is missed, or that its answer is wrong."""
    for windows in LENGTHS:
        rows = pd.concat([of_all(worlds, filled(windows, share)) for share in SHARES])
        wrong = (rows["decided"] != rows["positive"]).to_numpy()
        still, positive = -rows["spread"].to_numpy(), rows["positive"].to_numpy(bool)
        missed = roc_auc(still[positive], wrong[positive])
        yield [f"{windows:g}", f"{missed:.2f}", f"{roc_auc(still, wrong):.2f}"]


def long_rows(worlds: Sequence[World], clips: int) -> Iterator[list[str]]:
    """Clips of twelve windows, rendered anew with one expression each, and cuts of them."""
    with tempfile.TemporaryDirectory() as folder:
        longer = [replace(world, subjects=tuple(_longer(world, Path(folder), clips))) for world in worlds]
    for personal in (False, True):
        found = {}
        for windows in LONG:

            def cuts(world: World, one: Subject, windows: int = windows) -> list[ClipFeatures]:
                return [cut(one, windows * length_of(world), around=True, draw=0)]

            found[windows] = of_all(longer, cuts, personal=personal)
        for windows, rows in found.items():
            yield ["personalized" if personal else "alone", f"{windows}", *figures(rows, found[3])]


def _longer(world: World, folder: Path, clips: int) -> Iterator[Subject]:
    """Clips of the target subjects that last as long as twelve windows."""
    facts = json.loads((world.folder / "data" / "dataset.json").read_text())["configuration"]
    spec = world.predictor.source.checkpoint.spec
    per_stored = (spec.features.frames.sampling.frames_per_second or facts["fps"]) / facts["fps"]
    facts |= {"source_subjects": 0, "source_val_subjects": 0, "clips_per_target_subject": clips}
    facts |= {"num_frames": round(max(LONG) * length_of(world) * spec.window.stride / per_stored)}
    generate(SyntheticConfig(**facts), folder / world.folder.name)
    manifest = read_manifest(folder / world.folder.name / "manifest.parquet")
    features = {
        clip.clip_id: encode_clip(clip, world.predictor.source.backbone, spec.features.frames)
        for clip in manifest.clips
    }
    yield from _subjects(world.folder.name, manifest, manifest.clips, features)


# ---------------------------------------------------------------- what the picture shows


def luma(frames: Frames) -> npt.NDArray[np.float32]:
    """Mean luma of frames, 0..1, as the reader of videos has it."""
    return np.asarray((frames @ np.array([0.299, 0.587, 0.114])).mean((1, 2)) / 255, np.float32)


def exposed(frames: Frames, factor: float, rng: np.random.Generator | None) -> Frames:
    """Frames as a camera takes them in this many times as much light; without a generator, without its noise.

    The curve between light and pixel values is that of IEC 61966-2-1 (sRGB); light above white is cut off.
    """
    values = np.arange(256) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)[frames] * factor
    if rng is not None:
        light += np.sqrt(light * WELL + READ_NOISE**2) / WELL * rng.normal(size=light.shape)
    light = light.clip(0, 1)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * shown), np.uint8)


def curved(frames: Frames, power: float) -> Frames:
    """Frames with every value, 0..1, raised to a power: a dark tone curve instead of less light."""
    return np.asarray(np.rint(255 * (np.arange(256) / 255) ** power)[frames], np.uint8)


def solved(change: Callable[[float], Frames], wanted: float, low: float, high: float) -> float:
    """The strength, between two that enclose it, at which frames reach this brightness."""
    rising = luma(change(high)).mean() > luma(change(low)).mean()
    for _ in range(20):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if (luma(change(middle)).mean() < wanted) == rising else (low, middle)
    return float(np.sqrt(low * high))


def lit(brightness: float) -> Change:
    """More or less light, to this brightness, with the noise of a sensor."""

    def change(frames: Frames, rng: np.random.Generator) -> Frames:
        return exposed(frames, solved(lambda factor: exposed(frames[:1], factor, None), brightness, 1e-4, 1e4), rng)

    return change


def toned(brightness: float) -> Change:
    """A darker tone curve, to this brightness."""
    return lambda frames, _: curved(frames, solved(lambda power: curved(frames[:1], power), brightness, 0.1, 100))


def smaller(share: float) -> Change:
    """The picture made smaller, with its border continued around it."""

    def change(frames: Frames, _: np.random.Generator) -> Frames:
        size = frames.shape[1]
        side = round(share * size)
        gap = (size - side) // 2
        around = (gap, size - side - gap) * 2
        small = [cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames]
        return np.stack([cv2.copyMakeBorder(one, *around, cv2.BORDER_REPLICATE) for one in small]).astype(np.uint8)

    return change


CHANGES: dict[tuple[str, str], Change] = {
    ("unchanged", "-"): lambda frames, _: frames,
    ("noise of a sensor", "-"): lambda frames, rng: exposed(frames, 1.0, rng),
    **{("less light", f"{level:g}"): lit(level) for level in BRIGHTNESS},
    **{("darker tones", f"{level:g}"): toned(level) for level in BRIGHTNESS},
    **{("overexposed", f"{level:g}"): lit(level) for level in OVEREXPOSED},
    **{("smaller face", f"{share:g}"): smaller(share) for share in SIDES},
}


def picture_rows(worlds: Sequence[World], clips: int) -> Iterator[list[str]]:
    """Changed pictures; each passes through H.264 again, the unchanged ones too."""
    found: dict[tuple[str, str], list[tuple[World, Subject, ClipFeatures]]] = {key: [] for key in CHANGES}
    for world in worlds:
        for _, chosen in pd.Series(world.subjects).groupby([one.clip.subject_id for one in world.subjects]):
            for one in chosen.iloc[:clips]:
                for key, clip in _changed(world, one).items():
                    found[key].append((world, one, clip))
    decided = {
        key: pd.concat([decisions(w.predictor, [(one, c) for of, one, c in rows if of is w]) for w in worlds])
        for key, rows in found.items()
    }
    for key, rows in found.items():
        light = np.mean([clip.brightness for *_, clip in rows])
        side = np.median([s for *_, clip in rows for s in clip.face_sides]) if "smaller face" in key else np.nan
        yield [*key, f"{light:.3f}", f"{side:.2f}", *figures(decided[key], decided["unchanged", "-"])]


def _changed(world: World, one: Subject) -> dict[tuple[str, str], ClipFeatures]:
    """The features of a clip after every change."""
    spec, backbone = world.predictor.source.checkpoint.spec.features.frames, world.predictor.source.backbone
    frames = np.concatenate([chunk.frames for chunk in decode_chunks(one.video, spec, decoder="pyav")])
    made = {}
    for number, (key, change) in enumerate(CHANGES.items()):
        pixels = reencode(change(frames, _generator(one, number)))
        sides = tuple(face_sides(list(pixels[:: len(pixels) // 2]))) if "smaller face" in key else ()
        made[key] = replace(
            one.clip, features=backbone.encode_frames(pixels), brightness=luma(pixels), face_sides=sides
        )
    return made


# ---------------------------------------------------------------- in how many frames the face is found


def found_rows(worlds: Sequence[World]) -> Iterator[list[str]]:
    """Clips in which the face is lost for a second at a time; frames without it show what another frame shows."""
    whole = of_all(worlds, lambda _, one: [one.clip])
    for share in FOUND:

        def lost(_: World, one: Subject, share: float = share) -> list[ClipFeatures]:
            return [_with_gaps(one, share, draw) for draw in range(DRAWS)]

        yield [f"{100 * share:.0f} %", *figures(of_all(worlds, lost), whole)]


def _with_gaps(one: Subject, share: float, draw: int, *, gap: int = 12) -> ClipFeatures:
    """Gaps begin anywhere; they last about a second, and less where less is to be lost."""
    rng, count = _generator(one, share, draw), len(one.clip.times)
    found = np.ones(count, bool)
    while found.sum() > share * count:
        start = int(rng.integers(0, count))
        left = round(found.sum() - share * count)
        found[start : start + min(gap, max(1, left))] = False
    index = np.where(found, np.arange(count), rng.permutation(count))
    return replace(one.clip, features=one.clip.features[index], face_found=found, min_share=0.8)


HEADS = {
    "length": ["cut", "windows"],
    "share": ["windows", "expressive"],
    "spread": ["windows", "AUC of stillness for a missed expression", "for a wrong answer"],
    "long": ["resting face", "windows"],
    "picture": ["change", "level", "brightness", "side"],
    "found": ["face found"],
}


def main(arguments: Sequence[str]) -> None:
    """Print a table for every part."""
    options = dict(word.split("=", 1) for word in arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    worlds = [open_world(Path(run)) for run in options.get("run", "runs/demo/pain-hard-seed0").split(",")]
    clips = int(options.get("clips", 2))
    parts: dict[str, Callable[[], Iterator[list[str]]]] = {
        "length": lambda: length_rows(worlds),
        "share": lambda: share_rows(worlds),
        "spread": lambda: spread_rows(worlds),
        "long": lambda: long_rows(worlds, clips),
        "picture": lambda: picture_rows(worlds, clips),
        "found": lambda: found_rows(worlds),
    }
    people = {one.clip.subject_id for world in worlds for one in world.subjects}
    backbones = {world.predictor.source.backbone.name for world in worlds}
    print(f"{machine()}; backbone {', '.join(backbones)}; {len(people)} people, rendered faces")
    for part in options.get("parts", ",".join(parts)).split(","):
        print(f"\n{part}", flush=True)
        table(list(parts[part]()), [*HEADS[part], *([] if part == "spread" else FIGURES)])


if __name__ == "__main__":
    main(sys.argv[1:])
