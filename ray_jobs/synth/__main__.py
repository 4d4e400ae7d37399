"""`python -m ray_jobs.synth key=value …` is `clipautt synth key=value …`."""

from ray_jobs.cli import run_job

raise SystemExit(run_job(__package__))
