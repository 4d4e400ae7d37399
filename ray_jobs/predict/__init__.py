"""The predict job: one video in, one prediction out. Open `job` first."""

import os

# Let PyTorch's threads sleep while they wait for one another: spinning, the default, costs a busy processor more than
# the work of one short video. PyTorch reads the variable when it is imported, so it is set before the job is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
