"""Which modules a process has, asked from inside it. Imported by decoding processes: it needs nothing heavy itself."""

from __future__ import annotations

import sys
from typing import Any

from clipautt.clips import Clip
from clipautt.video.decoding import Sampling, stream_clip


def loaded_while_decoding(clip: Clip, **how: Any) -> list[str]:
    """The top-level modules that the decoding process has once it has decoded a clip; see `work_on_clip`."""
    for _ in stream_clip(clip, Sampling(), **how):
        pass
    return sorted({name.partition(".")[0] for name in sys.modules})
