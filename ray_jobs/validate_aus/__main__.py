"""`python -m ray_jobs.validate_aus key=value …` is `clipautt validate-aus key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
