"""Writes synthetic data sets: videos, the true intensities of every frame, and the manifest.

The unit of work is a subject: `plan` lists them, `write_subject` renders one and needs nothing else, `finish` writes
the tables. `generate` does all three. Everything follows from the configuration, so an interrupted run resumes where it
stopped and gives the same files.

    config = SyntheticConfig(seed=1, source_subjects=4, source_val_subjects=1, target_subjects=2)
    manifest = generate(config, "faces")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from clipautt.action_units import RENDERED, TASKS
from clipautt.datasets.synthetic.dynamics import DIFFICULTIES, MIN_FRAMES, Track, draw_track
from clipautt.datasets.synthetic.identity import Identity, draw_identity
from clipautt.datasets.synthetic.renderer import MIN_SIZE, render
from clipautt.datasets.synthetic.sheet import contact_sheet
from clipautt.datasets.synthetic.video import write_mp4
from clipautt.files import write_bytes, write_json, write_table
from clipautt.footage import RENDERED_DATASET, truth_path
from clipautt.settings import settings

FORMAT_VERSION = 1
"""Raised whenever the same configuration gives other frames or tables: layout, drawing or dynamics changed."""

Row: TypeAlias = dict[str, str | None]
"""One line of the manifest."""

_SEEDS_PER_DATASET = 1_000_000
_TARGET_OFFSET = 500_000
_SHEET_ROWS = 8
_MANIFEST_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("subject_id", pa.string()),
        ("source", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("dataset", pa.string()),
    ]
)


@settings
class SyntheticConfig:
    """What a synthetic data set consists of."""

    seed: Annotated[int, Field(ge=0, le=1_099_511_627_776)] = 0
    """Seed of everything; another seed means other people."""
    task: Literal["pain", "stress", "ambivalence"] = "pain"
    """Expression to be told apart from neutral."""
    difficulty: Literal["standard", "hard"] = "standard"
    """`hard`: subtler expressions, and stronger differences between people."""
    source_subjects: Annotated[int, Field(ge=0, le=_TARGET_OFFSET)] = 30
    """People with known labels, including those for validation."""
    source_val_subjects: NonNegativeInt = 6
    """How many of the source subjects are held out to select settings; fewer than `source_subjects`."""
    target_subjects: Annotated[int, Field(ge=0, le=_TARGET_OFFSET)] = 10
    """People to personalize for."""
    clips_per_source_subject: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Clips of each source subject; every second one shows the expression."""
    clips_per_target_subject: Annotated[int, Field(ge=1, le=100_000)] = 16
    """Clips of each target subject; every second one shows the expression."""
    num_frames: Annotated[int, Field(ge=MIN_FRAMES, le=100_000)] = 96
    """Frames in each clip."""
    fps: Annotated[int, Field(ge=1, le=240)] = 25
    """Frames per second in the video files."""
    size: Annotated[int, Field(ge=MIN_SIZE, le=4096, multiple_of=2)] = 96
    """Height and width of the frames in pixels; even, as H.264 needs it."""

    def __post_init__(self) -> None:
        if self.source_val_subjects > self.source_subjects:
            raise ValueError(
                f"source_val_subjects={self.source_val_subjects} is more than source_subjects={self.source_subjects}"
            )
        if self.source_subjects and self.source_val_subjects == self.source_subjects:
            raise ValueError(
                f"source_val_subjects={self.source_val_subjects} leaves none of the source_subjects="
                f"{self.source_subjects} to train on; fewer are allowed"
            )
        if not self.source_subjects + self.target_subjects:
            raise ValueError("source_subjects=0 and target_subjects=0 make an empty data set; one must be positive")

    @property
    def name(self) -> str:
        """The manifest's `dataset` value."""
        return f"{RENDERED_DATASET}{self.task}-{self.difficulty}-seed{self.seed}"


@dataclass(frozen=True)
class ClipPlan:
    """One clip to render."""

    clip_id: str
    """Unique, for instance `target-007_c012`."""
    index: int
    """Number of the clip among the subject's, from 0; part of its seed."""
    label: str
    """Class name."""


@dataclass(frozen=True)
class SubjectPlan:
    """One subject to render."""

    subject_id: str
    """For instance `source-003`."""
    identity_seed: int
    """Seed of `draw_identity`."""
    split: Literal["source_train", "source_val", "target"]
    """Which split all clips of the subject belong to."""
    clips: tuple[ClipPlan, ...]
    """The subject's clips, neutral and positive in turn."""


def plan(config: SyntheticConfig) -> list[SubjectPlan]:
    """All subjects and clips of the data set, without rendering anything.

    Identity seeds of different configuration seeds never overlap, and none lies below 1,000,000: those are free for
    pretraining.
    """
    first_seed = (config.seed + 1) * _SEEDS_PER_DATASET
    train = config.source_subjects - config.source_val_subjects
    subjects = []
    for number in range(config.source_subjects):
        clips = _plan_clips(f"source-{number:03d}", config.clips_per_source_subject, config.task)
        split: Literal["source_train", "source_val"] = "source_train" if number < train else "source_val"
        subjects.append(SubjectPlan(f"source-{number:03d}", first_seed + number, split, clips))
    for number in range(config.target_subjects):
        clips = _plan_clips(f"target-{number:03d}", config.clips_per_target_subject, config.task)
        subjects.append(SubjectPlan(f"target-{number:03d}", first_seed + _TARGET_OFFSET + number, "target", clips))
    return subjects


