"""`python -m ray_jobs.extract key=value …` is `clipautt extract key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
