"""Get a backbone for real faces: list what there is, fetch it, or be told how to bring it by hand.

    clipautt backbone list [all]
    clipautt backbone fetch NAME[/TAG] …
    clipautt backbone show NAME[/TAG] …

`fetch` downloads the weights where the network allows, verifies their hash and registers them; from then on
backbone=NAME finds them. Where there is no network, it prints the file's name, size, hash and address, and the folder
to put it into; run it again then, and it verifies the file. `show` prints the same and touches nothing. `list` shows
the models to begin with and what is registered, `list all` everything that can be fetched.

NAME is an open_clip model, TAG one of its pretrained tags; without TAG it is OpenAI's, or LAION's for models with GELU.
The registry is ~/.cache/clipautt/weights (XDG_CACHE_HOME is followed), or the folder that CLIPAUTT_WEIGHTS names. The
nodes of a cluster have to see it under the same path: set CLIPAUTT_WEIGHTS to shared storage there.

Example:
    clipautt backbone list
    clipautt backbone fetch ViT-B-32-quickgelu
    clipautt backbone fetch ViT-B-32/datacomp_xl_s13b_b90k
    clipautt extract dataset=biovid root=/data/biovid faces=cascade backbone=ViT-B-32-quickgelu
"""

from __future__ import annotations

from collections.abc import Sequence

from clipautt.backbones.fetching import (
    about_bytes,
    by_hand,
    described,
    every_publication,
    fetch,
    find_publication,
    recommended,
    registered_publications,
)
from clipautt.backbones.publications import Publication
from clipautt.backbones.registry import BY_HAND, read_record, weights_folder
from ray_jobs.platform.nearest import suggestion
from ray_jobs.platform.progress import size_text, table

READS_WORDS = True
"""`main` takes the words of the command line: they are names, and it runs on this machine."""
_ACTIONS = ("list", "fetch", "show")
_WHICH = "which action? `clipautt backbone list`, `fetch NAME` or `show NAME`"


def main(words: Sequence[str]) -> int:
    """Run the job.

    Args:
        words: an action, and for `fetch` and `show` the names of models.

    Raises:
        ValueError: for a word that is not understood.
        ConnectionError: if weights cannot be fetched; the message says how to bring them by hand.
    """
    if not words or words[0] not in _ACTIONS:
        raise ValueError(f"unknown action {words[0]!r}{suggestion(words[0], _ACTIONS)}" if words else _WHICH)
    action, names = words[0], words[1:]
    weights_folder()  # refused here, once, where it is none
    if action == "list":
        return list_backbones(names)
    if not names:
        raise ValueError(f"which backbone? `clipautt backbone {action} NAME`, for instance ViT-B-32-quickgelu")
    for published in [find_publication(name) for name in names]:  # all names are checked before the first download
        _fetch(published) if action == "fetch" else _show(published)
    return 0


def list_backbones(words: Sequence[str]) -> int:
    """Print the models to begin with, and everything registered; after `all`, what can be fetched; returns 0."""
    if list(words) not in ([], ["all"]):
        raise ValueError(f"list {' '.join(words)}: allowed: list, list all")
    if words:
        for published in every_publication():
            print(published.word)
        return 0
    chosen = dict(recommended())
    rows = [_row(one, about) for one, about in chosen.items()]
    rows += [_row(one, "") for one in registered_publications() if one not in chosen]
    table(rows, ("fetch", "size", "published hash", "registry", "good for"))
    print(f"registry: {weights_folder()}")
    print("`embedded`, the default, comes with the package; it has seen rendered faces only")
    print("`clipautt backbone list all` names everything that can be fetched")
    return 0


def _row(published: Publication, about: str) -> tuple[str, str, str, str, str]:
    path, state = described(published)
    derived = about_bytes(published) if path is None else None
    size = size_text(path.stat().st_size) if path else f"about {derived / 1e6:.0f} MB" if derived else "unknown"
    digits = f"sha256 {published.sha256[:8]}…" if published.sha256 else "none"
    return published.word, size, digits, state, about


def _fetch(published: Publication) -> None:
    done = fetch(published)
    known = "as published" if done.record.published else "recorded, since none is published"
    print(f"{published.word}: {done.path}, {size_text(done.record.bytes)}, sha256 {done.record.sha256} ({known})")
    for note in done.notes:
        print(f"note: {note}")
    print(f"use it with {published.settings}", flush=True)


def _show(published: Publication) -> None:
    path, state = described(published)
    print(f"{published.word}: {f'{path}, ' if path else ''}{state}")
    record = read_record(published.folder) if path else None
    if record:
        origin = record.source if record.source == BY_HAND else f"from {record.source}"
        print(f"{size_text(record.bytes)}, sha256 {record.sha256}, {origin}")
        print(f"use it with {published.settings}")
    elif path:
        print(f"`clipautt backbone fetch {published.word}` verifies it")
    else:
        print(by_hand(published))
