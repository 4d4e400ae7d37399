"""`python -m ray_jobs.backbone key=value …` is `clipautt backbone key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
