"""Files of hub repositories, from the hub's cache or the network, by open_clip's own download.

In: a repository and the name of a file. Out: its path in the cache, or an error that says how else to get it.
"""

from __future__ import annotations

from pathlib import Path

from open_clip.pretrained import download_pretrained_from_hf

from clipautt.backbones.names import FOLDER
from clipautt.backbones.publications import USUAL_NAMES

CONFIG_FILE = "open_clip_config.json"
FOREIGN = (
    "a folder or repository without it, such as one in the format of transformers, is not an open_clip model: "
    "give backbone.name and backbone.weights of an open_clip model instead"
)
NO_WAIT = "HF_HUB_OFFLINE=1 saves the wait for a network"
_REASON_LETTERS = 200


class HubError(ValueError):
    """A file is not in the cache and could not be fetched; the message is the reason, in one line."""


def hub_file(repository: str, file: str | None) -> Path:
    """A file of a repository, from the cache or the network.

    Args:
        repository: `org/repo`.
        file: None for the weights under one of their usual names.

    Raises:
        HubError: with the reason only.
    """
    try:
        return Path(download_pretrained_from_hf(repository, filename=file))
    except Exception as error:  # the hub's client raises many types, for a missing file as for a missing network
        raise HubError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The first cause of an error of the hub's client in one line; what is raised last only says that it failed."""
    first = error.__context__ or error
    while first.__cause__ is not None:
        first = first.__cause__
    lines = str(first).strip().splitlines() or [type(first).__name__]
    return lines[0].strip()[:_REASON_LETTERS]


def from_hub(repository: str, file: str | None, setting: str, *, give: str | None = None) -> Path:
    """As `hub_file`, for a setting.

    Args:
        repository: `org/repo`.
        file: None for the weights under one of their usual names.
        setting: what asked for it, for the message.
        give: the setting that takes the file where there is no network.

    Raises:
        ValueError: if it cannot be had; the message says how to provide it.
    """
    try:
        return hub_file(repository, file)
    except HubError as error:
        other = f"{FOREIGN}; or " if file == CONFIG_FILE else ""
        raise ValueError(
            f"{setting}: {file or USUAL_NAMES} of the hub repository {repository} is not in the cache and could not be "
            f"fetched ({error}); {other}download it from https://huggingface.co/{repository} on a machine with "
            f"internet and give {give or f'all of its files as backbone.name={FOLDER}FOLDER'}, "
            f"or copy that machine's cache and set HF_HOME to it. {NO_WAIT}"
        ) from error
