"""`python -m ray_jobs.personalize key=value …` is `clipautt personalize key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
