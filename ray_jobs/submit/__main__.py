"""`python -m ray_jobs.submit key=value …` is `clipautt submit key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
