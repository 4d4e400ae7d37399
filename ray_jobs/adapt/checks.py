"""What an adaptation run refuses before it begins: settings that cannot work, and earlier results that do not fit."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from clipautt.adaptation.driver import check_baseline
from clipautt.adaptation.method import AdaptConfig, check_needs
from clipautt.backbones.loading import BackboneConfig, facts_of
from clipautt.clips import Clip
from clipautt.evaluation.results import predicted, read_rows
from clipautt.features.store import ClipFacts
from clipautt.files import write_json, write_table
from clipautt.footage import is_rendered_clip, other_footage
from clipautt.manifest import SPLITS, Manifest, read_manifest, write_manifest
from clipautt.model.checkpoint import (
    Checkpoint,
    CheckpointSpec,
    find_checkpoint,
    footage_seen,
    is_checkpoint,
    load_checkpoint,
)
from clipautt.prediction.cautions import Code, Unloaded, cautions
from ray_jobs.adapt.plan import changed_clips, result_file
from ray_jobs.adapt.run import AdaptRun

_SHOWN = 12


def clips_of_splits(manifest: Manifest, splits: Sequence[str]) -> list[Clip]:
    """The clips to predict.

    Raises:
        ValueError: for an unknown split, or if these splits have no clips.
    """
    odd = [split for split in splits if split not in SPLITS]
    if odd:
        raise ValueError(f"splits={odd[0]!r}; allowed: {', '.join(SPLITS)}")
    clips = [clip for clip in manifest.clips if clip.split in splits]
    if not clips:
        present = ", ".join(sorted({clip.split for clip in manifest.clips}))
        raise ValueError(f"splits=[{','.join(splits)}]: the manifest has no such clips, only {present}")
    return clips


def rows_that_can_be_made(
    methods: Sequence[AdaptConfig], own: Checkpoint, checkpoint: str | Path
) -> tuple[AdaptConfig, ...]:
    """The methods that this checkpoint can serve; what is omitted is printed with its reason.

    Raises:
        ValueError: if it cannot serve the run's own method, which is the first.
    """
    check_needs(own.spec, methods[0])
    single = is_checkpoint(checkpoint)
    kept = list(methods[:1])
    for config in methods[1:]:
        try:
            check_needs(own.spec, config)
            if single:
                check_baseline(own.spec, config)
        except ValueError as error:
            way_out = "; give the run folder of the training for other baselines" if single else ""
            print(f"no row {config.name!r}: {error}{way_out}")
        else:
            kept.append(config)
    return tuple(kept)


def load_checkpoints(methods: Sequence[AdaptConfig], checkpoint: str | Path) -> dict[str, Checkpoint]:
    """Subject baseline → checkpoint, for these methods.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if one was trained with another baseline, or on different features from the first.
    """
    loaded: dict[str, Checkpoint] = {}
    for method in methods:
        baseline = method.subject_baseline
        loaded[baseline] = loaded.get(baseline) or load_checkpoint(find_checkpoint(checkpoint, baseline))
        check_baseline(loaded[baseline].spec, method)
        loaded[methods[0].subject_baseline].check_features(loaded[baseline].spec.features)
    return loaded


def check_same_checkpoints(file: Path, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse to resume a run with other weights; for a new run, write the fingerprints to `file`.

    Raises:
        ValueError: naming the fingerprints before and now.
    """
    now = {baseline: one.fingerprint for baseline, one in sorted(checkpoints.items())}
    if not file.is_file():
        write_json(file, now)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"  subject baseline {baseline!r}: {before.get(baseline, 'none')} → {now.get(baseline, 'none')}"
        for baseline in sorted({*before, *now})
        if before.get(baseline) != now.get(baseline)
    ]
    if lines:
        raise ValueError(
            f"the run {file.parent} has results of checkpoints that have changed since:\n"
            + "\n".join(lines)
            + "\nChoose another name (name=…), or restore the earlier checkpoints."
        )


