"""Clips without a manifest: what is meant by the videos, folders, patterns and tables that somebody names.

    find_inputs(["interview.mp4"])                     one video
    find_inputs(["study"])                             every video below a folder, study/SUBJECT/CONDITION/CLIP.mp4
    find_inputs(["study/*/pain/*.mp4"])                a pattern
    find_inputs(["clips.csv"])                         a table with the column `source`, or a manifest
    find_inputs(["study"], names="{subject}_{condition}")   who and what is in the names: study/p07_stress.mp4

In: words of a command line. Out: `Inputs`: clips whose ids are their paths below the folder that holds them all, and
further columns for the table of results.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipautt.clips import Clip
from clipautt.datasets import files
from clipautt.files import refuse_uri
from clipautt.manifest import read_clips
from clipautt.tables import nfc

TABLES = frozenset({".csv", ".tsv", ".parquet", ".txt", ".xlsx", ".xls", ".ods"})
"""Suffixes of tables of clips."""
SUBJECT, CONDITION = "subject", "condition"
_PATTERN = re.compile(r"[*?\[]")
_FIELD = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Inputs:
    """The clips that are meant."""

    clips: tuple[Clip, ...]
    """In the order of their ids, which are unique; `subject_id` is empty where nobody says who it is."""
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Clip id → further column → text, such as `condition`."""
    one: bool = False
    """Whether a single video or folder of frames was named."""
    notes: tuple[str, ...] = ()
    """What a person should know of them, a sentence each."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the further columns, in the order in which they occur."""
        return tuple(dict.fromkeys(name for facts in self.facts.values() for name in facts))


def find_inputs(words: Sequence[str], *, names: str | None = None) -> Inputs:
    """Find the clips that are meant.

    Args:
        words: paths of videos, of folders of frames, of folders with videos at any depth and of tables; patterns with
            `*`, `?` and `**`.
        names: how a clip's path below the common folder is made up, as `{subject}_{condition}` or
            `{condition}/{subject}/{trial}`; each name is a column. By default the first folder is the subject, and any
            further folders are the condition.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder or a pattern gives no clip.
        ValueError: for a URI, a table that cannot be read or beside other words, or if `names` fits no clip.
    """
    if not words:
        raise ValueError(
            "no video is given; name videos, folders, patterns such as 'videos/*.mp4', or a table of clips"
        )
    for word in words:
        refuse_uri(word, "videos")
    tables = [word for word in words if Path(word).suffix.lower() in TABLES and os.path.isfile(word)]
    if tables:
        if len(words) > 1:
            raise ValueError(f"{tables[0]} is a table of clips; give it alone, without {len(words) - 1} other paths")
        return _from_table(Path(tables[0]), names)
    found = _Found()
    for word in words:
        found.add(word)
    return _named(found, names)


@dataclass
class _Found:
    """Videos and folders of frames, and the folders from which their ids are counted."""

    sources: dict[str, str] = field(default_factory=dict)
    """Absolute path → path as it is shown."""
    bases: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    one: bool = True

    def add(self, word: str) -> None:
        """Add what a word names."""
        given = os.path.expanduser(word)
        if os.path.isdir(given):
            self._folder(word, given)
        elif os.path.lexists(given):
            self._source(given)
            self.bases.append(os.path.dirname(os.path.abspath(given)))
        elif _PATTERN.search(given):
            matches = sorted(glob.glob(given, recursive=True))
            if not matches:
                raise FileNotFoundError(f"{word}: no file matches this pattern")
            self.one = False
            for match in matches:
                self._match(match)
        else:
            try:
                os.lstat(given)  # a name that is too long, or a folder that may not be entered, says so itself
            except FileNotFoundError:
                raise FileNotFoundError(f"{word}: no such file or folder") from None

    def _match(self, match: str) -> None:
        """Of what a pattern matches, folders without clips and files that are no videos are passed over."""
        if os.path.isdir(match):
            tree = files.walk(match, dataset="predict")
            if tree.places or _holds_pictures(match):
                self._folder(match, match)
        elif os.path.splitext(match)[1].lower() in files.VIDEOS:
            self.add(match)
        else:
            self.notes.append(f"{match} is not a video and is left out")

    def _folder(self, word: str, given: str) -> None:
        tree = files.walk(given, dataset="predict")
        lost = [path for path in tree.broken.values() if files.clip_name(path) != path]
        if not tree.places and not lost:
            if not _holds_pictures(given):
                raise FileNotFoundError(f"{word}: no video and no folder of pictures below this folder")
            self._source(given)
            self.bases.append(os.path.dirname(os.path.abspath(given)))
            return
        self.one = False
        self.bases.append(str(tree.root))
        for path in (*(place.path for place in tree.places), *lost):
            self._source(os.path.join(given, path))
        self.notes += [*tree.notes, *(problem.text for problem in tree.problems)]
        if _holds_pictures(given):
            self.notes.append(f"pictures right in {word} are left out; those in its folders are clips")

    def _source(self, path: str) -> None:
        absolute = os.path.abspath(path)
        if absolute in self.sources:
            self.notes.append(f"{path} is named twice and counts once")
        self.sources.setdefault(absolute, path)