def _plan_clips(subject_id: str, count: int, task: str) -> tuple[ClipPlan, ...]:
    classes = TASKS[task].classes
    neutral, positive = classes[0], TASKS[task].positive
    return tuple(ClipPlan(f"{subject_id}_c{i:03d}", i, positive if i % 2 else neutral) for i in range(count))


def prepare(config: SyntheticConfig, out: str | Path) -> Path:
    """Creates the folder and records the configuration in `dataset.json`, before anything is rendered.

    Returns:
        The folder.

    Raises:
        ValueError: when the folder holds other files or another configuration, whose differences the message lists.
    """
    if "://" in str(out):
        raise ValueError(f"out={str(out)!r} is a URI; synthetic data sets are written to a folder of a file system")
    folder = Path(out)
    facts = folder / "dataset.json"
    if facts.exists():
        _refuse_difference(config, facts)
        return folder
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        # Another process may have recorded the configuration between the two checks.
        if facts.exists():
            return prepare(config, out)
        raise ValueError(f"out={str(out)!r} holds files but no dataset.json; an empty or a new folder is needed")
    folder.mkdir(parents=True, exist_ok=True)
    classes = TASKS[config.task].classes
    content = {"format_version": FORMAT_VERSION, "name": config.name, "class_names": list(classes), "seed": config.seed}
    write_json(facts, content | {"action_units": list(RENDERED), "configuration": asdict(config)})
    return folder


