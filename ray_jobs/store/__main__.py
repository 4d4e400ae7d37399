"""`python -m ray_jobs.store key=value …` is `clipautt store key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
