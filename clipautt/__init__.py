"""clipautt: video emotion recognition with CLIP and action-unit prompts, personalized at test time.

The method lives here and runs without Ray; the distributed jobs are in `ray_jobs`. What most users need:

    from clipautt import Predictor
    print(Predictor.load("runs/train/demo").predict("face.mp4"))
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipautt.prediction.answers import VideoPrediction
    from clipautt.predictor import Predictor

__all__ = ["Predictor", "VideoPrediction", "__version__"]


def __getattr__(name: str) -> Any:
    """Load on first use, so that importing the package costs nothing."""
    if name == "Predictor":
        from clipautt.predictor import Predictor

        return Predictor
    if name == "VideoPrediction":
        from clipautt.prediction.answers import VideoPrediction

        return VideoPrediction
    if name == "__version__":
        return metadata.version("clipautt")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
