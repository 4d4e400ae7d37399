"""Run folders: `runs/<job>/<name>/` with the results and the settings and versions that made them.

In: a job's name and settings. Out: a `Run` with its folder. A run that is opened again with the same settings resumes;
with other settings it is refused, so that a folder never mixes results of two settings.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from clipautt.files import refuse_uri, write_json, write_text
from ray_jobs.platform.configuration import checkout, flatten, resolved

IGNORED = ("cluster", "limits", "pipeline", "name", "runs")
"""Settings that say where a job runs, what it may cost or what it is called, and cannot change what it computes."""

COMMIT_VARIABLE = "CLIPAUTT_COMMIT"
"""Environment variable with the commit of a submitted job's code."""
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_SHOWN_DIFFERENCES = 12
_PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "ray",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "av",
    "decord",
    "opencv-python-headless",
    "optuna",
    "hydra-core",
)


@dataclass(frozen=True)
class Run:
    """One run of a job, with its folder."""

    job: str
    """Name of the job."""
    name: str
    """Name of the run; unique within its job and root."""
    folder: Path
    """Absolute path of the run's folder, which exists."""
    resumed: bool
    """Whether the folder held this run already, and so may contain finished work."""

    def path(self, *parts: str) -> Path:
        """A path inside the folder; its parent folder exists."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def open_run(
    job: str,
    name: str,
    cfg: Any,
    *,
    root: str | Path = "runs",
    folder: str | Path | None = None,
    ignore: Iterable[str] = IGNORED,
) -> Run:
    """Start a run, or resume the one of this name.

    Args:
        job: Name of the job.
        name: Name of the run: letters, digits and `._+-`.
        cfg: The settings, a `DictConfig` or plain mapping; written to `config.yaml`, resolved.
        root: Folder of all runs.
        folder: Folder of this run; None: `<root>/<job>/<name>`.
        ignore: Dotted keys that, with everything below them, may differ when a run is resumed.

    Returns:
        The run; its folder exists.

    Raises:
        ValueError: The name is not allowed, a setting is missing, or the run exists with other settings.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name={name!r}: expected letters, digits and . _ + -, the first a letter or digit")
    refuse_uri(folder or root, "out" if folder else "runs")
    settings = resolved(cfg)
    folder = (Path(folder) if folder else Path(root) / job / name).expanduser().absolute()
    file = folder / "config.yaml"
    resumed = file.is_file()
    if resumed:
        _refuse_other_settings(folder, yaml.safe_load(file.read_text(encoding="utf-8")) or {}, settings, tuple(ignore))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True))
    _note_versions(folder / "versions.json")
    return Run(job=job, name=name, folder=folder, resumed=resumed)


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], *, ignore: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (value before, value after) for every setting that differs.

    Args:
        before: Plain settings.
        after: Plain settings.
        ignore: Dotted keys to omit, with everything below them.

    Returns:
        The pairs; `...` (Ellipsis) stands for a missing key.
    """
    old, new = flatten(_plain(before)), flatten(_plain(after))
    skipped = tuple(ignore)
    keys = [key for key in dict.fromkeys([*old, *new]) if not any(f"{key}.".startswith(f"{skip}.") for skip in skipped)]
    pairs = {key: (old.get(key, ...), new.get(key, ...)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


@cache
def code_version() -> str:
    """Version of this code, for result rows: `0.1.0`, in a checkout `0.1.0+1a2b3c4`, changed `0.1.0+1a2b3c4.dirty`."""
    return f"{_version()}+{commit()}" if commit() else _version()


@cache
def commit() -> str:
    """The commit of this code, `1a2b3c4`, or `1a2b3c4.dirty` if it was changed since; empty if unknown.

    A submitted job runs without the checkout's `.git`; its commit comes along in the environment.
    """
    here = _git("rev-parse", "--short", "HEAD")
    if not here:
        return os.environ.get(COMMIT_VARIABLE, "")
    return here + (".dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _version() -> str:
    try:
        return metadata.version("clipautt")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        root = checkout()
        found = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE) if root else None
        return found[1] if found else "unknown"


def versions() -> dict[str, Any]:
    """What computed a result: versions of this code, Python, the system, and the packages that can change a number."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    system = f"{platform.system()} {platform.machine()}"
    return {"clipautt": code_version(), "python": platform.python_version(), "system": system, "packages": packages}


def _refuse_other_settings(
    folder: Path, before: dict[str, Any], after: dict[str, Any], ignore: tuple[str, ...]
) -> None:
    changed = differences(before, after, ignore=ignore)
    if changed:
        raise ValueError(
            f"the run {folder} exists with other settings:\n{difference_lines(changed)}\n"
            "Choose another name (name=…), or remove that folder to start over."
        )


def difference_lines(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """What `differences` found, a line each, for a message."""
    lines = [f"  {key}: {_shown(old)} → {_shown(new)}" for key, (old, new) in changed.items()]
    if len(lines) > _SHOWN_DIFFERENCES:
        lines[_SHOWN_DIFFERENCES:] = [f"  and {len(lines) - _SHOWN_DIFFERENCES} more"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "(not set)" if value is ... else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The value as it is read back from the file: tuples as lists, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _note_versions(file: Path) -> None:
    """Write the versions; a resumed run keeps those it began with and adds those it was resumed with."""
    now = versions()
    if not file.is_file():
        write_json(file, now)
        return
    noted = json.loads(file.read_text(encoding="utf-8"))
    later = noted.pop("resumed_with", [])
    if now != noted and now not in later:
        write_json(file, {**noted, "resumed_with": [*later, now]})


def _git(*arguments: str) -> str:
    """Output of a git command in this checkout; empty in an installed wheel or without git."""
    root = checkout()
    if root is None or not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"clipautt: the commit is unknown, because git does not run: {error}", file=sys.stderr)
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
