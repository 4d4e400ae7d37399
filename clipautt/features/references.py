"""What still refers to the features in a store: runs, their checkpoints, and manifests.

In: folder of runs, and manifests. Out: `References`. A row is needed while a manifest that is given, or that a run
names, contains its clip; a folder is needed while a checkpoint was trained on its features. If that cannot be
determined, everything is needed, and the reason is noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipautt.backbones.loading import BackboneConfig
from clipautt.features.clip_features import FeatureSpec, clip_key
from clipautt.files import hidden
from clipautt.manifest import ManifestError, read_manifest
from clipautt.video.augmentation import Augmentation


@dataclass(frozen=True)
class References:
    """Which features are needed."""

    fingerprints: frozenset[str] | None
    """Folders that are needed; None if unknown, in which case all are kept."""
    clip_keys: frozenset[str] | None
    """Keys of the clips that are needed; None if unknown, in which case all rows are kept."""
    absent_sources: frozenset[str] = frozenset()
    """Absolute paths that manifests name but that do not exist at present; their rows are kept."""
    recipes: frozenset[tuple[str, float | None, str]] = frozenset()
    """Backbone, frames per second and face detector of runs without a checkpoint, and of sweeps over augmentation."""
    notes: tuple[str, ...] = ()
    """Why something is unknown, one sentence each."""


def find_references(
    runs: str | Path,
    *,
    manifests: Iterable[str | Path] = (),
    classes: tuple[str, ...] | None = None,
    fingerprints: Iterable[str] = (),
) -> References:
    """What the runs below a folder refer to.

    Args:
        runs: folder of runs; `checkpoint.json` names a fingerprint, `config.yaml` a manifest and perhaps a checkpoint
            elsewhere. Relative paths are relative to the parent folder of `runs`.
        manifests: further manifests whose clips are needed.
        classes: class names in these manifests; None: as recorded in the files.
        fingerprints: further folders that are needed.

    Raises:
        FileNotFoundError, ManifestError: if one of `manifests` is missing or invalid.
    """
    notes: list[str] = []
    base = Path(runs).absolute().parent
    configs, rows_known = _configs(Path(runs), notes)
    used, all_there = _checkpoints_used(configs, base, notes)
    trained, folders_known = _checkpoints({Path(runs), *used}, notes)
    folders_known = folders_known and all_there
    if not trained and not tuple(fingerprints):
        notes.append(f"no checkpoint below {runs} and no keep=[…]: all folders are kept")
        folders_known = False
    clips = [clip for path in manifests for clip in read_manifest(path, classes=classes).clips]
    known = bool(tuple(manifests))
    for path, (named_by, named) in _manifests(configs, base).items():
        try:
            clips += read_manifest(path, classes=named).clips
            known = True
        except (FileNotFoundError, ManifestError) as error:
            reason = "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            notes.append(f"manifest {path}, which {named_by} names, {reason}: all rows are kept")
            rows_known = False
    if not known:
        notes.append(f"no run below {runs} names a manifest, and there is no manifests=[…]: all rows are kept")
    return References(
        fingerprints=frozenset({*trained, *fingerprints}) if folders_known else None,
        clip_keys=frozenset(map(clip_key, clips)) if rows_known and known else None,
        absent_sources=frozenset(os.path.abspath(c.source) for c in clips if not os.path.exists(c.source)),
        recipes=frozenset(_recipes(configs)),
        notes=tuple(notes),
    )


def _walk(runs: Path, name: str) -> list[Path]:
    found = (Path(folder) / name for folder, _, files in os.walk(runs) if name in files)
    return sorted(path for path in found if not hidden(path, below=runs))


def _checkpoints_used(
    configs: Mapping[Path, Mapping[str, Any]], base: Path, notes: list[str]
) -> tuple[set[Path], bool]:
    """Folders of the checkpoints that settings of runs name, and whether all of them exist."""
    found, complete = set(), True
    for path, settings in configs.items():
        if not isinstance(settings.get("checkpoint"), str):
            continue
        folder = base / Path(settings["checkpoint"]).expanduser()
        if _walk(folder, "checkpoint.json"):
            found.add(folder)
        else:
            notes.append(f"{path} names the checkpoint {folder}, which is gone: all folders are kept")
            complete = False
    return found, complete


def _checkpoints(folders: Iterable[Path], notes: list[str]) -> tuple[set[str], bool]:
    """Fingerprints of the features that checkpoints were trained on, and whether all could be read."""
    found, complete = set(), True
    for path in sorted({path for folder in folders for path in _walk(folder, "checkpoint.json")}):
        try:
            found |= _trained_on(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{path} cannot be read ({type(error).__name__}: {error}): all folders are kept")
            complete = False
    return found, complete


def _trained_on(facts: Mapping[str, Any]) -> set[str]:
    """Fingerprints of the features, and of the augmented ones, that a checkpoint was trained on."""
    spec, training = FeatureSpec.from_json(facts["features"]), facts.get("training") or {}
    specs = [spec]
    if training.get("features") == "augmented":
        augmentation = Augmentation(**training["augmentation"])
        specs += spec.passes(augmentation, passes=training["augmented_passes"], seed=training["seed"])
    return {one.fingerprint for one in specs}


def _configs(runs: Path, notes: list[str]) -> tuple[dict[Path, Mapping[str, Any]], bool]:
    """The settings of every run, by file, and whether all could be read."""
    found: dict[Path, Mapping[str, Any]] = {}
    complete = True
    for path in _walk(runs, "config.yaml"):
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            notes.append(f"{path} cannot be read ({' '.join(str(error).split())}): all rows are kept")
            complete = False
            continue
        if isinstance(settings, dict):
            found[path] = settings
    return found, complete


def _manifests(
    configs: Mapping[Path, Mapping[str, Any]], base: Path
) -> dict[Path, tuple[Path, tuple[str, ...] | None]]:
    """Manifest → the settings file that names it, and the classes given there, if any."""
    named: dict[Path, tuple[Path, tuple[str, ...] | None]] = {}
    for path, settings in configs.items():
        if isinstance(settings.get("manifest"), str):
            classes = tuple(settings.get("classes") or ()) or None
            named.setdefault(base / Path(settings["manifest"]).expanduser(), (path, classes))
    return named


def _recipes(configs: Mapping[Path, Mapping[str, Any]]) -> Iterator[tuple[str, float | None, str]]:
    """The `References.recipes` of runs; their settings do not tell the backbone's fingerprint."""
    for path, settings in configs.items():
        parts = [settings.get(name) for name in ("backbone", "sampling", "faces")]
        unfinished = not _walk(path.parent, "checkpoint.json") or _searches_augmentation(settings)
        if all(isinstance(part, dict) for part in parts) and unfinished:
            backbone, sampling, faces = (dict(part or {}) for part in parts)
            name = BackboneConfig(str(backbone.get("name"))).name  # absolute, as in the store
            yield name, sampling.get("frames_per_second"), str(faces.get("detector"))


def _searches_augmentation(settings: Mapping[str, Any]) -> bool:
    """Whether a run is a sweep on augmented features; its checkpoints do not name those of trials to come."""
    if not settings.get("space"):
        return False
    training = settings.get("train")
    fixed = isinstance(training, dict) and training.get("features") == "augmented"
    return fixed or "augment" in str(settings["space"])
