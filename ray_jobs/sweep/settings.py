"""The settings of a sweep that are neither training nor adaptation, with their limits.

In: the top level of the sweep's configuration. Out: a checked `SweepConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from clipautt.evaluation.results import Cohort, make_cohorts
from clipautt.settings import settings
from ray_jobs.platform.nearest import suggestion
from ray_jobs.platform.objects import build
from ray_jobs.sweep.loggers import Logger
from ray_jobs.sweep.stopping import Stopping
from ray_jobs.sweep.studies.samplers import SamplerName
from ray_jobs.sweep.table import figures_known


def _as_number(given: Any) -> Any:
    """A number that the command line keeps as text, as the setting takes text as well."""
    return int(given) if isinstance(given, str) and given.isascii() and given.isdigit() else given


FoldsSetting = Annotated[Annotated[int, Field(ge=2)] | Literal["source_val"], BeforeValidator(_as_number)]


@settings
class SweepConfig:
    """How settings are searched and scored."""

    trials: PositiveInt | None
    """Trials to finish, pruned and failed ones included; a sweep that is started again does the missing ones. Null: 20,
    or the whole grid."""
    concurrent: PositiveInt | None
    """Trials at a time; null: as many as the cluster has room for."""
    folds: FoldsSetting
    """Folds by subject over all source subjects, or `source_val`: the subjects of that split are the one fold."""
    repeats: PositiveInt
    """Trainings of every fold, each with another seed."""
    held_out: Annotated[float, Field(ge=0, lt=1)]
    """Share of the source subjects that no trial sees; the chosen trial is judged by them. 0 holds nobody out."""
    objectives: tuple[str, ...]
    """Figures to optimize."""
    sampler: SamplerName
    """Which of Optuna's samplers chooses the values."""
    stop: Literal["asha"] | None
    """`asha` stops bad trials after some of the folds; null stops none."""
    grace_folds: PositiveInt
    """`asha`: folds that every trial does."""
    reduction: Annotated[int, Field(ge=2)]
    """`asha`: of how many trials one goes on to twice, three times, … as many folds."""
    storage: str | None
    """Where the study is kept."""
    loggers: tuple[Logger, ...]
    """Who is told of every fold of every trial."""
    seed: NonNegativeInt
    """Seed of the folds, of the cohorts' draws and of the values that trials try."""

    @property
    def stopping(self) -> Stopping | None:
        """What stops bad trials."""
        return Stopping(self.grace_folds, self.reduction) if self.stop else None


def make_config(given: Mapping[str, Any]) -> tuple[SweepConfig, tuple[Cohort, ...]]:
    """The settings and the cohorts of a sweep.

    Args:
        given: the resolved configuration of the job.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    names = SweepConfig.__dataclass_fields__
    target = f"{SweepConfig.__module__}.{SweepConfig.__name__}"
    config = cast(SweepConfig, build({"_target_": target, **{name: given[name] for name in names}}, ""))
    cohorts = tuple(make_cohorts(given["cohorts"]))
    if not cohorts:
        raise ValueError("cohorts=[]: give at least one share of positives, such as 'cohorts=[{share: 0.5, draws: 1}]'")
    check_objectives(config, [cohort.name for cohort in cohorts])
    check_stopping(config)
    return config, cohorts


def check_objectives(config: SweepConfig, cohorts: Sequence[str]) -> None:
    """Refuse objectives that cannot be optimized.

    Raises:
        ValueError: naming the objective and what is allowed.
    """
    allowed = figures_known(cohorts)
    for name in config.objectives:
        if name not in allowed:
            raise ValueError(f"objectives={name}: unknown figure{suggestion(name, allowed)}")
    if not config.objectives or len(set(config.objectives)) < len(config.objectives):
        raise ValueError(f"objectives={list(config.objectives)}: give each of one or more figures once")
    if config.stop and len(config.objectives) > 1:
        raise ValueError("stop=asha compares trials by one figure; give one objective, or set stop=null")


def check_stopping(config: SweepConfig) -> None:
    """Refuse to stop trials that have no folds left to omit.

    Raises:
        ValueError: naming what to set.
    """
    folds = config.repeats * (1 if config.folds == "source_val" else config.folds)
    if config.stop and config.grace_folds >= folds:
        raise ValueError(
            f"stop=asha with grace_folds={config.grace_folds}: a trial has {folds} fold{'s' * (folds != 1)}, so no "
            "trial can be stopped early; set more folds or repeats, fewer grace_folds, or stop=null"
        )
