"""CLIP-AUTT: tune the AU prompts to a person, without labels.

In: windows of a subject's clips. Out: tuned prompts, and predictions under them.

Open `method` first: the method as the driver sees it, settings included. `objectives` defines the losses that tuning
minimizes, `tuner` takes the optimizer steps, many problems in one batch.
"""

from clipautt.adaptation.methods.clip_autt.method import ClipAUTT

__all__ = ["ClipAUTT"]
