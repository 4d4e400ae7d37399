"""`python -m ray_jobs.faces key=value …` is `clipautt faces key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
