"""`python -m ray_jobs.sweep key=value …` is `clipautt sweep key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