def _refuse_difference(config: SyntheticConfig, facts: Path) -> None:
    try:
        recorded = json.loads(facts.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{facts} is not readable JSON ({error}); delete the folder to start again") from error
    there, asked = recorded.get("configuration", {}), asdict(config)
    there["format_version"], asked["format_version"] = recorded.get("format_version"), FORMAT_VERSION
    names = [field.name for field in fields(config)] + ["format_version"]
    different = [f"{n}={there.get(n)!r} there, {asked[n]!r} asked" for n in names if there.get(n) != asked[n]]
    if different:
        raise ValueError(f"{facts.parent} holds a data set with another configuration: {'; '.join(different)}")


def write_subject(subject: SubjectPlan, out: str | Path, config: SyntheticConfig) -> list[Row]:
    """Renders the clips of one subject that are not there yet.

    Subjects are independent of each other, so any number of processes may share the work. A clip counts as there when
    its table carries the key of this configuration and its video exists; the table is written last.

    Returns:
        The subject's manifest rows.

    Raises:
        ValueError: when the folder belongs to another configuration, or the subject is not in its plan.
    """
    if subject not in plan(config):
        raise ValueError(f"subject {subject.subject_id!r} is not in the plan of this configuration")
    folder = prepare(config, out)
    level = DIFFICULTIES[config.difficulty]
    person = draw_identity(
        subject.identity_seed, resting_bias=level.resting_bias, expressivity_spread=level.expressivity_spread
    )
    rows = []
    for clip in subject.clips:
        source = f"videos/{subject.subject_id}/{clip.clip_id}.mp4"
        _write_clip(folder / source, person, clip, config)
        rows.append(
            {"clip_id": clip.clip_id, "subject_id": subject.subject_id, "source": source, "start_seconds": None}
            | {"end_seconds": None, "label": clip.label, "split": subject.split, "dataset": config.name}
        )
    return rows


def _write_clip(video: Path, person: Identity, clip: ClipPlan, config: SyntheticConfig) -> None:
    key = _clip_key(person, clip, config)
    table = truth_path(video)
    if video.exists() and table.exists() and (pq.read_schema(table).metadata or {}).get(b"clip_key") == key:
        return
    table.unlink(missing_ok=True)
    movements, frames = render_clip(person, clip, config)
    write_mp4(video, frames, fps=config.fps)
    write_table(table, _truth_table(movements, config.fps).replace_schema_metadata({b"clip_key": key}))


def _clip_key(person: Identity, clip: ClipPlan, config: SyntheticConfig) -> bytes:
    """Identifies everything that a clip's files depend on."""
    shared = ("seed", "task", "difficulty", "num_frames", "fps", "size")
    facts = [FORMAT_VERSION, person.seed, asdict(clip), {name: getattr(config, name) for name in shared}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24].encode()


def render_clip(person: Identity, clip: ClipPlan, config: SyntheticConfig) -> tuple[Track, NDArray[np.uint8]]:
    """The movements of a clip and its frames, uint8 [T, size, size, 3]; a pure function of its arguments."""
    rng = np.random.default_rng([config.seed, person.seed, clip.index])
    movements = draw_track(
        person,
        task=config.task,
        positive=clip.label == TASKS[config.task].positive,
        difficulty=DIFFICULTIES[config.difficulty],
        rng=rng,
        num_frames=config.num_frames,
    )
    steps = zip(movements.intensities, movements.pose, movements.translation, strict=True)
    frames = [render(person, au, pose=turn, translation=shift, size=config.size, rng=rng) for au, turn, shift in steps]
    return movements, np.stack(frames)


def _truth_table(movements: Track, fps: int) -> pa.Table:
    num_frames = len(movements.intensities)
    start, end = movements.burst or (0, 0)
    index = np.arange(num_frames)
    columns = {"time_seconds": pa.array(index / fps, pa.float64())}
    columns |= {code: pa.array(movements.intensities[:, i].astype(np.float32)) for i, code in enumerate(RENDERED)}
    columns["burst"] = pa.array((index >= start) & (index < end), pa.bool_())
    return pa.table(columns)


def read_truth(video: str | Path) -> pd.DataFrame:
    """The true intensities of a synthetic video.

    Args:
        video: path of the mp4 file.

    Returns:
        One row per frame: `time_seconds`, the 28 codes of `RENDERED` (0..1, gain and resting face included), `burst`.

    Raises:
        ValueError: when there is no table beside the video, as for any video that is not synthetic.
    """
    path = truth_path(video)
    if not path.exists():
        raise ValueError(f"video={str(video)!r} has no true intensities; {path.name} is not beside it")
    table: pd.DataFrame = pq.read_table(path).to_pandas()
    return table


def finish(config: SyntheticConfig, rows: Iterable[Row], out: str | Path) -> Path:
    """Writes `manifest.parquet`, `subjects.json` and `contact_sheet.png`; the manifest comes last.

    Args:
        config: the configuration.
        rows: what `write_subject` returned for all subjects, in any order.
        out: the folder.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: when `rows` does not hold every planned clip exactly once.
    """
    folder, subjects = prepare(config, out), plan(config)
    ordered = sorted(rows, key=lambda row: str(row["clip_id"]))
    planned = sorted(clip.clip_id for subject in subjects for clip in subject.clips)
    found = [str(row["clip_id"]) for row in ordered]
    if found != planned:
        missing, extra = sorted(set(planned) - set(found)), len(found) - len(set(found) & set(planned))
        raise ValueError(
            f"rows lack {len(missing)} of {len(planned)} clips (first: {missing[:3]}), and {extra} are too many"
        )
    level = DIFFICULTIES[config.difficulty]
    people = {
        s.subject_id: draw_identity(
            s.identity_seed, resting_bias=level.resting_bias, expressivity_spread=level.expressivity_spread
        )
        for s in subjects
    }
    write_json(folder / "subjects.json", {name: _describe(person) for name, person in people.items()})
    shown = [subject.identity_seed for subject in subjects][:: max(1, len(subjects) // _SHEET_ROWS)][:_SHEET_ROWS]
    _write_png(folder / "contact_sheet.png", shown)
    columns = {name: [row[name] for row in ordered] for name in _MANIFEST_SCHEMA.names}
    write_table(folder / "manifest.parquet", pa.table(columns, schema=_MANIFEST_SCHEMA))
    return folder / "manifest.parquet"


def _describe(person: Identity) -> dict[str, Any]:
    return {
        "seed": person.seed,
        "gain": dict(zip(RENDERED, np.round(person.gain, 6).tolist(), strict=True)),
        "bias": dict(zip(RENDERED, np.round(person.bias, 6).tolist(), strict=True)),
    }


def generate(
    config: SyntheticConfig,
    out: str | Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a whole data set, or what is still missing of it.

    Args:
        config: what it consists of.
        out: folder to write; new, empty, or begun with the same configuration.
        workers: processes; with more than one, the caller's main module must be importable.
        progress: called with the number of finished subjects and of all subjects, after each.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: when the folder holds something else, or `workers` is not positive.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} is not allowed; 1 or more is")
    folder, subjects = prepare(config, out), plan(config)
    rows: list[Row] = []
    for done, part in enumerate(_write_all(subjects, folder, config, workers), start=1):
        rows += part
        if progress is not None:
            progress(done, len(subjects))
    return finish(config, rows, folder)


def _write_all(subjects: list[SubjectPlan], folder: Path, config: SyntheticConfig, workers: int) -> Iterator[list[Row]]:
    if workers == 1:
        for subject in subjects:
            yield write_subject(subject, folder, config)
        return
    # Each worker renders on one core: OpenCV's own threads would only compete.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        pending = [pool.submit(write_subject, subject, folder, config) for subject in subjects]
        try:
            for future in as_completed(pending):
                yield future.result()
        finally:
            for future in pending:
                future.cancel()


def _write_png(path: Path, seeds: list[int]) -> None:
    encoded, data = cv2.imencode(".png", contact_sheet(seeds)[..., ::-1])
    if not encoded:
        raise RuntimeError("OpenCV could not encode the contact sheet as PNG")
    write_bytes(path, data.tobytes())
