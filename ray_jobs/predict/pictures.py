"""What `clipautt predict` draws of its answers: an overlay and a figure of each, where they are asked for.

In: the settings `overlay` and `figure`, and answers. Out: files. For one video a setting is the file's name; for
several it is a folder, which gets a file per clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from clipautt.clips import Clip
from clipautt.files import refuse_uri
from clipautt.prediction.answers import VideoPrediction
from clipautt.video.reader_process import ReadLimits

_OVERLAY, _FIGURE = ".mp4", ".png"
_FILES = (_OVERLAY, _FIGURE, ".svg", ".pdf")
"""Endings that no folder is expected to have."""


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of answers go."""

    overlay: str | None
    """The setting of this name; None: no overlays."""
    figure: str | None
    """The setting of this name; None: no figures."""
    several: bool = False
    """Whether several videos are predicted, so that both are folders."""

    def check(self, clips: Sequence[Clip]) -> None:
        """Check all names, before anything is decoded.

        Raises:
            ValueError: for a name of another kind, a video that would be overwritten, or two clips of one name.
        """
        for setting, given in (("overlay", self.overlay), ("figure", self.figure)):
            if given is not None:
                self._check(setting, given, clips)

    def _check(self, setting: str, given: str, clips: Sequence[Clip]) -> None:
        from clipautt.evaluation.reports.figures import check_figure  # matplotlib takes a second to import
        from clipautt.prediction.overlay import check_overlay, refuse_source

        refuse_uri(given, setting)
        if self.several and not Path(given).is_dir() and Path(given).suffix.lower() in _FILES:
            raise ValueError(
                f"{setting}={given}: {len(clips)} videos are predicted; give a folder, which gets a file per video"
            )
        folder = next(one for one in Path(given).absolute().parents if one.exists())
        if not folder.is_dir():
            raise ValueError(f"{setting}={given}: {folder} is a file, not a folder; give another name")
        paths = [self._path(given, clip.clip_id, _OVERLAY if setting == "overlay" else _FIGURE) for clip in clips]
        twice = [path for path, count in Counter(paths).items() if count > 1]
        if twice:
            raise ValueError(f"{setting}={given}: two videos would be written to {twice[0]}; predict them one by one")
        for path, clip in zip(paths, clips, strict=True):
            if setting == "overlay":
                check_overlay(path, clip.source, name=setting)
            else:
                check_figure(path, name=setting)
                refuse_source(path, clip.source, name=setting)

    def write(
        self, prediction: VideoPrediction, clip: Clip | None = None, limits: ReadLimits | None = None
    ) -> list[Path]:
        """Draw an answer, as `write_overlay` and `VideoPrediction.plot`.

        Returns:
            The files that were written.
        """
        written = []
        if self.overlay is not None:
            from clipautt.prediction.overlay import write_overlay

            path = self._path(self.overlay, prediction.clip.clip_id, _OVERLAY)
            written.append(write_overlay(prediction, path, clip=clip, limits=limits))
        if self.figure is not None:
            path = self._path(self.figure, prediction.clip.clip_id, _FIGURE)
            prediction.plot(path)
            written.append(path)
        return written

    def _path(self, given: str, clip_id: str, suffix: str) -> Path:
        if not self.several:
            return Path(given)
        inside = not Path(clip_id).is_absolute() and ".." not in Path(clip_id).parts
        return Path(given, f"{clip_id if inside else quote(clip_id, safe='')}{suffix}")
