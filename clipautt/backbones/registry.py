"""The registry of weights: one folder per user, in which a backbone's file is found by its name.

In: the name of an open_clip model and a pretrained tag. Out: the file, verified. Whoever puts a file there, `fetching`
or the user's own hand, it is verified before its first use; `weights.json` beside it says so, and is trusted while size
and time of the file stay the same. Imports no torch.

    ~/.cache/clipautt/weights/ViT-B-32-quickgelu/openai/ViT-B-32.pt
                                                        weights.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from clipautt.backbones.names import SUFFIXES
from clipautt.files import refuse_uri, write_json

VARIABLE = "CLIPAUTT_WEIGHTS"
"""Environment variable that names another folder."""
RECORD_FILE = "weights.json"
BY_HAND = "put there by hand"
_DEFAULT_TAGS = {
    "ViT-B-32": "laion2b_s34b_b79k",
    "ViT-B-16": "laion2b_s34b_b88k",
    "ViT-L-14": "laion2b_s32b_b82k",
    "ViT-H-14": "laion2b_s32b_b79k",
}
"""Models whose usual weights are not OpenAI's, since their activation is GELU."""
_TAG = re.compile(r"[\w-]+", re.ASCII)
_HASH = re.compile(r"[/-]([0-9a-f]{64}|[0-9a-f]{8})(?:/[^/]+|\.[a-z]+)$")
"""Where a published address states the hash of its file: as the folder, or at the end of the name."""
_PIECE = 1 << 20


class WrongFileError(ValueError):
    """A file is not the one that was published under its tag."""


@dataclass(frozen=True)
class Record:
    """What is known of a file of weights that has been verified."""

    file: str
    """Its name."""
    bytes: int
    """Its size."""
    mtime_ns: int
    """Time of its last change, in nanoseconds since 1970."""
    sha256: str
    """Hash of its content, 64 hexadecimal digits."""
    published: str
    """Published hash that it agrees with, or the first digits of it; empty where none is published."""
    source: str
    """Address that it was downloaded from, or `BY_HAND`."""


def weights_folder() -> Path:
    """The registry's folder: `CLIPAUTT_WEIGHTS`, else `clipautt/weights` in the user's cache (`XDG_CACHE_HOME`).

    Raises:
        ValueError: if the variable holds a URI or the path of a file, or there is neither variable nor home folder.
    """
    folder = _folder()
    if folder is None:
        raise ValueError(f"this user has no home folder: set {VARIABLE} to a folder for weights")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{VARIABLE}={folder} is a file; name a folder for weights")
    return folder


def _folder() -> Path | None:
    given = os.environ.get(VARIABLE)
    if given:
        refuse_uri(given, VARIABLE)
        return Path(os.path.abspath(os.path.expanduser(given)))
    cache = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored, says its specification
    folder = Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "clipautt" / "weights"
    return folder if folder.is_absolute() else None


def default_tag(name: str) -> str:
    """The tag whose weights a model gets if none is named; it depends on the name alone, never on what is there."""
    return _DEFAULT_TAGS.get(model_name(name), "openai")


def model_name(name: str) -> str:
    """A model's name as open_clip lists it, which also takes `ViT-B/32`."""
    return name.replace("/", "-")


def tag_name(tag: str) -> str:
    """A tag as open_clip lists it, which also takes capitals and hyphens."""
    return tag.lower().replace("-", "_")


def entry(name: str, tag: str) -> Path:
    """The folder for the weights of a model under a tag."""
    return weights_folder() / model_name(name) / tag_name(tag)


def registered(name: str, tag: str) -> Path | None:
    """The file of a model's weights under a tag, not verified; None where there is none.

    Raises:
        ValueError: if there are several, or the record is broken.
    """
    return file_in(entry(name, tag)) if _TAG.fullmatch(tag) and _folder() else None


def file_in(folder: Path) -> Path | None:
    """The one file of weights in a folder of the registry; None where there is none.

    Raises:
        ValueError: if there are several, or the record is broken.
    """
    if not folder.is_dir():
        return None
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    record = read_record(folder) if len(found) > 1 else None
    chosen = [path for path in found if record is not None and path.name == record.file] or found
    if len(chosen) > 1:
        raise ValueError(
            f"{folder} holds several files of weights: {', '.join(p.name for p in chosen)}; leave one there"
        )
    return chosen[0] if chosen else None


def is_inside(path: Path, name: str, tag: str) -> bool:
    """Whether a file is a model's in the registry: in this process's, or in another one, where it was verified."""
    if path.parent.parts[-2:] != (model_name(name), tag_name(tag)):
        return False
    return path.with_name(RECORD_FILE).is_file() or path.parent == entry(name, tag)


def published_hash(address: str) -> str:
    """The SHA-256 that an address states, or its first eight digits; empty if it states none."""
    found = _HASH.search(address)
    return found[1] if found else ""


def read_record(folder: Path) -> Record | None:
    """What is known of the file in a folder of the registry; None if nothing is.

    Raises:
        ValueError: if the record is broken.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is broken ({error}); remove it, and the weights beside it are verified anew"
        ) from error


def verify(path: Path, *, published: str, again: bool = False) -> Record | None:
    """Verify a file of the registry against the published hash, or else against the one recorded earlier.

    Args:
        path: the file.
        published: published hash or its first digits; empty if there is none.
        again: reads the file even if size and time are those of the record.

    Returns:
        The record; None if no hash is known yet, and `remember` has to make one.

    Raises:
        WrongFileError: if the file is not the published one.
        ValueError: if there is no published hash and the file is not the recorded one.
    """
    known, stat = read_record(path.parent), path.stat()
    if known is None and not published:
        return None
    same = known is not None and (known.file, known.bytes, known.mtime_ns) == (
        path.name,
        stat.st_size,
        stat.st_mtime_ns,
    )
    if known is not None and same and not again and known.sha256.startswith(published):
        return known
    sha256 = sha256_of(path)
    if not sha256.startswith(published):
        raise WrongFileError(f"{path} is not the published file: {mismatch(path, sha256, published)}")
    if known is not None and not published and sha256 != known.sha256:
        raise ValueError(
            f"{path} has changed: its sha256 is {sha256}, and was {known.sha256} when it was registered. Remove the "
            f"file to fetch it again, or {path.with_name(RECORD_FILE)} to take it as it is"
        )
    return _recorded(path, sha256, published, known.source if known is not None else BY_HAND)


def remember(path: Path, *, published: str, source: str = BY_HAND) -> Record:
    """Record the hash of a file that could be read, so that it is verified from now on."""
    return _recorded(path, sha256_of(path), published, source)


def _recorded(path: Path, sha256: str, published: str, source: str) -> Record:
    stat = path.stat()
    record = Record(path.name, stat.st_size, stat.st_mtime_ns, sha256, published, source)
    if read_record(path.parent) != record:
        with contextlib.suppress(OSError):  # a folder that only its owner writes: the file is read again next time
            write_json(path.with_name(RECORD_FILE), asdict(record))
    return record


def mismatch(path: Path, sha256: str, published: str) -> str:
    """How a file differs from the published one, for a message."""
    begins = " begins with" if len(published) < len(sha256) else " is"
    return f"it has {path.stat().st_size} bytes with sha256 {sha256}, and the published one{begins} {published}"


def sha256_of(path: Path) -> str:
    """Hash of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
