"""What is stored of people: found by owner and id, kept in a small cache, erasable without a trace.

In: who asks, and the id of a subject. Out: its `Personalization`, what is known of it as plain values, or a
`RefusedError`. Below the folder of a server's run:

    OWNER/MODEL/SUBJECT.safetensors   personalization, with the features of the clips behind it (`stored`)
    OWNER/.clips/SUBJECT/NAME         videos that are kept because that was asked; the names are the server's own
    .writing/DIGEST/                  files that are being written, of a subject that only its digest names
    .locks/.NN.lock, .locks/NN.erased a lock for each 256th of all subjects, and how many of them were erased

Owners, models and ids are escaped, so that none leads out of its folder or begins with a dot. Two owners share nothing:
the same id is two people. The folder given as `prompts` belongs to `clipautt adapt`; only the scope `admin` sees it,
and nothing is written there. Calls wait for locks of other processes, so they belong into a thread.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from clipautt.adaptation.personalization import Personalization, read_personalization
from clipautt.adaptation.source import Source
from clipautt.files import link_or_copy, locked, move, sync_folder, write_bytes, write_text
from clipautt.subjects import SUFFIX, checked_subject, subject_file
from clipautt.tables import nfc
from ray_jobs.serve.model.stored import (
    Stored,
    check_checkpoint,
    clips_in,
    described,
    read_stored,
    refusing,
    write_stored,
)
from ray_jobs.serve.refusals import RefusedError
from ray_jobs.serve.web.keys import Who

_CACHED = 64
_MOST_SUBJECTS = 10_000
_WAIT_SECONDS = 20.0
_RETRY_SECONDS = 5
_Stamp = tuple[int, int, int]


def escaped(name: str) -> str:
    """A name as part of a path: other names give other parts, and none is empty, has a slash or begins with a dot."""
    if not name:
        raise ValueError("the name of an owner or a model is empty")
    return subject_file(name).removesuffix(SUFFIX)


class SubjectStore:
    """The subjects of a server.

    Args:
        folder: where they are stored, of this server's run.
        prompts: served model → folder of the subjects that `clipautt adapt` wrote; None for none.
        cached: how many personalizations are kept in memory.
    """

    def __init__(self, folder: Path, prompts: Mapping[str, Path | None], *, cached: int = _CACHED) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.prompts = dict(prompts)
        self._cached = cached
        self._cache: OrderedDict[Path, tuple[_Stamp, Personalization]] = OrderedDict()
        self._guard = threading.Lock()

    def personalization(self, who: Who, subject_id: str, model: str, source: Source) -> Personalization:
        """What a subject's videos are predicted with.

        Raises:
            RefusedError: `unknown_subject`, `unknown_model`, `wrong_field` for an id that is none, `other_checkpoint`
                for a file that does not belong to this source, or is damaged.
        """
        subject = self.checked(subject_id)
        self.check_model(model)
        files, _ = self._files(who, subject)
        if model not in files:
            there = f"; there is something for {', '.join(files)}" if files else ""
            raise RefusedError("unknown_subject", f"nothing is stored for subject {subject!r} and {model!r}{there}")
        return self._read(files[model], subject, model, source)

    def ids(self, who: Who) -> list[str]:
        """Ids of the subjects that this caller may name, sorted."""
        folders = [self._folder(who, model) for model in self.prompts]
        if who.scope == "admin":
            folders += [folder for folder in self.prompts.values() if folder is not None]
        return sorted({unquote(path.stem) for folder in folders for path in folder.glob(f"[!.]*{SUFFIX}")})

    def describe(self, who: Who, subject_id: str, checkpoints: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What is stored of a subject, as `web.schemas.Subject` in plain values.

        Args:
            who: who asks.
            subject_id: whose.
            checkpoints: model → fingerprint of the one that is served; what belongs to another one says so.

        Raises:
            RefusedError: `unknown_subject`, `wrong_field`, or `other_checkpoint` for a damaged file.
        """
        subject = self.checked(subject_id)
        files, made_by = self._files(who, subject)
        if not files:
            raise RefusedError("unknown_subject", f"nothing is stored for subject {subject!r}")
        models = {}
        for model, path in files.items():
            with refusing(subject, model):
                models[model] = described(path, (checkpoints or {}).get(model))
        videos = len(self._videos(who, subject)) if made_by == "server" else 0
        return {"subject_id": subject, "models": models, "kept_clips": videos, "made_by": made_by}

    def erase(self, who: Who, subject_id: str) -> list[str]:
        """Erase everything of a subject: of its owner, for the scope `admin` also the files of `clipautt adapt`.

        Whatever was begun for it and is not finished writes nothing any more, see `ticket`. Other processes forget it
        with `forget`.

        Returns:
            What was erased, in words; empty if there was nothing.

        Raises:
            RefusedError: `wrong_field` for an id that is none; `subject_busy` as `changing`.
        """
        subject = self.checked(subject_id)
        with self._waiting(who, subject):
            counter = self._erasures(who, subject)
            write_text(counter, str(_number_in(counter) + 1))
            erased = list(self._erase_own(who, subject))
            _remove_tree(self._writing(who, subject))
        if who.scope == "admin":
            for model, path in self._adapted(subject).items():
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
                erased.append(f"prompts of model {model} that `clipautt adapt` wrote")
        self.forget(who, subject)
        return erased

    def _erase_own(self, who: Who, subject: str) -> Iterator[str]:
        for folder in sorted(self._owner(who).glob("[!.]*")):  # also of models that are not served any more
            path = folder / subject_file(subject)
            if path.is_file():
                number = _number_of_clips(path)
                path.unlink()
                sync_folder(folder)
                yield f"prompts and resting face of model {unquote(folder.name)}"
                if number:
                    yield f"features of {number} clip{'s' * (number != 1)} of model {unquote(folder.name)}"
        videos = self._videos(who, subject)
        _remove_tree(self._kept(who, subject))
        if videos:
            yield f"{len(videos)} kept clip{'s' * (len(videos) != 1)}"

    def forget(self, who: Who, subject_id: str) -> None:
        """Drop what is in memory of a subject, after another process has erased it."""
        folders = [self._folder(who, model) for model in self.prompts] + list(self.prompts.values())
        name = subject_file(nfc(subject_id))
        with self._guard:
            for path in [path for path in self._cache if path.name == name and path.parent in folders]:
                del self._cache[path]

    def drop_stale(self) -> int:
        """Drop what is in memory of files that are gone or were replaced; returns how many those were."""
        with self._guard:
            stale = [path for path, (stamp, _) in self._cache.items() if _stamp(path) != stamp]
            for path in stale:
                del self._cache[path]
        return len(stale)

    def sweep(self) -> None:
        """Remove what killed processes left half written. For the start of a server, before anything is written."""
        shutil.rmtree(self.folder / ".writing", ignore_errors=True)

    def ticket(self, who: Who, subject_id: str) -> int:
        """A number to take before work on a subject begins: `changing` refuses it once the subject was erased."""
        return _number_in(self._erasures(who, self.checked(subject_id)))

    @contextmanager
    def changing(self, who: Who, subject_id: str, *, ticket: int | None = None) -> Iterator[Change]:
        """Wait until nobody else changes a subject, and change it during the block.

        Args:
            who: its owner.
            subject_id: whose.
            ticket: from `ticket`; None for work that begins now.

        Raises:
            RefusedError: `unknown_subject` if it was erased since the ticket was taken, `subject_busy` if others change
                it for longer than 20 s, `wrong_field` for an id that is none.
        """
        subject = self.checked(subject_id)
        ticket = self.ticket(who, subject) if ticket is None else ticket
        with self._waiting(who, subject):
            if _number_in(self._erasures(who, subject)) != ticket:
                raise RefusedError("unknown_subject", f"subject {subject!r} was erased meanwhile; nothing is stored")
            yield Change(self, who, subject)

    @contextmanager
    def _waiting(self, who: Who, subject: str) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._lock(who, subject), timeout_seconds=_WAIT_SECONDS))
            except TimeoutError as error:
                said = f"subject {subject!r} is being changed by other requests"
                raise RefusedError("subject_busy", said, retry_seconds=_RETRY_SECONDS) from error
            yield

    @staticmethod
    def checked(subject_id: str) -> str:
        """The id in the spelling of manifests.

        Raises:
            RefusedError: `wrong_field` for an id that is none, or too long.
        """
        try:
            return checked_subject(subject_id, setting="subject_id")
        except ValueError as error:
            raise RefusedError("wrong_field", str(error)) from error

    def check_model(self, model: str) -> None:
        """Refuse a model that is not served.

        Raises:
            RefusedError: `unknown_model`.
        """
        if model not in self.prompts:
            raise RefusedError("unknown_model", f"model={model!r}; served: {', '.join(self.prompts)}")

    def _read(self, path: Path, subject: str, model: str, source: Source) -> Personalization:
        """From memory where the file is as it was."""
        stamp = _stamp(path)
        with self._guard:
            found = self._cache.get(path)
            if found and found[0] == stamp:
                self._cache.move_to_end(path)
                return found[1]
        with refusing(subject, model):
            checkpoint, made = read_personalization(path)
            check_checkpoint(checkpoint, subject, model, source)
        with self._guard:
            if stamp is not None and _stamp(path) == stamp:  # else it was erased meanwhile, and is not to be remembered
                self._cache[path] = stamp, made
                self._cache.move_to_end(path)
                while len(self._cache) > self._cached:
                    self._cache.popitem(last=False)
        return made

    def _files(self, who: Who, subject: str) -> tuple[dict[str, Path], str]:
        """Served model → file of a subject, and who made them; those of `clipautt adapt` where the owner has none."""
        own = self._own(who, subject)
        if own or who.scope != "admin":
            return own, "server"
        return self._adapted(subject), "adapt"

    def _own(self, who: Who, subject: str) -> dict[str, Path]:
        paths = {model: self._folder(who, model) / subject_file(subject) for model in self.prompts}
        return {model: path for model, path in paths.items() if path.is_file()}

    def _adapted(self, subject: str) -> dict[str, Path]:
        paths = {model: folder / subject_file(subject) for model, folder in self.prompts.items() if folder is not None}
        return {model: path for model, path in paths.items() if path.is_file()}

    def _owner(self, who: Who) -> Path:
        return self.folder / escaped(who.owner)

    def _folder(self, who: Who, model: str) -> Path:
        return self._owner(who) / escaped(model)

    def _kept(self, who: Who, subject: str) -> Path:
        """Folder of a subject's kept videos."""
        return self._owner(who) / ".clips" / escaped(subject)

    def _videos(self, who: Who, subject: str) -> list[Path]:
        return sorted(self._kept(who, subject).glob("[!.]*"))

    def _digest(self, who: Who, subject: str) -> str:
        return hashlib.sha256(f"{escaped(who.owner)}/{escaped(subject)}".encode()).hexdigest()

    def _writing(self, who: Who, subject: str) -> Path:
        return self.folder / ".writing" / self._digest(who, subject)[:32]

    def _lock(self, who: Who, subject: str) -> Path:
        """Shared by a 256th of all subjects, so that it tells of none of them."""
        return self.folder / ".locks" / self._digest(who, subject)[:2]

    def _erasures(self, who: Who, subject: str) -> Path:
        return self._lock(who, subject).with_suffix(".erased")


