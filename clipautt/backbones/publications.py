"""What is published under a pretrained tag of an open_clip model: the file, where it is, its hash, what belongs to it.

In: names of a model and a tag. Out: a `Publication`, or the tag's facts, from open_clip's own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from clipautt.backbones.registry import default_tag, entry, published_hash

Facts = Mapping[str, Any]
"""What is known about weights: `mean`, `std`, `interpolation`, `resize_mode` and, where it is known, `quick_gelu`."""
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Names under which repositories publish weights, in order of preference."""
USUAL_NAMES = f"{WEIGHT_FILES[0]} or {WEIGHT_FILES[2]}"
"""The two that open_clip itself looks for, in words."""
QUICK = "-quickgelu"
"""End of the names of models whose activation is QuickGELU."""


@dataclass(frozen=True)
class Publication:
    """The file of weights that is published under a tag."""

    name: str
    """Name of the model in open_clip."""
    tag: str
    """Pretrained tag."""
    url: str
    """Address of the file; empty where it is taken from the hub."""
    repository: str
    """Hub repository, `org/repo`; empty where the file has an address of its own."""
    file: str | None
    """Name of the file; None: the repository has it under one of the usual names."""
    sha256: str
    """Published hash of the file, or its first eight digits; empty if open_clip's table states none."""

    @property
    def word(self) -> str:
        """What `clipautt backbone fetch` takes for it."""
        return self.name if self.tag == default_tag(self.name) else f"{self.name}/{self.tag}"

    @property
    def settings(self) -> str:
        """The settings that use it once it is registered."""
        return f"backbone={self.name}" + ("" if self.tag == default_tag(self.name) else f" backbone.weights={self.tag}")

    @property
    def folder(self) -> Path:
        """Its folder in the registry."""
        return entry(self.name, self.tag)

    @property
    def file_name(self) -> str:
        """Name of the file, or the two usual ones, for a message."""
        return self.file or USUAL_NAMES

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return self.url or f"https://huggingface.co/{self.repository}"

    @property
    def hash_text(self) -> str:
        """The published hash in words."""
        if not self.sha256:
            return "open_clip's table states none; recorded when the file is registered, and verified from then on"
        return self.sha256 if len(self.sha256) == 64 else f"begins with {self.sha256}"


def publication(name: str, tag: str) -> Publication | None:
    """What is published under a tag of a model; None if open_clip's table does not have it.

    A file whose address states its hash is preferred to the hub's.
    """
    facts: Facts = get_pretrained_cfg(name, tag)
    if not facts:
        return None
    url, (repository, file) = facts["url"], split_repository(facts["hf_hub"])
    sha256 = published_hash(url)
    if url and (sha256 or not repository):
        return Publication(name, tag, url, "", Path(url).name, sha256)
    return Publication(name, tag, "", repository, file, "")


def split_repository(address: str) -> tuple[str, str | None]:
    """`org/repo` or `org/repo/file`, as open_clip writes it."""
    parts = address.strip("/").split("/")
    return "/".join(parts[:2]), "/".join(parts[2:]) or None


def facts_of_tag(name: str, tag: str) -> Facts | None:
    """Configuration of the model's tag, or of the same tag of the model with the other activation, which is then
    refused by name."""
    facts: Facts = get_pretrained_cfg(name, tag) or get_pretrained_cfg(name.removesuffix(QUICK), tag)
    return {"quick_gelu": False, **facts} if facts else None


def all_tags(name: str) -> dict[str, Facts]:
    """The facts of every tag of a model, those of the other activation included."""
    names = (name.removesuffix(QUICK), name)
    return {tag: facts_of_tag(model, tag) or {} for model in names for tag in list_pretrained_tags_by_model(model)}
