"""Augmented features: every clip is encoded several times, each time with another random change of its frames.

In: clips, an `ExtractionConfig`, and how much to change. Out: a store per pass; training takes one pass per epoch and
decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipautt.clips import Clip
from clipautt.features.store import FeatureStore
from clipautt.video.augmentation import Augmentation, augmented_passes
from ray_jobs.platform.extraction.extract import ExtractionConfig, extract, refuse_lost, report_failures


def extract_passes(
    clips: Sequence[Clip], extraction: ExtractionConfig, augmentation: Augmentation, *, passes: int, seed: int
) -> list[FeatureStore]:
    """Fill the store with the augmented features of these clips, pass by pass, on the connected Ray.

    Only what is missing is encoded, as by `extract`. Clips that fail in a pass are printed.

    Args:
        clips: clips to train on, without those that are known to fail.
        extraction: as for the features without augmentation.
        augmentation: how much is changed.
        passes: how many times every clip is encoded, 1 or more; epoch e is to take pass e modulo `passes`.
        seed: the training's.

    Returns:
        The store of each pass, see `FeatureSpec.passes`; one store without augmentation if that changes nothing.

    Raises:
        ValueError: for fewer than one pass.
        LostClipsError: if clips failed for the fault of workers or nodes.
        BackboneError, NoNodeError: as `extract`.
    """
    stores = []
    for number, augmented in enumerate(augmented_passes(augmentation, passes, seed=seed), start=1):
        store, summary = extract(clips, extraction, augmented=augmented)
        if summary.failures:
            print(f"without augmented features in pass {number} of {passes}:")
            report_failures(summary)
        refuse_lost(summary)
        stores.append(store)
    return stores
