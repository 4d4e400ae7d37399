"""An adaptation run as values: what the actors compute, and what the driver knows beside it.

In: the settings of the job, see `job`. Out: `AdaptJob`, which travels to the actors and holds no label, and `AdaptRun`,
which stays with the driver.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from clipautt.adaptation.method import AdaptConfig, PromptMethod, TuningConfig
from clipautt.adaptation.personalization import subject_file
from clipautt.backbones.loading import BackboneConfig
from clipautt.clips import Clip, Manifest
from clipautt.evaluation.prompt_changes import FACTS_FILE
from clipautt.evaluation.results import Cohort
from clipautt.features.clip_features import FeatureSpec
from clipautt.settings import settings
from ray_jobs.platform.cluster import ClusterConfig


@settings
class WorkConfig:
    """How subjects are spread over actors; nothing here changes a result by more than rounding."""

    actors: PositiveInt | None = None
    """How many actors work at a time; null takes as many as the GPUs have room for, or one per core."""
    clips_per_task: PositiveInt = 128
    """Small subjects are put together until they have this many clips, or fewer if actors would have no work."""
    seconds_per_video: PositiveFloat = 120.0
    """A task that takes longer than this for each of its videos, under each method and cohort, is stopped and tried
    again."""
    exact_sample: PositiveInt = 3
    """How many subjects approximations are compared with the exact method on."""


@dataclass(frozen=True)
class AdaptJob:
    """What the actors of a run compute; plain values, and no label."""

    backbone: BackboneConfig
    """The backbone, for its text tower and its fingerprint."""
    checkpoint: str
    """Run folder of a training, or a checkpoint folder."""
    methods: tuple[AdaptConfig, ...]
    """Rows of the table; the first one is the run's own, whose adapted state is kept."""
    folder: str
    """Run folder."""
    store: str
    """Folder of the feature store."""
    features: FeatureSpec
    """Which features of the store are read."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """How adaptation is computed."""
    explain: bool = False
    """Whether to write what adaptation changed for every subject."""
    openface: str | None = None
    """Folder with OpenFace's CSV files, to explain with."""

    def __post_init__(self) -> None:
        check_methods(self.methods, explain=self.explain)

    def prompts(self, subject_id: str) -> Path:
        """File of a subject's adapted state; it belongs to the rows that are written."""
        return Path(self.folder) / "prompts" / subject_file(subject_id)

    def fresh_prompts(self, subject_id: str) -> Path:
        """Where it is until the rows that belong to it are written, so that an attempt that is lost changes nothing."""
        return Path(self.folder) / "prompts" / ".fresh" / subject_file(subject_id)

    def explanation(self, subject_id: str) -> Path:
        """Folder of what adaptation changed for a subject."""
        return Path(self.folder) / "explain" / Path(subject_file(subject_id)).stem

    def explained(self, subject_id: str) -> list[str]:
        """Clips that a subject's explanation is of; none if there is none, or one without the OpenFace asked for."""
        file = self.explanation(subject_id) / FACTS_FILE
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        fits = self.openface is None or facts.get("openface") == self.openface
        return facts.get("clip_ids", []) if fits else []


@dataclass(frozen=True)
class AdaptRun:
    """An adaptation run as the driver sees it."""

    job: AdaptJob
    """What the actors compute."""
    manifest: Manifest
    """It names the classes."""
    clips: tuple[Clip, ...]
    """The clips to predict, with labels where there are some."""
    cohorts: tuple[Cohort, ...] = ()
    """Cohorts of the evaluation."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Share of a GPU per actor."""
    work: WorkConfig = field(default_factory=WorkConfig)
    """How subjects are spread over actors."""
    seed: int = 0
    """Seed of the cohorts."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Clip → why it has no features; such a clip gets a row that says so."""

    @property
    def results(self) -> Path:
        """Folder of the result files, one per subject."""
        return Path(self.job.folder) / "subjects"


def check_methods(methods: Sequence[AdaptConfig], *, explain: bool) -> None:
    """Refuse what no run can do.

    Raises:
        ValueError: for two methods of one name, or for explaining a method that moves no prompts.
    """
    own = methods[0].method
    if explain and not isinstance(own, PromptMethod):
        raise ValueError(f"explain=true with method {own.name!r}, which moves no AU prompts; take explain=false")
    names = [method.name for method in methods]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(
            f"two settings have the same name in the table: {', '.join(duplicates)}; omit one from compare"
        )