def _holds_pictures(folder: str) -> bool:
    return any(files.is_picture(name) for name in os.listdir(folder))


def _named(found: _Found, names: str | None) -> Inputs:
    """The clips of the sources, each with its id, its subject and its further columns."""
    base = os.path.commonpath(found.bases)
    paths = {source: nfc(os.path.relpath(source, base)).replace(os.sep, "/") for source in found.sources}
    without = {source: files.clip_name(path) for source, path in paths.items()}
    twice = {name for name, count in Counter(without.values()).items() if count > 1}
    ids = {source: paths[source] if name in twice else name for source, name in without.items()}
    one = found.one and len(ids) == 1
    same: dict[str, list[str]] = {}
    for source in sorted(ids, key=ids.__getitem__):
        same.setdefault(os.path.realpath(source), []).append(ids[source])
    found.notes += [f"{' and '.join(several)} are the same file" for several in same.values() if len(several) > 1]
    facts, notes = _facts_in_names(sorted(without.values()), None if one and not names else names or "")
    clips = [
        Clip(clip_id, facts[without[source]].get(SUBJECT, ""), found.sources[source], "target")
        for source, clip_id in sorted(ids.items(), key=lambda item: item[1])
    ]
    kept = {
        ids[source]: {key: text for key, text in facts[name].items() if key != SUBJECT}
        for source, name in without.items()
    }
    return Inputs(tuple(clips), kept if any(kept.values()) else {}, one, (*found.notes, *notes))


def _facts_in_names(paths: Sequence[str], names: str | None) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Path → what it says; and a note on those that `names` does not fit. None says nothing, "" looks at folders."""
    if names is None:
        return {path: {} for path in paths}, []
    if not names:
        return {path: dict(_of_folders(path)) for path in paths}, []
    pattern = _compiled(names)
    matches = {path: pattern.fullmatch(path) for path in paths}
    facts = {path: {} if match is None else match.groupdict() for path, match in matches.items()}
    missed = [path for path, match in matches.items() if match is None]
    if len(missed) == len(paths):
        raise ValueError(f"names={names} fits none of {len(paths)} clips; the first is {paths[0]!r}")
    every = [name for name in pattern.groupindex]
    filled = {path: {name: of_path.get(name, "") for name in every} for path, of_path in facts.items()}
    notes = [f"names={names} does not fit {len(missed)} of {len(paths)} clips, as {path!r}" for path in missed[:1]]
    return filled, notes


def _of_folders(path: str) -> Iterator[tuple[str, str]]:
    folders = path.split("/")[:-1]
    if folders:
        yield SUBJECT, folders[0]
    if len(folders) > 1:
        yield CONDITION, "/".join(folders[1:])


def _compiled(names: str) -> re.Pattern[str]:
    """A regular expression with a group for each `{name}`; `{}` stands for text that is not kept."""
    parts = _FIELD.split(names)
    fields = parts[1::2]
    wrong = [one for one in fields if one and not one.isidentifier()]
    twice = [one for one, count in Counter(filter(None, fields)).items() if count > 1]
    if not any(fields) or wrong or twice or re.search(r"[{}]", "".join(parts[::2])):
        raise ValueError(
            f"names={names}: write each column once in braces, as {{subject}}_{{condition}} or "
            "{condition}/{subject}; {} stands for anything else"
        )
    pieces = [
        re.escape(part) if number % 2 == 0 else f"(?P<{part}>[^/]+?)" if part else "[^/]*?"
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(pieces))


def _from_table(path: Path, names: str | None) -> Inputs:
    clips, facts, notes = read_clips(path)
    if names:
        told, more = _facts_in_names([clip.clip_id for clip in clips], names)
        clips = [replace(clip, subject_id=clip.subject_id or told[clip.clip_id].get(SUBJECT, "")) for clip in clips]
        facts = {clip_id: {k: v for k, v in told[clip_id].items() if k != SUBJECT} | facts[clip_id] for clip_id in told}
        notes = [*notes, *more]
    return Inputs(tuple(clips), facts, False, tuple(notes))
