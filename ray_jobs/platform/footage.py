"""What a job says of its footage before it works with it: a kind that the backbone has never seen.

In: the clips of a manifest. Out: sentences, and the `Footage` that a checkpoint records.
"""

from __future__ import annotations

from clipautt.backbones.loading import BackboneConfig, facts_of
from clipautt.footage import Footage, is_rendered_clip, other_footage
from clipautt.manifest import Manifest


def training_footage(manifest: Manifest, backbone: BackboneConfig) -> Footage:
    """What the training clips show; prints a warning if the backbone has never seen footage of this kind."""
    clips = manifest.of_split("source_train")
    rendered = [is_rendered_clip(clip) for clip in clips]
    warn(other_footage({f"the backbone {backbone.name!r}": facts_of(backbone).footage}, rendered))
    return Footage.of(rendered, (clip.dataset for clip in clips))


def warn(sentence: str | None) -> None:
    """Print a warning, if there is one."""
    if sentence:
        print(f"warning: {sentence}")
