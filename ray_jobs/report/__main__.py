"""`python -m ray_jobs.report key=value …` is `clipautt report key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
