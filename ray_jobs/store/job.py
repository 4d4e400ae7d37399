"""Look after a feature store: list what it holds, verify it, take over moved data, remove what is not needed.

`ls` prints a line for every fingerprint: one backbone with its weights, preprocessing, crop and sampling. `verify`
reads everything and exits with 1 if something is wrong. `gc` lists what it would remove, and removes it with
apply=true: leftovers of interrupted writes, rows that a later one replaces, rows of clips that no manifest of a run
has, and folders of features that no checkpoint was trained on. Damaged files are only renamed. Nothing written in the
last hour is removed, and if it cannot be known what is needed, everything stays. `rebase` is for data that was moved or
copied: it finds the clips of manifests=[…] under their earlier path or time, by the content of their files, and with
apply=true adds their features under the present one, so that nothing is encoded again.

Example:
    clipautt store ls
    clipautt store verify store=/data/features
    clipautt store gc 'manifests=[data/ward7.parquet]' 'keep=[3f0c5d2a9b1e4d77]' apply=true
    clipautt store rebase 'manifests=[data/ward7.parquet]' apply=true
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from clipautt.features.maintenance import (
    KINDS,
    FolderInventory,
    Waste,
    collect,
    inventory,
    store_folders,
    verify,
)
from clipautt.features.rebase import Rebase, rebase
from clipautt.features.references import find_references
from clipautt.manifest import read_manifest
from ray_jobs.platform.progress import Progress, size_text, table

POSITIONAL = "action"
_ACTIONS = ("ls", "verify", "rebase", "gc")
_SHOWN = 25
_EXAMPLES = 3
_MEANING = {
    "leftover": "files of interrupted writes",
    "damaged": "damaged files, renamed to _damaged-…",
    "replaced": "rows that a later row replaces",
    "unreferred": "rows of clips that no manifest has",
    "folder": "folders that no checkpoint needs",
}


def list_store(root: Path) -> int:
    """Print what a store holds; returns 0."""
    folders = inventory(root)
    table(
        [_line(folder) for folder in folders],
        ["fingerprint", "backbone", "px", "per s", "faces", "d", "ok", "failed", "frames", "size", "files", "written"],
    )
    for folder in folders:
        for note in _notes(folder):
            print(f"{folder.folder.name}: {note}")
    return 0


def verify_store(root: Path) -> int:
    """Print what is wrong with a store; returns 1 if something is, else 0."""
    findings = verify(root)
    problems = [str(finding) for finding in findings if finding.problem]
    _print_some([f"note: {finding}" for finding in findings if not finding.problem], "notes")
    _print_some(problems, "problems")
    print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} in {root}")
    return 1 if problems else 0


def collect_garbage(root: Path, cfg: DictConfig) -> int:
    """Print what is not needed, and remove it if `cfg.apply` is set; returns 0."""
    keep, manifests = list(cfg.keep or ()), list(cfg.manifests or ())
    _check_keep(root, keep)
    references = find_references(
        cfg.runs, manifests=manifests, classes=tuple(cfg.classes or ()) or None, fingerprints=keep
    )
    collection = collect(root, references, apply=cfg.apply)
    for note in collection.notes:
        print(f"note: {note}")
    if not collection.wastes:
        print(f"nothing to remove in {root}")
        return 0
    _print_some([_waste(waste) for waste in collection.wastes], "")
    table([_sum(kind, collection.wastes) for kind in KINDS if _of(kind, collection.wastes)], ["what", "count", "size"])
    freed = size_text(sum(waste.bytes for waste in collection.wastes if waste.kind != "damaged"))
    print(f"{freed} freed" if cfg.apply else f"{freed} would be freed; nothing was changed: apply=true removes it")
    return 0


def rebase_store(root: Path, cfg: DictConfig) -> int:
    """Print which clips are known under another path or time, and take them over if `cfg.apply` is set; returns 0."""
    if not cfg.manifests:
        raise ValueError("rebase needs the manifests of the data as it is now: manifests=[PATH]")
    classes = tuple(cfg.classes or ()) or None
    clips = [clip for path in cfg.manifests for clip in read_manifest(path, classes=classes).clips]
    with Progress("rebase") as progress:
        results = rebase(root, clips, apply=cfg.apply, on_clip=progress.advance)
    for result in results:
        for line in _rebased(result):
            print(f"{result.folder.name}: {line}")
    total = sum(len(result.by_content) + len(result.by_time) for result in results)
    if not total:
        print(f"nothing to take over in {root}")
    elif cfg.apply:
        print(f"{total} clips taken over; their old rows stay until `clipautt store gc` finds that nothing needs them")
    else:
        print(f"{total} clips would be taken over; nothing was changed: apply=true takes them over")
    return 0


def _rebased(result: Rebase) -> list[str]:
    """What happens in a folder, a line for each kind of clip."""
    if result.trouble:
        return [f"left alone: {result.trouble}"]
    kinds = {
        "known under another path or time, by the content of their files": result.by_content,
        "known under another path, by size and time to the nanosecond, since their content was not recorded": (
            result.by_time
        ),
        "known by name, but made from other content: they are encoded again": result.changed,
        "known by name, but it cannot be verified from what: they are encoded again": result.unknown,
        "known by name, but their files cannot be read now": result.unreadable,
    }
    lines = [f"{len(ids)} clips {what}{_examples(ids)}" for what, ids in kinds.items() if ids]
    return [*([f"{result.present} clips are there already"] if result.present else []), *lines]


def _examples(ids: Sequence[str]) -> str:
    return f" ({', '.join(ids[:_EXAMPLES])}{', …' if len(ids) > _EXAMPLES else ''})"


def _check_keep(root: Path, keep: Sequence[str]) -> None:
    """Refuse a fingerprint that the store does not have: a mistyped one would not keep what it was meant to."""
    there = [folder.name for folder in store_folders(root)]
    for name in keep:
        if name not in there:
            raise ValueError(f"keep={name!r} is not a folder of {root}; there are: {', '.join(there) or 'none'}")


def _line(folder: FolderInventory) -> tuple[object, ...]:
    written = folder.last_written
    rate = "all" if folder.frames_per_second is None else f"{folder.frames_per_second:g}"
    return (
        folder.folder.name,
        folder.backbone or "?",
        folder.frame_size,
        rate if folder.backbone else None,
        folder.detector or "?",
        folder.feature_dim,
        folder.ok,
        sum(folder.failed.values()),
        folder.frames,
        size_text(folder.bytes),
        folder.files,
        None if written is None else datetime.fromtimestamp(written).strftime("%Y-%m-%d %H:%M"),
    )


def _notes(folder: FolderInventory) -> list[str]:
    """What the table does not say about a folder."""
    failed = ", ".join(f"{count} {status}" for status, count in folder.failed.items())
    counted = {
        "damaged files; `clipautt store verify` names them": folder.damaged,
        "damaged files were set aside": folder.set_aside,
        "leftovers of interrupted writes": folder.leftovers,
        "rows that a later row replaces": folder.replaced,
    }
    lacking = [f"without features: {failed}"] if failed else []
    trouble = [folder.trouble] if folder.trouble else []
    augmented = [f"augmented frames to train on: {folder.augmented}"] if folder.augmented else []
    return [*trouble, *augmented, *lacking, *(f"{n} {what}" for what, n in counted.items() if n)]


def _print_some(lines: Sequence[str], what: str) -> None:
    for line in lines[:_SHOWN]:
        print(line)
    if len(lines) > _SHOWN:
        print(f"… and {len(lines) - _SHOWN} more {what}".rstrip())


def _waste(waste: Waste) -> str:
    rows = f", {waste.rows} row{'' if waste.rows == 1 else 's'}" if waste.rows else ""
    return f"{waste.kind}: {waste.path}{rows}, {size_text(waste.bytes)}"


def _of(kind: str, wastes: Sequence[Waste]) -> list[Waste]:
    return [waste for waste in wastes if waste.kind == kind]


def _sum(kind: str, wastes: Sequence[Waste]) -> tuple[str, int, str]:
    mine = _of(kind, wastes)
    return _MEANING[kind], sum(waste.rows or 1 for waste in mine), size_text(sum(waste.bytes for waste in mine))


def main(cfg: DictConfig) -> int:
    """Run the job."""
    if cfg.action not in _ACTIONS:
        raise ValueError(f"action={cfg.action!r}; allowed: {', '.join(_ACTIONS)}")
    root = Path(cfg.store)
    if cfg.action == "gc":
        return collect_garbage(root, cfg)
    if cfg.action == "rebase":
        return rebase_store(root, cfg)
    return list_store(root) if cfg.action == "ls" else verify_store(root)
