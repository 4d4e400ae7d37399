"""Progress of a sweep on the terminal: a line for every trial that ends.

In: the study after each trial. Out: trials done, running, pruned and failed, the best one with its interval, the time
left.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray_jobs.platform.progress import duration
from ray_jobs.sweep.studies.records import TrialRecord, brief
from ray_jobs.sweep.studies.study import SweepStudy
from ray_jobs.sweep.table import best_record, figure_text


class SweepProgress:
    """Prints the lines.

    Args:
        total: trials to have at the end.
        objectives: names of the figures that are optimized; the best trial is that by the first one.
        clock: seconds, to estimate the time left.
    """

    def __init__(self, total: int, objectives: tuple[str, ...], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.objectives, self.clock = total, objectives, clock
        self.began, self.ours, self.told = clock(), 0, 0

    def ended(self, study: SweepStudy, number: int) -> None:
        """A trial of this driver ended."""
        self.ours += 1
        counts, records = study.counts(), study.trials()
        done = counts.finished
        running = counts.running + counts.elsewhere
        states = [f"{running} running"] * bool(running)
        states += [f"{counts.pruned} pruned"] * bool(counts.pruned) + [f"{counts.failed} failed"] * bool(counts.failed)
        parts = [f"sweep: {done}/{self.total} trials" + (f" ({', '.join(states)})" if states else "")]
        parts.append(_outcome(next(one for one in records if one.number == number), self.objectives[0]))
        best = best_record(records, self.objectives[0])
        shown = "none yet" if best is None else f"trial {best.number}, {figure_text(best, self.objectives[0])}"
        parts.append(f"best: {shown}")
        elapsed = self.clock() - self.began
        left = elapsed / self.ours * max(0, self.total - done)
        parts.append(f"{duration(left)} left" if done < self.total else duration(elapsed))
        print("; ".join(parts), flush=True)

    def waiting(self, others: int) -> None:
        """All missing trials are run by other drivers; told once for each number of them."""
        if others != self.told:
            self.told = others
            print(f"sweep: waiting for {others} trial{'s' * (others != 1)} of other drivers", flush=True)


def _outcome(record: TrialRecord, objective: str) -> str:
    if record.status == "failed":
        return f"trial {record.number} failed: {brief(record.reason)}"
    if record.status == "pruned":
        folds = record.facts.get("folds", 0)
        return f"trial {record.number} pruned after {folds} fold{'s' * (folds != 1)}"
    if record.status != "ok":
        return f"trial {record.number} {record.status}: {brief(record.reason)}"
    return f"trial {record.number}: {figure_text(record, objective)}"
