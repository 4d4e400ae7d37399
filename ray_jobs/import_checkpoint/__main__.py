"""`python -m ray_jobs.import_checkpoint key=value …` is `clipautt import-checkpoint key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
