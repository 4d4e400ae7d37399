"""Finds the jobs without importing them, and reads the words of a command line as settings of a job.

In: the packages of `ray_jobs` that have a module `job`. Out: `Job` records, their overview, Hydra overrides, and a
job's `main`.
"""

from __future__ import annotations

import ast
import gc
import importlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray_jobs
from clipautt.commands import quoted
from clipautt.commands import word as shell_word
from ray_jobs.platform.nearest import nearest
from ray_jobs.platform.word_files import expanded

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141
"""As a shell reports a program that ended because nobody reads its output."""

ORDER = (
    "demo",
    "predict",
    "personalize",
    "faces",
    "manifest",
    "synth",
    "pretrain",
    "backbone",
    "extract",
    "store",
    "train",
    "adapt",
    "import-checkpoint",
    "report",
    "validate-aus",
    "sweep",
    "benchmark",
    "serve",
    "submit",
)
"""Order of the jobs in the overview; others follow by name."""

_SEVERAL = "…"
"""Ends the name of a positional setting that takes all further words."""
_SETTING = re.compile(r"~[\w./@:-]+(=.*)?|[+]{0,2}[A-Za-z_][\w./@:-]*=.*", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """A job as its source describes it."""

    name: str
    """Name on the command line: that of its package, with hyphens."""
    doc: str
    """Docstring of the module `job`."""
    positional: str
    """The settings that words without `=` set, in order, as `POSITIONAL = "subject videos…"` in the module: all further
    words make the list of one that ends with `…`. Empty if there is none."""
    reads_words: bool
    """Whether `main` takes the words of the command line instead of a configuration; `READS_WORDS = True`."""

    @property
    def module(self) -> str:
        """Name of the package in `ray_jobs`, and of the primary configuration."""
        return self.name.replace("-", "_")

    @property
    def purpose(self) -> str:
        """First line of the docstring."""
        return self.doc.strip().partition("\n")[0].rstrip(".")


def jobs() -> dict[str, Job]:
    """Every job by name: each package of `ray_jobs` with a module `job` that has a function `main`."""
    found = {}
    for folder in ray_jobs.__path__:
        for path in sorted(Path(folder).glob("*/job.py")):
            job = _read_job(path)
            if job is not None:
                found[job.name] = job
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: (ranks.get(item[0], len(ORDER)), item[0])))


def find_job(name: str) -> Job:
    """The job of this name.

    Raises:
        ValueError: There is no such job; the message names the nearest.
    """
    known = jobs()
    if name not in known:
        near = nearest(name, known)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"unknown job {name!r}{hint} `clipautt --help` lists the jobs")
    return known[name]


def overview() -> str:
    """What `clipautt --help` prints."""
    known = jobs()
    width = max((len(name) for name in known), default=0)
    lines = [f"  {name.ljust(width)}  {job.purpose}" for name, job in known.items()]
    return "\n".join(
        [
            "clipautt: video emotion recognition from action units, personalized to people it has never seen",
            "",
            "Usage: clipautt <job> key=value …",
            "",
            "Jobs:",
            *lines,
            "",
            "`clipautt <job> --help` shows a job's settings and examples. `clipautt --version` prints the version.",
            "",
            "A choice such as adapt=t3a may be your own YAML file, adapt=mine.yaml: it holds settings that --help",
            "lists as adapt.…, and changes only those. @best.yaml stands for words from a file, which has them under",
            "the job's name: `train: [train.epochs=20, name=x]`; words after it win. Both go with submit too.",
            "",
            "CLIPAUTT_DEBUG=1 in the environment shows where an error came from. RAY_ADDRESS names a cluster to join.",
        ]
    )


def overrides(job: Job, words: Sequence[str]) -> list[str]:
    """The words of a command line as settings; words for the job's positional settings are quoted for Hydra, and those
    of a file take the place of its `@file`.

    Raises:
        ValueError: A word is not a setting, or a file has no words for the job.
    """
    words = expanded(job.name, words)
    named = tuple(word.partition("=")[0] for word in words)
    free = [name for name in job.positional.split() if name.removesuffix(_SEVERAL) not in named]
    settings, several = [], []
    for word in words:
        if not free or (_SETTING.fullmatch(word) and not os.path.exists(word)) or _is_option(word):
            _refuse_other(job, word)
            settings.append(word)
        elif free[0].endswith(_SEVERAL):
            several.append(quoted(word))
        else:
            settings.append(f"{free.pop(0)}={quoted(word)}")
    return [*settings, f"{free[0].removesuffix(_SEVERAL)}=[{','.join(several)}]"] if several else settings


def _is_option(word: str) -> bool:
    """Whether a word looks like `--name`, and no file has that name."""
    return word.startswith("-") and word != "-" and not os.path.exists(word)


def _refuse_other(job: Job, word: str) -> None:
    """Refuse a word that is no setting."""
    if _SETTING.fullmatch(word):
        return
    if word.startswith("-"):
        raise ValueError(f"unknown option {word!r}: settings are written key=value, as in {_as_setting(word)}")
    raise ValueError(f"cannot read {word!r}: settings are written key=value; see `clipautt {job.name} --help`")


def entry_of(job: Job) -> Callable[[Any], int]:
    """The job's `main`; importing it may take seconds.

    Its imports stay until the process ends, so the garbage collector need not search them, neither while they load nor
    at the end. That saves a short job a tenth of its processor time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        entry: Callable[[Any], int] = importlib.import_module(f"ray_jobs.{job.module}.job").main
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
    return entry


def _read_job(path: Path) -> Job | None:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    if not any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
        return None
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return Job(
        name=path.parent.name.replace("_", "-"),
        doc=ast.get_docstring(tree) or "",
        positional=str(constants.get("POSITIONAL", "")),
        reads_words=bool(constants.get("READS_WORDS", False)),
    )


def _as_setting(word: str) -> str:
    name, _, value = word.lstrip("-").partition("=")
    return shell_word(f"{name.replace('-', '_')}={value or '…'}") if value else f"{name.replace('-', '_')}=…"
