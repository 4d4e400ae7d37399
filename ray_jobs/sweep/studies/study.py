"""The Optuna study of a sweep, which can be killed at any moment and which several drivers share.

In: a storage, a sampler, and the settings that decide what a trial is. Out: a `SweepStudy`, which gives out trials and
takes what became of them. What a trial measured is written before its state changes: a kill in between leaves an
interrupted trial, which is run again, and never a finished one without its figures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ray_jobs.platform.runs import difference_lines, differences
from ray_jobs.sweep.studies.drivers import REFRESH_SECONDS, Drivers
from ray_jobs.sweep.studies.persistence import persistent
from ray_jobs.sweep.studies.records import Counts, TrialRecord, record_of, repeated
from ray_jobs.sweep.studies.samplers import SeededSampler, quiet
from ray_jobs.sweep.studies.states import (
    DRIVER,
    FACTS,
    LOST,
    REASON,
    RERUN,
    SLOT,
    STATUS,
    Status,
    counted,
    ordinal_of,
    slots,
    status_of,
    unrepeated,
)
from ray_jobs.sweep.studies.storage import close_storage, described, plain_errors

Direction = Literal["maximize", "minimize"]

_SETTINGS = "settings"
_WAY_OUT = "choose another name (name=…) or another storage"
_UNOWNED_SECONDS = 30.0
_FINISHED: tuple[Status, ...] = ("ok", "pruned", "failed")


class SweepStudy:
    """A study, as one of its drivers sees it. `SweepStudy.open` makes one; `close` or `with` ends it.

    Args:
        study: Optuna's study.
        sampler: the study's sampler.
        settings: what was noted with it.
        refresh: seconds between two notes of the driver.
    """

    def __init__(self, study: Study, sampler: SeededSampler, settings: Mapping[str, Any], refresh: float) -> None:
        self.study, self.sampler, self.settings = study, sampler, settings
        self.where = described(_backend(study))
        self.drivers = Drivers(study, refresh=refresh)
        self.sampler.owner = self.drivers.name
        self.lock = threading.RLock()
        self._own: dict[int, Trial] = {}
        self._unowned: dict[int, float] = {}
        self._tended = -math.inf
        self._compared = False

    @classmethod
    def open(
        cls,
        storage: BaseStorage,
        name: str,
        *,
        directions: Sequence[Direction],
        sampler: SeededSampler,
        settings: Mapping[str, Any],
        metrics: Sequence[str] | None = None,
        refresh: float = REFRESH_SECONDS,
    ) -> SweepStudy:
        """Create a study, or join the one of this name.

        Args:
            storage: as `open_storage` gives it.
            name: name of the study.
            directions: one per objective.
            sampler: chooses the values of trials.
            settings: plain settings that decide what a trial is; without secrets, as they are stored.
            metrics: names of the objectives, for optuna-dashboard.
            refresh: seconds between two notes that this driver lives.

        Raises:
            ValueError: The study exists with other settings or objectives, or was not made by a sweep.
            ConnectionError: The storage does not answer.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        plain = json.loads(json.dumps(settings, default=str))
        with plain_errors(described(storage)):
            study = optuna.create_study(
                storage=storage, study_name=name, directions=list(directions), sampler=sampler, load_if_exists=True
            )
            _refuse_other_directions(study, directions, described(storage))
            noted = study.user_attrs.get(_SETTINGS)
            if noted is None and study.get_trials(deepcopy=False):
                raise ValueError(f"the study {name!r} in {described(storage)} was not made by a sweep; {_WAY_OUT}")
            if noted is None:
                study.set_user_attr(_SETTINGS, plain)
                _name_objectives(study, metrics)
            joined = cls(study, sampler, plain, refresh)
            joined._refuse_other_settings()
            joined.drivers.enter()
        joined.close_interrupted()
        return joined

    def __enter__(self) -> SweepStudy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @persistent
    def close(self) -> None:
        """Note that this driver has ended; trials that it still runs are then interrupted ones."""
        self.drivers.leave()
        close_storage(_backend(self.study))

    @persistent
    def ask(self, total: int) -> Trial | None:
        """The next trial to run, queued ones first.

        Several drivers may ask at the same time: one that gets a trial too many withdraws it.

        Args:
            total: number of trials that the sweep has at its end, failed and pruned ones included.

        Returns:
            The trial; None if so many are finished or running, or if a grid's queue is empty. Ask again until
            `finished`: a driver may die with its trials.
        """
        self._compare_once()
        self._tend()
        while self._has_room(total):
            trial = self.study.ask()
            reason = self._superfluous(self.sampler.seen, trial.number, total)
            if reason is None:
                self._own[trial.number] = trial
                return trial
            self._end(trial.number, "surplus", reason)
        return None

    @persistent
    def values(self, trial: Trial, space: Callable[[Trial], dict[str, Any]]) -> dict[str, Any]:
        """The values that a search space chooses for a trial; those that are chosen already stay."""
        return space(trial)

    @persistent
    def stops(self, number: int, stopping: Callable[[Study, int], bool]) -> bool:
        """Whether a trial is to be stopped, given the values that it and others reported."""
        return stopping(self.study, number)

    @persistent
    def noted(self, key: str) -> Any:
        """What was noted with the study, as plain JSON; None if nothing was."""
        return self.study.user_attrs.get(key)

    @persistent
    def note(self, key: str, value: Any) -> None:
        """Note something with the study, as plain JSON, for other drivers and later runs."""
        self.study.set_user_attr(key, value)

    @persistent
    def finished(self, total: int) -> bool:
        """Whether so many trials are finished that none is missing; for a grid, also when its queue has been done."""
        self._tend()
        states = [status_of(trial) for trial in counted(self._trials())]
        done = sum(status in _FINISHED for status in states)
        return done >= total or (self.sampler.only_queued and done == len(states))

    @persistent
    def report(self, number: int, step: int, value: float) -> bool:
        """Note the value so far of a trial of this driver; several objectives have none, so nothing is noted.

        Returns:
            Whether the trial is still this driver's: False if it has ended, or another driver took this one for dead.
        """
        if number not in self._own:
            return False
        if len(self.study.directions) > 1:
            return True
        try:
            self._own[number].report(float(value), step)
        except UpdateFinishedTrialError:
            return False
        return True

    @persistent
    def complete(self, number: int, values: Sequence[float], facts: Mapping[str, Any]) -> Status:
        """Note a finished trial.

        Args:
            number: its number.
            values: one per objective; a trial with a value that is not finite has failed.
            facts: what else it measured, as plain JSON.

        Returns:
            What became of it: `ok`, `failed`, or `interrupted` if another driver took this one for dead meanwhile.

        Raises:
            ValueError: The number of values is not that of the objectives.
        """
        if len(values) != len(self.study.directions):
            raise ValueError(f"trial {number} has {len(values)} values for {len(self.study.directions)} objectives")
        self._note(number, {FACTS: dict(facts)})
        if not all(math.isfinite(value) for value in values):
            written = ", ".join(map(str, values))
            return self._end(number, "failed", f"its result is no number: {written}")
        return self._tell(number, TrialState.COMPLETE, [float(value) for value in values])

    @persistent
    def prune(self, number: int, facts: Mapping[str, Any]) -> Status:
        """Note a trial that was stopped early, which Optuna knows by the values that it reported.

        Returns:
            What became of it: `pruned` or `interrupted`, as in `complete`.

        Raises:
            ValueError: The study has several objectives, which cannot be pruned.
        """
        if len(self.study.directions) > 1:
            raise ValueError("trials with several objectives cannot be stopped early; allowed: one objective")
        self._note(number, {FACTS: dict(facts)})
        return self._tell(number, TrialState.PRUNED)

    @persistent
    def fail(self, number: int, reason: str) -> Status:
        """Note a trial that ended with an error.

        Returns:
            What became of it: `failed` or `interrupted`, as in `complete`.
        """
        return self._end(number, "failed", reason)

    @persistent
    def lose(self, number: int, reason: str) -> Status:
        """Note a trial whose process or node died, which may not be its fault: it is run again, once.

        Returns:
            What became of it: `interrupted`, or `failed` if the trial that it repeats was lost in the same way.
        """
        trials = {trial.number: trial for trial in self._trials()}
        before = trials.get(trials[number].user_attrs.get(RERUN, -1))
        if before is not None and before.user_attrs.get(LOST):
            return self._end(number, "failed", reason)
        self._note(number, {LOST: True})
        told = self._end(number, "interrupted", reason)
        self.close_interrupted()
        return told

    @persistent
    def close_interrupted(self) -> list[int]:
        """Close the trials of drivers that have died, and queue them again; each once, whoever does it.

        Returns:
            Numbers of the trials that this call closed.
        """
        self._tended = time.monotonic()
        running = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
        alive = self.drivers.alive() if running else set()
        closed = []
        for trial in running:
            owner = trial.user_attrs.get(DRIVER)
            if self._is_left_behind(trial, owner, alive):
                told = self._end(trial.number, "interrupted", f"its driver ended ({owner or 'unknown'})")
                closed += [trial.number] if told == "interrupted" else []
        for trial in unrepeated(self._trials()):
            self.study.add_trial(repeated(trial))
        return closed

    @persistent
    def enqueue_all(self, combinations: Sequence[Mapping[str, Any]]) -> int:
        """Queue the combinations of a grid that the study does not have yet.

        Args:
            combinations: dimension → value; a combination that occurs n times is run n times.

        Returns:
            How many were queued.
        """
        self.close_interrupted()
        there, seen, queued = slots(self._trials()), Counter[str](), 0
        for values in combinations:
            text = json.dumps(values, sort_keys=True)
            seen[text] += 1
            slot = hashlib.sha256(f"{text} {seen[text]}".encode()).hexdigest()[:16]
            if slot not in there:
                self.study.enqueue_trial(dict(values), user_attrs={SLOT: slot})
                queued += 1
        return queued

    @persistent
    def counts(self) -> Counts:
        """Numbers of trials by what became of them."""
        trials = self._trials()
        number = Counter(status_of(trial) for trial in counted(trials))
        own = sum(t.state == TrialState.RUNNING and t.user_attrs.get(DRIVER) == self.drivers.name for t in trials)
        return Counts(
            ok=number["ok"],
            pruned=number["pruned"],
            failed=number["failed"],
            running=own,
            elsewhere=number["running"] - own,
            waiting=number["waiting"],
            interrupted=sum(status_of(trial) == "interrupted" for trial in trials),
        )

    @persistent
    def trials(self) -> list[TrialRecord]:
        """All trials by number, running and waiting ones included, withdrawn ones not."""
        trials = self._trials()
        ordinals = {trial.number: rank for rank, trial in enumerate(counted(trials))}
        listed = [t for t in trials if t.number in ordinals or status_of(t) == "interrupted"]
        return [record_of(trial, ordinals.get(trial.number)) for trial in listed]

    @persistent
    def front(self) -> list[TrialRecord]:
        """The finished trials that no other one beats in all objectives, by number (Pareto front)."""
        numbers = {trial.number for trial in self.study.best_trials} if self.counts().ok else set()
        return [trial for trial in self.trials() if trial.number in numbers]

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _tend(self) -> None:
        """Look for trials that were left behind, at most every few seconds."""
        if time.monotonic() - self._tended >= self.drivers.refresh:
            self.close_interrupted()

    def _has_room(self, total: int) -> bool:
        states = [status_of(trial) for trial in counted(self._trials())]
        waiting = states.count("waiting")
        return len(states) - waiting < total and (waiting > 0 or not self.sampler.only_queued)

    def _superfluous(self, trials: Sequence[FrozenTrial], number: int, total: int) -> str | None:
        """Why a trial that was just given out is not to be run, by the trials there were then; None if it is."""
        trial = next(trial for trial in trials if trial.number == number)
        if trial not in counted(trials):
            return "another trial stands for the same"
        if self.sampler.only_queued and "fixed_params" not in trial.system_attrs:
            return "another driver took the last combination"
        return "another driver took the last place" if ordinal_of(trials, number) >= total else None

    def _is_left_behind(self, trial: FrozenTrial, owner: str | None, alive: set[str]) -> bool:
        if owner is not None and owner != self.drivers.name:
            return owner not in alive
        if owner is not None:  # A lost connection may have kept the trial from being given out.
            return trial.number not in self._own
        since = self._unowned.setdefault(trial.number, time.monotonic())
        return alive == {self.drivers.name} or time.monotonic() - since > _UNOWNED_SECONDS

    def _end(self, number: int, status: Status, reason: str) -> Status:
        """Close a trial without values."""
        self._note(number, {STATUS: status, REASON: reason})
        told = self._tell(number, TrialState.FAIL)
        return status if told == "failed" else told

    def _note(self, number: int, attributes: Mapping[str, Any]) -> None:
        storage = self.study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        for key, value in attributes.items():
            try:
                storage.set_trial_user_attr(trial_id, key, json.loads(json.dumps(value)))
            except UpdateFinishedTrialError:
                return

    def _tell(self, number: int, state: TrialState, values: list[float] | None = None) -> Status:
        """Close a trial, unless somebody else did; the storage lets only one of two do so."""
        self._own.pop(number, None)
        with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # The latter where Optuna sees it in time.
            self.study.tell(number, values, state=state)
            if state != TrialState.FAIL:
                return "ok" if values else "pruned"
        return status_of(next(trial for trial in self._trials() if trial.number == number))

    def _compare_once(self) -> None:
        """Compare the settings again: another driver may have made the study at the same moment with others."""
        if not self._compared:
            self._refuse_other_settings()
            self._compared = True

    def _refuse_other_settings(self) -> None:
        changed = differences(self.study.user_attrs[_SETTINGS], self.settings)
        if changed:
            raise ValueError(
                f"the study {self.study.study_name!r} in {self.where} exists with other settings:\n"
                f"{difference_lines(changed)}\n{_WAY_OUT[0].upper()}{_WAY_OUT[1:]}."
            )


def _backend(study: Study) -> BaseStorage:
    """The storage of a study, without the cache that Optuna puts before a database."""
    backend = getattr(study._storage, "_backend", None)
    return backend if isinstance(backend, BaseStorage) else study._storage


def _name_objectives(study: Study, names: Sequence[str] | None) -> None:
    if names is not None:
        with quiet():
            study.set_metric_names(list(names))


def _refuse_other_directions(study: Study, directions: Sequence[Direction], where: str) -> None:
    there = [direction.name.lower() for direction in study.directions]
    if there != list(directions):
        raise ValueError(
            f"the study {study.study_name!r} in {where} exists with other objectives: they are to "
            f"{', '.join(there)}, and now to {', '.join(directions)}; {_WAY_OUT}"
        )
