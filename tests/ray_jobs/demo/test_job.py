"""The settings of the demo."""

from __future__ import annotations

import numpy as np

from clipautt.metrics import detectable_effect
from ray_jobs.platform.configuration import compose


def test_the_demo_has_the_people_to_detect_its_effect() -> None:
    """Over people with 8 clips each the change of UAR spreads by 24 points; the effect at `hard` is about 20."""
    cfg = compose("demo")
    assert (cfg.difficulty, cfg.dataset.difficulty) == ("hard", "hard")
    values = np.linspace(-1, 1, cfg.dataset.target_subjects)
    assert 10 < detectable_effect(24 * values / values.std(ddof=1)) < 15
    assert cfg.dataset.clips_per_target_subject >= 8


def test_the_full_size_has_every_row_of_the_short_one() -> None:
    short, full = compose("demo"), compose("demo", ["size=full"])
    assert set(short.compare) < set(full.compare) and set(short.baselines) < set(full.baselines)
    assert len(full.cohorts) > len(short.cohorts)
