"""Gets the weights of a backbone into the registry: by open_clip's own downloads, or verifies what the user put there.

In: `NAME` or `NAME/TAG` as open_clip lists them. Out: a registered file, or an error that says why not and how to bring
the file by hand. A file appears under its name only when it is complete and verified.
"""

from __future__ import annotations

import contextlib
import difflib
import http.client
import os
import shlex
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.model import convert_weights_to_fp16
from open_clip.pretrained import download_pretrained_from_url, list_pretrained, list_pretrained_tags_by_model

from clipautt.backbones.embedded import EMBEDDED
from clipautt.backbones.hub import HubError, hub_file
from clipautt.backbones.names import FOLDER, HUB
from clipautt.backbones.open_clip_models import (
    Architecture,
    build_model,
    check_activation,
    find_architecture,
    load_tokenizer,
    refusal,
)
from clipautt.backbones.publications import WEIGHT_FILES, Publication, facts_of_tag, publication
from clipautt.backbones.registry import (
    VARIABLE,
    Record,
    WrongFileError,
    default_tag,
    file_in,
    mismatch,
    model_name,
    read_record,
    remember,
    sha256_of,
    tag_name,
    verify,
    weights_folder,
)
from clipautt.backbones.text_tower import refuse
from clipautt.backbones.weight_files import read_weights
from clipautt.files import link_or_copy, move, scratch, write_text

RECOMMENDED = {
    "ViT-B-32-quickgelu": "the paper's backbone, and that of its published checkpoints; the fastest of these",
    "ViT-B-16-quickgelu": "smaller patches, so finer detail of a face; about 4 times the work per frame",
    "ViT-L-14-quickgelu": "the largest of OpenAI's at 224 pixels; about 18 times the work per frame",
    "ViT-B-32": "trained on public data (LAION-2B); the work of ViT-B-32-quickgelu",
    "ViT-B-16": "trained on public data (LAION-2B); the work of ViT-B-16-quickgelu",
    "ViT-L-14": "trained on public data (LAION-2B); the work of ViT-L-14-quickgelu",
}
"""Models to begin with, and what each is good for; with `default_tag`."""
REJECTED = ".rejected"
"""Added to the name of a file that was set aside."""
_SILENT_SECONDS = 30.0
"""How long a server may say nothing."""
_LEFTOVER_SECONDS = 24 * 3600.0
_PARAMETER_BYTES = 4


class FetchError(ConnectionError):
    """Weights could not be fetched; the message says why, and how to bring the file by hand."""


@dataclass(frozen=True)
class Fetched:
    """A registered file of weights."""

    path: Path
    """The file."""
    record: Record
    """What is known of it."""
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""


def find_publication(word: str) -> Publication:
    """What `NAME` or `NAME/TAG` refers to.

    Raises:
        ValueError: for a name or tag that open_clip does not know, a model that cannot be a backbone, weights of
            another activation, and names that need no fetching; the message says what to write instead.
    """
    if word == EMBEDDED:
        raise ValueError(f"{EMBEDDED!r} comes with the package: there is nothing to fetch")
    if word.startswith((HUB, FOLDER)):
        raise ValueError(f"{word!r} is not fetched by name: give it as backbone={word}")
    name, tag = _name_and_tag(word)
    arch = find_architecture(name)
    reason = refusal(arch.config)
    if reason:
        refuse(name, reason)
    facts, found = facts_of_tag(name, tag), publication(name, tag)
    if facts:
        check_activation(arch, facts, weights=tag)
    if found is None:
        raise ValueError(_unknown_tag(name, tag, asked="/" in word))
    return found


def _name_and_tag(word: str) -> tuple[str, str]:
    models = {name.lower(): name for name in open_clip.list_models()}
    whole = model_name(word)
    if whole in models.values():
        return whole, default_tag(whole)
    name, _, tag = word.rpartition("/")
    if model_name(name) in models.values():
        return model_name(name), tag_name(tag)
    stem = model_name(name or word)
    near = [models[one] for one in difflib.get_close_matches(stem.lower(), models, n=3)]
    hint = f"; similar names are {', '.join(near)}" if near else "; `clipautt backbone list` names some"
    raise ValueError(f"open_clip has no model {stem!r}{hint}")


def _unknown_tag(name: str, tag: str, *, asked: bool) -> str:
    tags = list_pretrained_tags_by_model(name)
    if not tags:
        return f"no weights are published for {name}; `clipautt backbone list all` lists what is"
    if not asked:
        return f"{name} has no usual weights: choose {', '.join(f'{name}/{one}' for one in tags)}"
    near = difflib.get_close_matches(tag, tags, n=3)
    words = ", ".join(f"{name}/{one}" for one in near or tags)
    return f"{name} has no tag {tag!r}; {'similar ones are' if near else 'allowed:'} {words}"