@dataclass(frozen=True)
class Change:
    """A subject that nobody else changes meanwhile."""

    store: SubjectStore
    who: Who
    subject: str

    def read(self, model: str) -> Stored | None:
        """The owner's file of a model; None if there is none.

        Raises:
            RefusedError: `other_checkpoint` for a damaged file.
        """
        path = self.store._own(self.who, self.subject).get(model)
        if path is None:
            return None
        with refusing(self.subject, model):
            return read_stored(path)

    def made_by_adapt(self, model: str) -> bool:
        """Whether a file of `clipautt adapt` is what this caller's videos are predicted with."""
        files, made_by = self.store._files(self.who, self.subject)
        return made_by == "adapt" and model in files

    def write(self, model: str, stored: Stored) -> None:
        """Replace the owner's file of a model; a reader sees the old one or the new one."""
        folder, name = self.store._folder(self.who, model), subject_file(self.subject)
        if not (folder / name).exists() and sum(1 for _ in folder.glob(f"[!.]*{SUFFIX}")) >= _MOST_SUBJECTS:
            raise RefusedError(
                "over_limit", f"{_MOST_SUBJECTS:,} subjects are stored, and no more are allowed; DELETE some"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._writing() as scratch:
            write_stored(stored, scratch / name)
            move(scratch / name, folder / name)

    def keep(self, video: Path | npt.NDArray[np.uint8]) -> str:
        """Keep a copy of a video, a file or its bytes; returns its name."""
        folder, name = self.store._kept(self.who, self.subject), uuid4().hex
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._writing() as scratch:
            if isinstance(video, Path):
                link_or_copy(video, scratch / name)
            else:
                write_bytes(scratch / name, video.tobytes())
            move(scratch / name, folder / name)
        return name

    def kept(self) -> dict[str, Path]:
        """Name → path of the kept videos."""
        return {path.name: path for path in self.store._videos(self.who, self.subject)}

    def drop_unused(self, *, but: Collection[str] = ()) -> None:
        """Remove the kept videos, but these, on which no file of the subject rests, of whatever model."""
        used: set[str] = set()
        for folder in self.store._owner(self.who).glob("[!.]*"):
            path = folder / subject_file(self.subject)
            try:
                used |= {one["video"] for one in clips_in(path)}
            except FileNotFoundError:
                continue
            except ValueError:  # damaged: the videos are what it can be made from again
                return
        for name, path in self.kept().items():
            if name not in used and name not in but:
                path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        scratch = self.store._writing(self.who, self.subject)
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _number_of_clips(path: Path) -> int:
    try:
        return len(clips_in(path))
    except (ValueError, OSError):  # damaged, which is no reason to keep it
        return 0


def _remove_tree(folder: Path) -> None:
    """Remove a folder for good, if it is there; what cannot be removed is an error."""
    if folder.exists():
        shutil.rmtree(folder)
        sync_folder(folder.parent)


def _stamp(path: Path) -> _Stamp | None:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _number_in(path: Path) -> int:
    return int(path.read_text()) if path.is_file() else 0
