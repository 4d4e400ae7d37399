"""`python -m ray_jobs.train key=value …` is `clipautt train key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