def recommended() -> tuple[tuple[Publication, str], ...]:
    """The models to begin with, and what each is good for."""
    return tuple((find_publication(name), about) for name, about in RECOMMENDED.items())


def every_publication() -> tuple[Publication, ...]:
    """Everything that can be fetched, in open_clip's order."""
    found = []
    for name, tag in list_pretrained():
        with contextlib.suppress(ValueError):  # no backbone, or listed under the model with the other activation, too
            found.append(find_publication(f"{name}/{tag}"))
    return tuple(found)


def about_bytes(published: Publication) -> int | None:
    """About how large the file is, from the shapes of the model's tensors; None where that does not tell.

    OpenAI's files hold half precision where their model computes in it, other ones float32. Nothing is allocated.
    """
    try:
        with torch.device("meta"):
            model = build_model(find_architecture(published.name))
    except Exception:  # some of timm's models cannot be built without memory
        return None
    if published.tag == "openai":
        convert_weights_to_fp16(model)
        return int(sum(value.numel() * value.element_size() for value in model.state_dict().values()))
    return int(sum(value.numel() for value in model.state_dict().values())) * _PARAMETER_BYTES


def fetch(published: Publication) -> Fetched:
    """Make sure that the registry has a file, verified; a network is used only if it is not there.

    Raises:
        FetchError: if it is not there and cannot be downloaded, or the download is not the published file.
        ValueError: if it is there and has changed, or is broken, or the folder cannot be written.
    """
    folder = _made(published.folder)
    _remove_leftovers(folder)
    notes: list[str] = []
    path = file_in(folder)
    if path is not None:
        try:
            return Fetched(path, _verified_here(path, published), _more(published))
        except WrongFileError as error:
            aside = path.with_name(path.name + REJECTED)
            os.replace(path, aside)
            notes.append(f"{error}; it was set aside as {aside}")
    try:
        path = _downloaded(published, folder)
    except FetchError as error:
        raise FetchError("; ".join([*notes, str(error)]) + f"\n{by_hand(published)}") from error
    record = verify(path, published="")
    assert record is not None
    return Fetched(path, record, (*notes, *_more(published)))


def _verified_here(path: Path, published: Publication) -> Record:
    record = verify(path, published=published.sha256, again=True)
    if record is not None:
        return record
    try:
        read_weights(path)  # a file that nobody published a hash of is at least complete
    except ValueError as error:
        raise ValueError(
            f"{error}\nIf it is broken, remove it ({shlex.join(['rm', str(path)])}) and run "
            f"`clipautt backbone fetch {published.word}` again"
        ) from error
    return remember(path, published="")


def _downloaded(published: Publication, folder: Path) -> Path:
    """Download a file and put it into its folder when it has been verified.

    Raises:
        FetchError: with the reason.
    """
    with _reasons(published, folder), scratch(folder) as there:
        path = _from_url(published.url, there) if published.url else _from_repository(published, there)
        sha256 = sha256_of(path)
        if not sha256.startswith(published.sha256):
            raise FetchError(
                f"{published.url} gave another file than the published one, or broke off, and it was removed: "
                f"{mismatch(path, sha256, published.sha256)}"
            )
        if len(published.sha256) < len(sha256):
            _refuse_unreadable(path, published)
        target = folder / path.name
        move(path, target)
    remember(target, published=published.sha256, source=published.url or f"{HUB}{published.repository}/{target.name}")
    return target


def _from_url(url: str, folder: Path) -> Path:
    """open_clip's own download; a file with another hash is left for the caller to look at."""
    try:
        with _impatient_sockets():
            return Path(download_pretrained_from_url(url, cache_dir=str(folder)))
    except RuntimeError:  # open_clip's word for another hash
        return folder / url.rpartition("/")[2]
    except TypeError as error:  # it takes the length from the answer
        raise FetchError(
            f"{url} could not be fetched (the answer has no length, as that of a proxy that asks for a login)"
        ) from error


@contextlib.contextmanager
def _impatient_sockets() -> Iterator[None]:
    """Give new sockets of this process a timeout, as open_clip's download takes none; the last block to end takes it
    away again, so that several may run at once."""
    with _downloads.lock:
        if not _downloads.running:
            _downloads.before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(_SILENT_SECONDS)
        _downloads.running += 1
    try:
        yield
    finally:
        with _downloads.lock:
            _downloads.running -= 1
            if not _downloads.running:
                socket.setdefaulttimeout(_downloads.before)


class _Downloads:
    """The downloads of this process that run now, and the timeout that sockets had before the first of them."""

    def __init__(self) -> None:
        self.lock, self.running = threading.Lock(), 0
        self.before: float | None = None


_downloads = _Downloads()


