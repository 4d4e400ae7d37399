"""The settings that name files and folders: found by their explanations, checked before a job begins.

In: a job and the words of its command line. Out: `Place` records, or a one-line `ValueError`.

The explanation of such a setting begins with what it takes, as in `path of the manifest`, `folder of all runs`, `where
the weights go`; that holds for the comments of YAML files and for the docstrings of fields, and a test lists what is
found for every job.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from clipautt.backbones.names import FOLDER, HUB
from clipautt.commands import setting as shell_setting
from clipautt.files import refuse_uri
from ray_jobs.platform import configuration
from ray_jobs.platform.jobs import Job
from ray_jobs.platform.usage import settings

_EXPLAINS_PLACE = re.compile(
    r"(?:(?:run|checkpoint|text)[ -])?(?:path|folder|file)s?\b|where the \w+ (?:is written|go(?:es)?\b)", re.I
)
_RELATIVE = "relative to the root"
"""In the explanation of a place inside another one."""
_BACKBONE = re.compile(r"(?:.*\.)?backbone\.(?:name|weights)")
"""Settings that take a model's name, or a file or folder."""
_WEIGHTS_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors", ".ckpt"}
_REFERENCE = re.compile(r"\$\{[\w.]+\}")


@dataclass(frozen=True)
class Place:
    """A file or folder that a job's settings name."""

    key: str
    """Dotted key of the setting."""
    value: str | list[str]
    """Its value, as it is given or as it is by default."""

    @property
    def paths(self) -> list[str]:
        """The paths in the value; the names of models are none."""
        values = self.value if isinstance(self.value, list) else [self.value]
        return [_model_path(value) for value in values] if _BACKBONE.fullmatch(self.key) else values

    def elsewhere(self, folder: str) -> str:
        """The setting as a shell word, with every relative path put below an absolute folder."""
        values = self.value if isinstance(self.value, list) else [self.value]
        moved = [_below(folder, value, path) for value, path in zip(values, self.paths, strict=True)]
        return shell_setting(self.key, moved if isinstance(self.value, list) else moved[0])


def places(job: Job, words: Sequence[str]) -> list[Place]:
    """The files and folders that the settings of a job name, those left at their defaults among them.

    Raises:
        ValueError: as `configuration.compose`.
    """
    composition = configuration.compose_with_sources(job.module, words)
    raw = configuration.flatten(OmegaConf.to_container(composition.cfg, resolve=False))
    found = []
    for setting in settings(composition):
        written = raw.get(setting.key)
        names_place = _EXPLAINS_PLACE.match(setting.about) and _RELATIVE not in setting.about
        if not (names_place or _BACKBONE.fullmatch(setting.key)) or _REFERENCE.fullmatch(str(written)):
            continue
        if setting.key == "runs" and composition.cfg.get("out"):  # this run has a folder of its own
            continue
        texts = list(_texts(OmegaConf.select(composition.cfg, setting.key)))
        if texts:
            found.append(Place(setting.key, texts if isinstance(written, list) else texts[0]))
    return found


def refuse_uris(job: Job, words: Sequence[str]) -> None:
    """Refuse a URI where a local file or folder is expected: it would be taken for a folder with a strange name.

    Raises:
        ValueError: naming setting and value.
    """
    if not any("://" in word for word in words):  # no default is one
        return
    for place in places(job, words):
        for path in place.paths:
            refuse_uri(path, place.key)


def refuse_relative(job: Job, words: Sequence[str]) -> None:
    """Refuse relative paths of a job that will run in another folder on another machine.

    Raises:
        ValueError: naming all of them, with words that can replace them.
    """
    relative = [place for place in places(job, words) if any(path and not os.path.isabs(path) for path in place.paths)]
    if not relative:
        return
    named = ", ".join(f"{place.key}={_shown(place.value)}" for place in relative)
    advice = " ".join(place.elsewhere("/shared") for place in relative)
    raise ValueError(
        f"{named}: a relative path would lie in a folder that Ray removes with the job; give absolute paths on storage "
        f"that the cluster's machines share, for instance {advice}"
    )


def _texts(value: Any) -> Iterator[str]:
    """The text in a setting's value."""
    if OmegaConf.is_list(value):
        yield from (str(item) for item in value)
    elif value is not None and value != "":
        yield str(value)


def _shown(value: str | list[str]) -> str:
    return f"[{','.join(value)}]" if isinstance(value, list) else value


def _model_path(value: str) -> str:
    """The path in a backbone's name or weights; empty if there is none."""
    if value.startswith(FOLDER):
        return value.removeprefix(FOLDER)
    if value.startswith(HUB):
        return ""
    _, colon, file = value.partition(":")
    path = file if colon and "://" not in value and not os.path.exists(value) else value
    is_path = os.sep in path or Path(path).suffix.lower() in _WEIGHTS_SUFFIXES or os.path.isfile(path)
    return path if is_path else ""


def _below(folder: str, value: str, path: str) -> str:
    """The value with its path below a folder; as it is here if the path exists here."""
    if not path or os.path.isabs(path):
        return value
    there = os.path.abspath(os.path.expanduser(path))
    new = there if os.path.exists(there) else f"{folder}/{os.path.normpath(path).lstrip('./~')}"
    return value.removesuffix(path) + new
