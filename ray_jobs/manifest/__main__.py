"""`python -m ray_jobs.manifest key=value …` is `clipautt manifest key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
