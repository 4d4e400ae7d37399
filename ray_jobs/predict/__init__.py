"""The predict job: one video in, one prediction out. Open `job` first."""

import os

# PyTorch's threads sleep while they wait for one another: spinning, as is the default, takes more of a busy processor
# than the work of one short video. It is read when PyTorch is imported, so it stands in front of the job.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