def check_earlier_clips(folder: Path, manifest: Manifest, clips: Sequence[Clip]) -> None:
    """Refuse to resume a run if clips with results are gone or changed; else record the clips as they are now.

    Raises:
        ValueError: naming these clips.
    """
    file, sources = folder / "manifest.parquet", folder / "sources.parquet"
    files = _files(clips)
    if file.is_file():
        before = read_manifest(file, classes=manifest.classes).clips
        changed = changed_clips(before, {clip.clip_id: clip for clip in clips})
        changed += _replaced_files(folder, clips, sources, files)
        if changed:
            more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
            raise ValueError(
                f"the run {folder} has results of clips that have changed since:\n"
                + "\n".join(f"  {line}" for line in [*changed[:_SHOWN], *more])
                + "\nA run takes new clips, but not changed ones: choose another name (name=…), or remove that folder."
            )
        if len(clips) > len(before):
            print(f"new clips since this run was last started: {len(clips) - len(before)}")
    write_table(sources, files)
    write_manifest(clips, file, classes=manifest.classes)


def footage_warning(clips: Sequence[Clip], spec: CheckpointSpec, backbone: BackboneConfig) -> str | None:
    """A sentence on the clips whose kind of footage the model has never seen; None if there are none."""
    return other_footage(footage_seen(spec, backbone.name, facts_of(backbone)), map(is_rendered_clip, clips))


def cautions_of(run: AdaptRun, known: Mapping[str, ClipFacts]) -> dict[str, dict[Code, str]]:
    """Clip id → what speaks against its rows, for clips that have features."""
    own = run.job.methods[0]
    checkpoint = load_checkpoint(find_checkpoint(run.job.checkpoint, own.subject_baseline))
    seen = footage_seen(checkpoint.spec, run.job.backbone.name, facts_of(run.job.backbone))
    model = Unloaded(checkpoint, own.window or checkpoint.spec.window, seen)
    centred = own.protocol != "per_video"
    return {
        clip.clip_id: cautions(model, known[clip.clip_id], video=clip.source, face=clip.face, centred=centred)
        for clip in run.clips
        if clip.clip_id in known
    }


def _files(clips: Sequence[Clip]) -> pd.DataFrame:
    """Columns `clip_id, source, size, changed_ns`; −1 for a file that is missing, and size 0 for a folder."""
    rows = []
    for clip in clips:
        try:
            facts = os.stat(clip.source)
        except OSError:
            rows.append((clip.clip_id, os.path.abspath(clip.source), -1, -1))
        else:
            size = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size
            rows.append((clip.clip_id, os.path.abspath(clip.source), size, facts.st_mtime_ns))
    return pd.DataFrame(rows, columns=["clip_id", "source", "size", "changed_ns"])


def _replaced_files(folder: Path, clips: Sequence[Clip], sources: Path, now: pd.DataFrame) -> list[str]:
    """A line for each clip that has a prediction and whose file has been replaced since.

    A moved file has another path and often another time, so only its size is compared.
    """
    if not sources.is_file():
        return []
    both = pd.read_parquet(sources).merge(now, on="clip_id", suffixes=("_before", "_now"))
    both = both[(both["size_before"] >= 0) & (both["size_now"] >= 0)]
    same_place = both["source_before"] == both["source_now"]
    other = (both["size_before"] != both["size_now"]) | (
        same_place & (both["changed_ns_before"] != both["changed_ns_now"])
    )
    suspects = both[other]
    of = {clip.clip_id: clip for clip in clips}
    subjects = {of[clip_id].subject_id for clip_id in suspects["clip_id"]}
    files = [file for subject in subjects if (file := folder / "subjects" / result_file(subject)).is_file()]
    known = set(predicted(read_rows(files))["clip_id"]) if files else set()
    return [
        f"clip {row.clip_id!r}: the file {row.source_now} has been rewritten ({row.size_before} bytes then, "
        f"{row.size_now} now)"
        for row in suspects.itertuples()
        if row.clip_id in known
    ]
