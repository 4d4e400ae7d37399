"""`python -m ray_jobs.adapt key=value …` is `clipautt adapt key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
