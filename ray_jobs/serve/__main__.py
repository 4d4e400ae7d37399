"""`python -m ray_jobs.serve key=value …` is `clipautt serve key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
