"""`python -m ray_jobs.pretrain key=value …` is `clipautt pretrain key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
