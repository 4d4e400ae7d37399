"""An adaptation run as values: what the actors compute, and what only the driver knows.

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
from clipautt.backbones.loading import BackboneConfig
from clipautt.clips import Clip
from clipautt.evaluation.prompt_changes import FACTS_FILE
from clipautt.evaluation.results import Cohort
from clipautt.features.clip_features import FeatureSpec
from clipautt.manifest import Manifest
from clipautt.prediction.cautions import Code
from clipautt.settings import settings
from clipautt.subjects import subject_file
from ray_jobs.platform.cluster import ClusterConfig


@settings
class WorkConfig:
    """How subjects are spread over actors; nothing here changes a result by more than rounding."""

    actors: PositiveInt | None = None
    """Number of actors; null: as many as fit on the GPUs, or one per core."""
    clips_per_task: PositiveInt = 128
    """Small subjects are combined into tasks of about this many clips, or fewer if actors would have no work."""
    seconds_per_video: PositiveFloat = 120.0
    """Time limit of a task in seconds, per video, method and cohort; a task over the limit is stopped and tried
    again."""
    exact_sample: PositiveInt = 3
    """Number of subjects on which approximations are compared with the exact method."""


@dataclass(frozen=True)
class AdaptJob:
    """What the actors of a run compute; plain values without labels."""

    backbone: BackboneConfig
    """The backbone, for its text tower and its fingerprint."""
    checkpoint: str
    """Run folder of a training, or a checkpoint folder."""
    methods: tuple[AdaptConfig, ...]
    """The methods, one row of the table each; the first is the run's own, whose adapted state is saved."""
    folder: str
    """Folder of this run."""
    store: str
    """Folder of the feature store."""
    features: FeatureSpec
    """Which of the store's features are read."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """How adaptation is computed."""
    explain: bool = False
    """Whether to write what adaptation changed for every subject."""
    aus: str | None = None
    """Folder with other tools' tables of action units, for the explanation."""

    def __post_init__(self) -> None:
        check_methods(self.methods, explain=self.explain)

    def prompts(self, subject_id: str) -> Path:
        """File of a subject's adapted state; it belongs to the rows in the subject's result file."""
        return Path(self.folder) / "prompts" / subject_file(subject_id)

    def fresh_prompts(self, subject_id: str) -> Path:
        """Where a new state is kept until its rows are written, so that a lost attempt changes nothing."""
        return Path(self.folder) / "prompts" / ".fresh" / subject_file(subject_id)

    def explanation(self, subject_id: str) -> Path:
        """Folder of a subject's explanation: what adaptation changed."""
        return Path(self.folder) / "explain" / Path(subject_file(subject_id)).stem

    def explained(self, subject_id: str) -> list[str]:
        """Clips that a subject's explanation covers; none if it is missing or was made without this `aus`."""
        file = self.explanation(subject_id) / FACTS_FILE
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        fits = self.aus is None or facts.get("aus") == self.aus
        return facts.get("clip_ids", []) if fits else []


@dataclass(frozen=True)
class AdaptRun:
    """An adaptation run as the driver sees it."""

    job: AdaptJob
    """What the actors compute."""
    manifest: Manifest
    """The manifest, which names the classes."""
    clips: tuple[Clip, ...]
    """The clips to predict, with labels where known."""
    cohorts: tuple[Cohort, ...] = ()
    """The cohorts to evaluate."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The cluster, and the share of a GPU per actor."""
    work: WorkConfig = field(default_factory=WorkConfig)
    """How subjects are spread over actors."""
    seed: int = 0
    """Random seed of the cohorts."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Clip → why it has no features; its rows give this reason."""
    lost: int = 0
    """Number of clips without features for the fault of a worker or its node."""
    avoid: frozenset[str] = frozenset()
    """Ids of nodes that cannot see weights or store."""
    cautions: Mapping[str, Mapping[Code, str]] = field(default_factory=dict)
    """Clip → what speaks against its rows."""
    other_faces: Mapping[str, int] = field(default_factory=dict)
    """Clip → faces beside the subject's, where there are any."""
    warning: str | None = None
    """What is said of all clips together; None if there is nothing to warn of."""

    @property
    def results(self) -> Path:
        """Folder of the result files, one per subject."""
        return Path(self.job.folder) / "subjects"


def check_methods(methods: Sequence[AdaptConfig], *, explain: bool) -> None:
    """Refuse methods that cannot be run together, or cannot be explained.

    Raises:
        ValueError: for two methods with the same name, or for explaining a method that moves no prompts.
    """
    own = methods[0].method
    if explain and not isinstance(own, PromptMethod):
        raise ValueError(f"explain=true with method {own.name!r}, which moves no AU prompts; set explain=false")
    names = [method.name for method in methods]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"two methods have the same name in the table: {', '.join(duplicates)}; omit one from compare")
