"""`python -m ray_jobs.predict key=value …` is `clipautt predict key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
