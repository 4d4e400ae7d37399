"""The manifest of a job.

In: composed settings with `manifest` and the group `dataset`. Out: a `Manifest`, whose file a data set's reader writes
first.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from clipautt.commands import setting
from clipautt.datasets.layout import Reading
from clipautt.files import write_text
from clipautt.manifest import Manifest, absent_sources, is_written_manifest, read_manifest, write_manifest
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.progress import table

_SHOWN_PROBLEMS = 25


def load_manifest(cfg: DictConfig, *, classes: tuple[str, ...] | None = None) -> Manifest:
    """The manifest of a job: the file `manifest`, which is written first if `dataset` names a reader.

    Args:
        cfg: settings with the group `dataset`.
        classes: classes of the checkpoint that is used; other labels are errors.

    Raises:
        FileNotFoundError: if the manifest, or the root of the data set, is missing.
        ValueError: listing everything that is wrong.
    """
    if cfg.dataset is None:
        manifest = read_manifest(cfg.manifest, classes=classes or tuple(cfg.classes) or None)
        for note in manifest.notes:
            print(f"{cfg.manifest}: {note}")
        return manifest
    path = Path(cfg.manifest)
    _check_place(path)
    _write(instantiate(cfg.dataset).read(), path)
    return read_manifest(path, classes=classes)


def check_sources(manifest: Manifest) -> None:
    """Refuse a manifest without clips to train on.

    Raises:
        ValueError: if no clip is `source_train`; the message says what such a manifest is for.
    """
    if not manifest.of_split("source_train"):
        raise ValueError(
            "the manifest has no source_train clips to train on; data of target subjects alone is for `clipautt adapt` "
            "and `clipautt predict`, with the checkpoint of another training"
        )


def print_counts(counts: pd.DataFrame) -> None:
    """Print a table of `Manifest.counts`."""
    table(list(counts.itertuples(index=False, name=None)), list(map(str, counts.columns)))


def print_absent(manifest: Manifest) -> None:
    """Print for which clips there is no video or folder of frames."""
    absent = absent_sources(manifest.clips)
    if absent:
        table(list(absent.items())[:_SHOWN_PROBLEMS], ["clip", "video or folder of frames"])
        print(f"{len(absent)} of {len(manifest)} clips have no video or folder of frames")


def _check_place(path: Path) -> None:
    """Refuse to overwrite anything but a manifest that a reader wrote."""
    if path.suffix != ".parquet":
        raise ValueError(
            f"manifest={path} is where the manifest is written; its name must end with .parquet, as in "
            f"{setting('manifest', str(path.with_suffix('.parquet')))}"
        )
    if path.exists() and not is_written_manifest(path):
        raise FileExistsError(f"manifest={path} would be overwritten, and no reader wrote it; give another path")


def _write(reading: Reading, path: Path) -> None:
    """Write the manifest of what a reader found, and print what it omitted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(reading.clips, path, classes=reading.classes)
    for note in reading.notes:
        print(note)
    for problem in reading.problems[:_SHOWN_PROBLEMS]:
        print(f"omitted: {problem}")
    if reading.problems:
        file = path.with_suffix(".problems.txt")
        write_text(file, "".join(f"{problem}\n" for problem in reading.problems))
        print(f"{len(reading.problems)} problems, all of them in {file}")
    print_counts(reading.manifest.counts(by="split"))
    print(f"manifest: {path}")