def _from_repository(published: Publication, folder: Path) -> Path:
    """The hub's own download, which resumes; its cache names a large file by the hash that the hub states."""
    _refuse_without_names(published)
    cached = hub_file(published.repository, published.file)
    path = folder / cached.name
    link_or_copy(cached.resolve(), path)
    stated = cached.resolve().name
    if len(stated) == 64 and sha256_of(path) != stated:
        raise FetchError(
            f"{cached} in the hub's cache is damaged: {mismatch(path, sha256_of(path), stated)}; remove it: "
            f"rm {cached.resolve()} {cached}"
        )
    return path


def _refuse_without_names(published: Publication) -> None:
    """Refuse at once where the hub's name cannot be resolved, as without a network: its client would try for a minute.

    Raises:
        FetchError: if the file is not in the hub's cache either.
    """
    endpoint = huggingface_hub.constants.ENDPOINT
    names = [published.file] if published.file else WEIGHT_FILES
    if _proxy(endpoint) or any(try_to_load_from_cache(published.repository, name) for name in names):
        return
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, None)
    except socket.gaierror as error:
        raise FetchError(f"{published.address} could not be fetched ({_reason(error)})") from error


def _refuse_unreadable(path: Path, published: Publication) -> None:
    try:
        read_weights(path)
    except ValueError as error:
        reason = str(error).partition(f"{path} ")[2] or str(error)
        raise FetchError(f"{published.address} gave a file that {reason}; it was removed") from error


@contextlib.contextmanager
def _reasons(published: Publication, folder: Path) -> Iterator[None]:
    """Turn what can go wrong during a download into a line.

    Raises:
        FetchError: with that line.
    """
    source = published.address
    try:
        yield
    except FetchError:
        raise
    except urllib.error.HTTPError as error:
        raise FetchError(f"the server answers {error.code} ({error.reason}) to {source}{_proxy(source)}") from error
    except HubError as error:
        raise FetchError(f"{source} could not be fetched ({error}){_proxy(source)}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise FetchError(f"{source} could not be fetched ({_reason(error)}){_proxy(source)}") from error
    except OSError as error:
        raise FetchError(
            f"{folder} could not take the file ({error.strerror or error}); {VARIABLE}=FOLDER in the environment names "
            "another place"
        ) from error


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return "its name could not be resolved: no network, or no DNS"
    if isinstance(cause, TimeoutError):
        return f"no answer within {_SILENT_SECONDS:g} s"
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).strip().splitlines()[0]


def _proxy(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    used = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")
    return f", through the proxy that {parts.scheme}_proxy names" if used else ""


def _made(folder: Path) -> Path:
    """The folder, made if it is missing; the registry is marked as nothing to commit or to send along."""
    root = weights_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}); {VARIABLE}=FOLDER in the environment names another place"
        ) from error
    if not (root / ".gitignore").exists():
        with contextlib.suppress(OSError):  # another user's registry
            write_text(root / ".gitignore", "*\n")
    return folder


def _remove_leftovers(folder: Path) -> None:
    """Remove what downloads left that were killed a day ago or longer."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _more(published: Publication) -> tuple[str, ...]:
    """What else the backbone needs, if it is not here."""
    arch: Architecture = find_architecture(published.name)
    try:
        load_tokenizer(arch)
    except ValueError as error:
        return (str(error),)
    return ()


def by_hand(published: Publication) -> str:
    """How to bring a file to a machine without a network, as lines."""
    size = about_bytes(published)
    lines = {
        "file": published.file_name + (f", about {size / 1e6:.0f} MB" if size else ""),
        "from": published.address,
        "sha256": published.hash_text,
        "into": str(published.folder),
    }
    return "\n".join(
        [
            "By hand: download this file on a machine with internet and put it into this folder, then run",
            f"`clipautt backbone fetch {published.word}` again, which then needs no network:",
            *(f"  {key.ljust(6)}  {text}" for key, text in lines.items()),
        ]
    )


def described(published: Publication) -> tuple[Path | None, str]:
    """The registered file, not read, and its state in words: how far it has been verified."""
    try:
        path = file_in(published.folder)
        record = read_record(published.folder)
    except ValueError as error:
        return None, str(error)
    if path is None:
        return None, "not here"
    if record is None or record.file != path.name:
        return path, "here, not yet verified"
    return path, "here, verified" if record.published else "here, hash recorded"


def registered_publications() -> Sequence[Publication]:
    """What the registry has, in the order of its folders."""
    found = []
    for folder in sorted(weights_folder().glob("*/*")):
        with contextlib.suppress(ValueError):  # a folder of something else
            published = find_publication(f"{folder.parent.name}/{folder.name}")
            if published.folder == folder and any(folder.iterdir()):
                found.append(published)
    return found
