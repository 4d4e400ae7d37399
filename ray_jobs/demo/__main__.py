"""`python -m ray_jobs.demo key=value …` is `clipautt demo key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
